"""Biases that make up for the rounding of weights: what bfloat16 then costs on the reference photographs."""

from __future__ import annotations

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from helpers import GOLDEN, shared
from torch import Tensor, nn

from models.inference.biases import _shift, corrected_biases
from models.inference.packed import PackedConv2d, _is_available
from models.inference.runtime import BFLOAT16_COST, Runtime, load_runtime
from models.yolo import DetectionModel
from utils.boxes import scale_boxes
from utils.data.augment import letterbox
from utils.evaluation.nms import non_max_suppression
from utils.system.precision import cpu_bf16_units

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not _is_available(torch.bfloat16), reason="this torch has no such convolutions")


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_the_mean_output_stays(groups: int) -> None:
    conv = nn.Conv2d(8, 16, 3, groups=groups)
    means = torch.rand(8)
    rounded = copy.deepcopy(conv).bfloat16().float()
    rounded.bias.data = conv.bias + _shift(conv, means)
    x = means.reshape(1, 8, 1, 1).expand(1, 8, 5, 5)
    torch.testing.assert_close(rounded(x), conv(x), rtol=0, atol=1e-6)


def test_the_model_stays_as_it_is() -> None:
    model = DetectionModel("yolov5_shufflenet.yaml", nc=2).fuse().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    biases = corrected_biases(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(biases) == {m for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    assert all(b.dtype == torch.float32 and b.shape == m.bias.shape for m, b in biases.items())
    assert not any(m._forward_pre_hooks for m in biases)


@needs_onednn
def test_a_bias_is_not_rounded() -> None:
    conv = nn.Conv2d(1, 1, 1).bfloat16()
    nn.init.ones_(conv.weight)
    layer = PackedConv2d(conv, bias=torch.tensor([1.001]))
    assert layer(torch.full((1, 1, 2, 2), -1.0)).flatten().tolist() == pytest.approx([0.001] * 4, rel=0.01)


@needs_onednn
@pytest.mark.parametrize(("amp", "told"), [("bf16", True), ("off", False)])
def test_the_cost_is_told(amp: str, told: bool) -> None:
    runtime = Runtime(DetectionModel("yolov5_shufflenet.yaml", nc=2), CPU, amp=amp)
    assert runtime.reason.endswith(f"--amp {amp})" + f", {BFLOAT16_COST}" * told)
    packed = [m for m in runtime.model.modules() if isinstance(m, PackedConv2d)]
    assert packed and {m.bias.dtype for m in packed} == {torch.float32}


@pytest.mark.skipif(not cpu_bf16_units(), reason="this CPU has no bfloat16 units, so detect.py does not use bfloat16")
@pytest.mark.parametrize(("weights", "file", "away"), [("yolov5n.pt", "yolov5n_detect.json", 0.006),
                                                       ("v5lite-s.pt", "v5lite_s_detect.json", 0.03)])  # fmt: skip
def test_official_detections_in_bfloat16(weights: str, file: str, away: float) -> None:
    runtime = load_runtime(shared(f"weights/{weights}"), CPU, amp="auto")
    assert runtime.dtype == torch.bfloat16
    for photograph, reference in json.loads((GOLDEN / file).read_text()).items():
        im0 = cv2.imread(str(shared(f"images/{photograph}")))
        im = letterbox(im0, (640, 640), stride=32)[0]
        x = torch.from_numpy(np.ascontiguousarray(im[..., ::-1].transpose(2, 0, 1)))[None]
        # objects with a confidence close to 0.25 may be found in one number format only
        found = non_max_suppression(runtime.predict(x), 0.25 - away, 0.45)[0]
        scale_boxes(x.shape[2:], found[:, :4], im0.shape[:2])
        for row in torch.tensor(reference["dets"]):
            match = closest(found, row)
            assert abs(match[4] - row[4]) < away and (match[:4] - row[:4]).abs().max() < 10


def closest(found: Tensor, row: Tensor) -> Tensor:
    """The detection of the same class whose corners are closest."""
    same = found[found[:, 5] == row[5]]
    return same[(same[:, :4] - row[:4]).abs().amax(1).argmin()]
