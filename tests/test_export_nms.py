"""export.py --nms: the boxes are those of detect.py; a wrong network or NMS is refused, and no right one is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import need_packages, network
from helpers import write_yolo_set

import export
import val
from models.export import exporters, onnx_nms
from models.export.engines import need
from models.export.form import ExportForm
from models.inference.runtime import load_runtime
from models.weights.checkpoint import save_checkpoint, weights_content
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(file, weights_content(network(), 64))
    return file


@pytest.mark.parametrize(("batch", "dynamic"), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize("max_det", [5, 300])
def test_nms_in_the_graph(batch: int, dynamic: bool, max_det: int, weights: Path, tmp_path: Path) -> None:
    """A caller without this program gets what detect.py finds, image by image, and may set the thresholds."""
    need_packages("onnx")
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include=["onnx"], nms=True, batch_size=batch,
                         dynamic=dynamic, max_det=max_det, conf_thres=0.3)  # fmt: skip
    session = need("onnxruntime", "").InferenceSession(str(file))
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["detections"]
    images = torch.rand(3 if dynamic else batch, 3, 64, 64)
    network, runtime = load_runtime(weights, CPU), load_runtime(file, CPU)
    counts = []
    for extra, conf, iou in (({}, 0.3, 0.45), ({"conf_thres": 0.6}, 0.6, 0.45), ({"iou_thres": 0.7}, 0.3, 0.7),
                             ({"conf_thres": 1.0}, 1.0, 0.45)):  # fmt: skip
        feed = {k: np.array([v], np.float32) for k, v in extra.items()}
        (rows,) = session.run(None, {"images": images.numpy(), **feed})
        assert rows.shape[1] == 7 and (np.diff(rows[:, 0]) >= 0).all()
        expected = non_max_suppression(network.predict(images), conf, iou, max_det=max_det)
        for k, found in enumerate(expected):
            mine = rows[rows[:, 0] == k, 1:]
            counts.append(len(mine))
            np.testing.assert_allclose(mine, found.numpy(), atol=5e-3)
    assert max(counts) > (3 if max_det == 5 else 9) and counts[-1] == 0
    again = non_max_suppression(runtime.predict(images), 0.3, 0.45, max_det=max_det)
    for a, b in zip(again, non_max_suppression(network.predict(images), 0.3, 0.45, max_det=max_det), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=1e-4)
    data = write_yolo_set(tmp_path / "set", 12)
    results = val.run(weights=str(file), data=str(data), project=str(tmp_path), device="cpu", noplots=True)
    assert results.images == 12 and np.isfinite(results.summary).all()
    assert runtime.facts.nms == {"conf": 0.3, "iou": 0.45, "max_det": max_det}


def nearly_equal(folder: Path, logit: float) -> Path:
    """A checkpoint whose objectness and class scores differ only a little, as after a very short training."""
    model = network()
    for conv in model.model[-1].m:
        conv.weight.data.reshape(3, 7, -1)[:, 4:] *= 1e-3
        conv.bias.data.reshape(3, 7)[:, 4:] = logit
    save_checkpoint(folder / "best.pt", weights_content(model, 64))
    return folder / "best.pt"


@pytest.mark.parametrize("flags", [{}, {"half": True}, {"dynamic": True}, {"imgsz": 256, "max_det": 20}])
def test_nms_of_a_barely_trained_network(flags: dict, tmp_path: Path) -> None:
    """Rounding changes the order of its scores, and so which boxes NMS keeps."""
    need_packages("onnx")
    export.run(weights=str(nearly_equal(tmp_path, -0.9)), include=["onnx"], nms=True, **flags)


@pytest.mark.parametrize(("right", "wrong", "message"), [
    ("Mul(wh, half)", "Mul(wh, wh)", "kept boxes are not among the network's"),
    ("Mul(classes, sure)", "Mul(classes, classes)", "kept boxes are not among the network's"),
    ("Mul(every, is_best1)", "Identity(every)", "kept boxes are not among the network's"),  # several classes for a box
    ("<largest = 0", "<largest = 1", "the boxes are not sorted"),
    ("max_det, iou_thres,", "max_det, half,", "boxes of one class are kept whose IoU is above 0.45"),
    ("max_det, iou_thres,", "max_det, conf_thres,", "boxes are missing"),
    ("max_det, iou_thres,", "one, iou_thres,", "boxes are missing"),
])  # fmt: skip
def test_a_wrong_nms_is_an_error(
    right: str, wrong: str, message: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_packages("onnx")
    shutil.copy(weights, tmp_path / "best.pt")
    assert onnx_nms.TEXT.count(right) == 1
    monkeypatch.setattr(onnx_nms, "TEXT", onnx_nms.TEXT.replace(right, wrong))
    with pytest.raises(UserError, match=f"^best.onnx: NMS in the graph is wrong: .*{message}.*; not written$"):
        export.run(weights=str(tmp_path / "best.pt"), include=["onnx"], nms=True)
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


@pytest.mark.parametrize("logit", [-0.9, -7])
def test_a_wrong_network_before_nms_is_an_error(
    logit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if no box is above the confidence threshold."""
    need_packages("onnx")
    graph = exporters.onnx_graph

    def wrong(form: ExportForm, *args: object) -> bytes:
        form.convs[1].bias.data[0] += 0.1
        return graph(form, *args)

    monkeypatch.setattr(exporters, "onnx_graph", wrong)
    with pytest.raises(UserError, match="^best.onnx differs from the network: boxes by .*; not written$"):
        export.run(weights=str(nearly_equal(tmp_path, logit)), include=["onnx"], nms=True)
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


def test_simplified_with_nms(weights: Path, tmp_path: Path) -> None:
    """Its settings are still there to be changed."""
    need_packages("onnx")
    pytest.importorskip("onnxslim")
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include=["onnx"], simplify=True, nms=True, imgsz=[64, 96])
    session = need("onnxruntime", "").InferenceSession(str(file))
    x = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    counts = [len(session.run(None, {"images": x, "max_det": np.array([most])})[0]) for most in (3, 50)]
    assert counts[0] == 3 < counts[1] <= 50
