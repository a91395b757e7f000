"""Model configs against the reference numbers, the layer table, and what a wrong yaml is told."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from helpers import GOLDEN, run_main, run_script

import models.yolo
from models.yolo import Detect, Model, layer_table, parse_activation, parse_model
from utils.errors import UserError
from utils.files import model_yamls
from utils.settings.config import load_model_cfg
from utils.system.profiling import count_gflops

REFERENCE = json.loads((GOLDEN / "models.json").read_text())
CONFIGS = sorted(p.name for p in model_yamls().values())
OURS = {  # configs without reference numbers
    "yolov5_stem_shufflenet_p3.yaml": [8, 16, 32],
    "yolov5_shufflenet_x1_0.yaml": [8, 16, 32],
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n[6] in "lx" else []) for n in REFERENCE])
def test_reference_numbers(name: str) -> None:
    expected = REFERENCE[name]
    model = Model(f"{name}.yaml", nc=expected["nc"]).eval()
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    assert model.stride.tolist() == expected["stride"]
    layers = [{"i": m.i, "f": m.f, "type": m.type, "params": m.np} for m in model.model]
    assert layers == expected["layers"]
    state = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert list(state.items()) == list(dict(expected["state_dict"]).items())
    assert count_gflops(model) == pytest.approx(expected["gflops_640"], rel=0.01)
    fused = sum(p.numel() for p in model.fuse().parameters())
    folds_more = "shufflenet" in name  # the Sequential ones too
    assert fused < expected["fused_params"] if folds_more else fused == expected["fused_params"]


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.removesuffix(".yaml") not in REFERENCE])
def test_every_other_config_builds(name: str) -> None:
    model = Model(name, nc=2).eval()
    assert model(torch.zeros(1, 3, 256, 256))[0].shape[-1] == 7
    assert name not in OURS or model.stride.tolist() == OURS[name]


@pytest.mark.parametrize("name", ["yolov5_shufflenet", "yolov5_stem_shufflenet", "yolov5n_slimneck", *OURS])
def test_forward_backward_and_channels_last(name: str) -> None:
    torch.manual_seed(0)
    model = Model(name, nc=3)
    strides = model.stride.tolist()
    if name in OURS:
        assert strides == OURS[name]
    x = torch.rand(2, 3, 128, 256)
    maps = model.train()(x)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 128 // s, 256 // s, 8) for s in map(int, strides)]
    sum((m**2).mean() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        decoded, raw = model(x)
        n = sum(3 * (128 // int(s)) * (256 // int(s)) for s in strides)
        assert decoded.shape == (2, n, 8) and len(raw) == 3
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.to(memory_format=torch.channels_last))[0], decoded, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(copy.deepcopy(model).fuse()(x)[0], decoded, rtol=1e-3, atol=1e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(x)[0]
        assert low.dtype == torch.float32 and torch.isfinite(low).all()


def test_decode_by_hand() -> None:
    head = Detect(1, [[10, 20]], [4])
    head.stride[0] = 8.0
    head.anchors /= 8.0
    raw = torch.zeros(1, 1, 2, 3, 6)
    decoded = head.decode(raw, 0)
    # sigmoid(0) = 0.5: centre of the cell, the anchor's own size, scores one half
    assert decoded.shape == (1, 6, 6)
    assert decoded[0, 0].tolist() == [4, 4, 10, 20, 0.5, 0.5]
    assert decoded[0, 5].tolist() == [20, 12, 10, 20, 0.5, 0.5]


def test_test_time_augmentation_sees_the_picture_the_right_way_round() -> None:
    torch.manual_seed(0)
    model = Model("yolov5_shufflenet.yaml", nc=2).eval()
    x = torch.rand(1, 3, 128, 192)
    plain, (augmented, _) = model(x)[0], model(x, augment=True)
    assert augmented.shape[1] > 2 * plain.shape[1]
    torch.testing.assert_close(augmented[:, : plain.shape[1]], plain)
    assert (augmented[..., 0] > -64).all() and (augmented[..., 0] < 192 + 64).all()


def test_x1_0_backbone_fits_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs a torchvision that loads", exc_type=Exception)
    theirs = torchvision.models.shufflenet_v2_x1_0(weights=None)
    ours = Model("yolov5_shufflenet_x1_0.yaml").model
    stages = [("conv1", [ours[0].conv1]), ("stage2", [ours[1], *ours[2]]), ("stage3", [ours[3], *ours[4]]),
              ("stage4", [ours[5], *ours[6]])]  # fmt: skip
    for name, blocks in stages:
        their_shapes = [tuple(v.shape) for v in getattr(theirs, name).state_dict().values()]
        assert [tuple(v.shape) for b in blocks for v in b.state_dict().values()] == their_shapes


def test_parse_model_alone() -> None:
    cfg = load_model_cfg("yolov5_shufflenet.yaml")
    model, saved = parse_model(cfg, [3])
    assert len(model) == 22 and saved == [2, 4, 7, 11, 14, 17, 20]


def test_activation_key_reaches_the_default_activations_only() -> None:
    cfg = {**load_model_cfg("yolov5n_slimneck.yaml"), "activation": "nn.LeakyReLU(0.1)"}
    block = Model(cfg).model[13]
    assert type(block.cv1.act).__name__ == "LeakyReLU" and block.cv1.act.negative_slope == 0.1
    assert type(block.gsb[0].shortcut.act).__name__ == "Identity"


@pytest.mark.parametrize("text", ["nn.Evil()", "__import__('os').system('true')", "nn.SiLU(1)"])
def test_activation_is_looked_up_never_run(text: str) -> None:
    with pytest.raises(ValueError, match="activation"):
        parse_activation(text)


def edited(row: int, new: list) -> dict:
    cfg = load_model_cfg("yolov5_shufflenet.yaml")
    part, k = ("backbone", row) if row < 7 else ("head", row - 7)
    cfg[part][k] = new
    return cfg


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (edited(1, [-1, 1, "InvertedResidal", [128, 2]]), "layer 1 .*did you mean 'InvertedResidual'"),
        (edited(1, [-1, 1, "os.system", ["true"]]), "layer 1 .*unknown module 'os.system'"),
        (edited(2, [-1, 3, "InvertedResidual", [256, 1]]), "layer 2 .*must be the input width 64"),
        (edited(2, [5, 1, "Conv", [64]]), "layer 2 .*'from' 5 is not an earlier layer"),
        (edited(2, [-9, 1, "Conv", [64]]), "layer 2 .*'from' -9 is not an earlier layer"),
        (edited(2, [-1, 0, "Conv", [64]]), "layer 2 .*repeats is 0"),
        (edited(2, [-1, 1, "Conv", []]), "layer 2 .*first argument must be the output width"),
        (edited(2, [-1, 1, "Conv", ["64"]]), "layer 2 .*first argument must be the output width"),
        (edited(2, [-1, 1, "CRM", [64, 3, 2, 5, 6]]), "layer 2 .*too many positional arguments"),
        (edited(2, [-1, 1, "Conv", [64, "big"]]), "layer 2 "),
        (edited(2, [[-1, 0], 1, "Conv", [64]]), "layer 2 .*takes one input"),
        (edited(2, [-1, 1, "Conv"]), r"layer 2 .*\[from, repeats, module, args\]"),
        (edited(2, [-1, 1, "Detect", ["nc", "anchors"]]), "layer 2 .*head such as Detect must be the last"),
        (edited(2, [-1, 1, "C3", [64, False, 1, 900000.0]]), "layer 2 .*it needs [0-9,]+ parameters"),
        (edited(9, [[-1, 3], 1, "Concat", [1]]), ""),  # fits: same map size
        (edited(9, [[-1, 2], 1, "Concat", [1]]), "layer 9 .*cannot take its input"),
        (edited(21, [[14, 17], 1, "Detect", ["nc", "anchors"]]), "layer 21 .*2 input maps but 3 rows of anchors"),
        ({**load_model_cfg("yolov5n.yaml"), "widht_multiple": 1}, "unknown key 'widht_multiple'.*width_multiple"),
        ({**load_model_cfg("yolov5n.yaml"), "nc": "20"}, "nc is 20, it must be a whole"),
        ({**load_model_cfg("yolov5n.yaml"), "anchors": [[1, 2, 3]]}, "anchors must be"),
        ({**load_model_cfg("yolov5n.yaml"), "activation": "nn.Silu()"}, "did you mean 'SiLU'"),
    ],
)
def test_wrong_config_is_one_line_with_file_and_layer(cfg: dict, message: str) -> None:
    if not message:
        Model(cfg)
        return
    with pytest.raises(UserError, match=message) as e:
        Model(cfg)
    assert cfg["yaml_file"] in str(e.value)


def test_layer_table_shows_shapes_and_strides() -> None:
    lines = layer_table(Model("yolov5_stem_shufflenet.yaml").eval()).splitlines()
    assert lines[3].split()[:8] == ["2", "-1", "1", "14,080", "InvertedResidual", "128x20x20", "32", "[256,"]
    assert lines[-1].endswith("3,412,961 parameters, 1.29 GFLOPs at 640 px, strides 32/64/128")


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run_main(monkeypatch, models.yolo, "--cfg", "yolov5_shuflenet") == 1
    assert "did you mean 'yolov5_shufflenet.yaml'" in capsys.readouterr().err
    done = run_script("models/yolo.py", "--cfg", "models/yolov5_stem_shufflenet.yaml", "--imgsz", 256)
    assert done.returncode == 0 and "under about 32 px are likely to be missed" in done.stdout


@pytest.mark.parametrize("cfg", ["yolov5_shufflenet.yaml", "yolov5_stem_shufflenet.yaml", "yolov5n_slimneck.yaml"])
def test_a_new_model_has_learnt_nothing(cfg: str) -> None:
    """Its strides are read with an empty image, from which batch norms would learn."""
    model = Model(cfg)
    assert all(m.training for m in model.modules())
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(not m.running_mean.any() and (m.running_var == 1).all() for m in norms)
    assert not any(m.num_batches_tracked for m in norms)
