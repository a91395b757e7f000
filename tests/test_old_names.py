"""Scripts written for YOLOv5: their imports resolve, their calls do what they expect, whole ones run unchanged."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import logging
import os
import runpy
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT

import export
from models.inference.backend import DetectMultiBackend, attempt_load
from models.inference.runtime import load_runtime
from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from utils import augmentations, autoanchor, dataloaders, downloads, general, plots, torch_utils
from utils.data.augment import letterbox
from utils.errors import UserError
from utils.settings.config import load_hyp

SCRIPTS = ROOT / "tests/old_scripts"
NAMES = {
    "utils.general": """LOGGER Path Profile ROOT box_iou check_dataset check_file check_img_size check_imshow
        check_requirements check_suffix check_yaml clip_boxes clip_coords colorstr cv2 download increment_path
        init_seeds make_divisible non_max_suppression print_args scale_boxes scale_coords set_logging strip_optimizer
        xywh2xyxy xywhn2xyxy xyxy2xywh xyxy2xywhn yaml_load yaml_save""",
    "utils.torch_utils": """EarlyStopping ModelEMA model_info select_device smart_inference_mode time_sync
        time_synchronized""",
    "utils.dataloaders": "IMG_FORMATS LoadImages LoadScreenshots LoadStreams VID_FORMATS create_dataloader letterbox",
    "utils.augmentations": "augment_hsv letterbox random_perspective",
    "utils.plots": "Annotator colors plot_evolve plot_labels plot_results save_one_box",
    "utils.metrics": "ConfusionMatrix ap_per_class box_iou compute_ap fitness process_batch smooth",
    "utils.loss": "ComputeLoss",
    "utils.nms": "non_max_suppression",
    "utils.autoanchor": "check_anchor_order check_anchors kmean_anchors",
    "utils.downloads": "attempt_download is_url safe_download",
    "models.common": """AutoShape Bottleneck C3 CRM Concat Conv DetectMultiBackend GSBottleneck GSConv InvertedResidual
        SPPF SlimNeck StemBlock VoVGSCSP channel_shuffle""",
    "models.yolo": "Detect DetectionModel Model parse_model",
    "models.experimental": "attempt_load",
}
SHIMS = [name for name in NAMES if name not in ("models.common", "models.yolo")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights whose coarsest map fires everywhere."""
    torch.manual_seed(0)
    model = DetectionModel("yolov5_shufflenet.yaml", nc=2)
    model.names = {0: "red", 1: "blue"}
    for i, conv in enumerate(model.model[-1].m):
        conv.bias.data.reshape(3, 7)[:, 4:] = 2.0 if i == 2 else -9.0
    file = tmp_path_factory.mktemp("old") / "best.pt"
    save_checkpoint(file, weights_content(model, 64))
    return file


def drawn(seed: int = 0, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    im = np.random.default_rng(seed).integers(0, 90, (*size, 3), np.uint8)
    cv2.rectangle(im, (30, 20), (80, 70), (40, 40, 220), -1)
    return im


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in NAMES.items() for n in names.split()])
def test_name_resolves(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("module", SHIMS)
def test_shims_hold_imports_alone(module: str) -> None:
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    docstring, *imports, exports = tree.body
    assert ast.get_docstring(tree) and isinstance(docstring, ast.Expr)
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in imports)
    assert isinstance(exports, ast.Assign) and exports.targets[0].id == "__all__"
    imported = sorted(a.asname or a.name for node in imports for a in node.names)
    assert imported == sorted(ast.literal_eval(exports.value)) == sorted(NAMES[module].split())


def test_unknown_names_of_common_stay_unknown() -> None:
    import models.common

    assert not hasattr(models.common, "DetectMultiBackends")
    with pytest.raises(ImportError, match="cannot import name 'nix'"):
        from models.common import nix  # noqa: F401


def flask_module() -> ModuleType:
    try:
        return importlib.import_module("flask")
    except ImportError:
        return load("flask", SCRIPTS / "stand_in/flask.py")


def load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flask_endpoint(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    monkeypatch.setitem(sys.modules, "flask", flask_module())
    client = load("flask_app", SCRIPTS / "flask_app.py").app.test_client()
    im = drawn()
    png = io.BytesIO(cv2.imencode(".png", im)[1].tobytes())
    answer = client.post("/detect", data={"image": (png, "a.png")})
    assert answer.status_code == 200
    # the same by our own means
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    x = letterbox(im, (160, 160))[0][..., ::-1].transpose(2, 0, 1)
    pred = load_runtime(weights, device).predict(torch.from_numpy(np.ascontiguousarray(x))[None])
    (expected,) = general.non_max_suppression(pred, 0.25, 0.45)
    boxes = general.scale_boxes(x.shape[1:], expected[:, :4].cpu(), im.shape[:2]).round().int().tolist()
    found = answer.get_json()
    assert len(found) >= 3 and [f["box"] for f in found] == boxes
    assert [f["confidence"] for f in found] == pytest.approx(expected[:, 4].tolist(), abs=1e-4)
    assert {f["name"] for f in found} <= {"red", "blue"}


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 96))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(drawn(k))
    writer.release()
    return path


def count_frames(path: Path) -> int:
    capture, n = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        n += 1
    return n


@pytest.mark.parametrize("kind", ["streams", "video", "picture"])
def test_webcam_loop(kind: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_video(tmp_path / "street.mp4", 3)
    if kind == "streams":
        (tmp_path / "cameras.streams").write_text(f"{source}\n{write_video(tmp_path / 'yard.mp4', 2)}\n")
        source = tmp_path / "cameras.streams"
    elif kind == "picture":
        source = tmp_path / "a.png"
        cv2.imwrite(str(source), drawn())
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    words = ["webcam.py", "--weights", weights, "--source", source, "--img", 64, "--project", tmp_path / "runs"]
    monkeypatch.setattr(sys, "argv", [str(w) for w in words])
    runpy.run_path(str(SCRIPTS / "webcam.py"), run_name="__main__")
    out = tmp_path / "runs/exp"
    crops = [p for p in (out / "crops").rglob("*.jpg") if p.parent.name in ("red", "blue")]
    lines = [line for f in (out / "labels").iterdir() for line in f.read_text().splitlines()]
    assert len(crops) >= 3 and all(len(line.split()) == 6 for line in lines)
    if kind == "picture":
        assert [f.name for f in (out / "labels").iterdir()] == ["a.txt"] and len(crops) == len(lines)
        assert (cv2.imread(str(out / "a.png")) != drawn()).any()
    elif kind == "video":
        assert sorted(f.name for f in (out / "labels").iterdir()) == [f"street_{n}.txt" for n in (1, 2, 3)]
        assert count_frames(out / "street.mp4") == 3
    else:  # how often two cameras are looked at depends on their timing
        assert {f.name for f in (out / "labels").iterdir()} >= {"street_0.txt", "yard_0.txt"}
        assert count_frames(out / "street.mp4") == count_frames(out / "yard.mp4") >= 2


def test_a_video_file_is_a_stream(tmp_path: Path) -> None:
    streams = dataloaders.LoadStreams(str(write_video(tmp_path / "a.mp4", 3)), img_size=64, stride=32, auto=True)
    assert len(streams) == 1 and [streams.count for _ in streams] == list(range(streams.frame)) != []


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the files in tmp_path/www."""
    (tmp_path / "www").mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


ANNOTATION = """<annotation><size><width>100</width><height>50</height></size><object><name>square</name>
<difficult>0</difficult><bndbox><xmin>10</xmin><xmax>30</xmax><ymin>10</ymin><ymax>20</ymax></bndbox></object>
</annotation>"""


def test_conversion_script(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VOCtrainval", "VOCtest"):
        with zipfile.ZipFile(tmp_path / f"www/{name}.zip", "w") as z:
            z.writestr(f"VOCdevkit/VOC2007/Annotations/{name}.xml", ANNOTATION)
            z.writestr("../outside.txt", "no")
    monkeypatch.setattr(sys, "argv", ["convert_voc.py", str(tmp_path / "voc"), server])
    runpy.run_path(str(SCRIPTS / "convert_voc.py"), run_name="__main__")
    labels = {f.name: [float(v) for v in f.read_text().split()] for f in (tmp_path / "voc/labels").iterdir()}
    assert labels == {f"{n}.txt": pytest.approx([0, 0.2, 0.3, 0.2, 0.2]) for n in ("VOCtrainval", "VOCtest")}
    assert (tmp_path / "voc/images/VOCtest.zip").is_file() and not list(tmp_path.rglob("outside.txt"))


def test_download_deletes_the_zip_by_default(server: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "www/a.zip", "w") as z:
        z.writestr("a/b.txt", "yes")
    general.download(f"{server}a.zip", dir=tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["a", "b.txt"]
    with pytest.raises(UserError, match="404"):
        general.download([f"{server}a.zip", f"{server}missing.jpg"], dir=tmp_path / "out", threads=2)


@pytest.mark.parametrize(
    ("file", "suffix", "expected"),
    [("VOC.yaml", ".yaml", "data/VOC.yaml"), ("hyp.VOC.yaml", "", "data/hyps/hyp.VOC.yaml"),
     ("yolov5n", (".yaml",), "models/yolov5n.yaml"), ("data/images/shapes1.jpg", "", "data/images/shapes1.jpg")],
)  # fmt: skip
def test_check_file(file: str, suffix: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(general.check_file(file, suffix)) == ROOT / expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: general.check_file("nowhere.jpg"), "nowhere.jpg: no such file"),
        (lambda: general.check_yaml("a.json"), "a.json: is not a .yaml or .yml file"),
        (lambda: general.strip_optimizer("last.pt"), "last.pt: is left as it is"),
        (lambda: dataloaders.LoadScreenshots("screen 0"), "screenshots are not supported"),
        (lambda: general.check_img_size([640, 0]), r"image size \[640, 0\]"),
        (lambda: torch_utils.select_device("gpu"), "--device gpu"),
        (lambda: attempt_load(["a.pt", "b.pt"]), "2 files; ensembles"),
        (lambda: DetectMultiBackend("nowhere.pt"), "nowhere.pt: no such file"),
        (lambda: augmentations.random_perspective(drawn(), segments=[1]), "polygons"),
        (lambda: downloads.attempt_download("yolov5s.pt"), "yolov5s.pt: no such file; weights are not downloaded"),
        (lambda: downloads.safe_download("a.zip", "ftp://a/b.zip", error_msg="try later"), "only http.*; try later"),
    ],
)
def test_refusals_are_one_line(call, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        call()
    assert "\n" not in str(e.value)


def test_a_file_by_its_address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "www/a.jpg"), drawn())
    monkeypatch.chdir(tmp_path)
    assert general.check_file(f"{server}a.jpg?b=1", ".jpg") == "a.jpg" and (tmp_path / "a.jpg").is_file()


def test_weights_by_their_address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "www/a.pt").write_bytes(b"1234")
    monkeypatch.chdir(tmp_path)
    assert downloads.is_url(f"{server}a.pt") and not downloads.is_url(f"{server}b.pt")
    assert downloads.is_url(f"{server}b.pt", check=False) and not downloads.is_url("a.pt", check=False)
    assert downloads.attempt_download(f"{server}a.pt") == downloads.attempt_download("a.pt") == "a.pt"
    downloads.safe_download("b.pt", f"{server}none.pt", f"{server}a.pt")
    assert (tmp_path / "b.pt").read_bytes() == b"1234"
    with pytest.raises(UserError, match="is smaller than 5 bytes"):
        downloads.safe_download("c.pt", f"{server}a.pt", min_bytes=5)
    assert not (tmp_path / "c.pt").exists()


def test_anchors(yolo_set: Path) -> None:
    _, dataset = dataloaders.create_dataloader(yolo_set.parent / "images/train", 128, 4, 32, workers=0)
    anchors = autoanchor.kmean_anchors(str(yolo_set), 3, 128, gen=20, verbose=False)
    assert np.array_equal(anchors, autoanchor.kmean_anchors(dataset, 3, 128, gen=20))
    assert anchors.shape == (3, 2) and (anchors > 20).all() and (anchors < 44).all()  # squares of 24 to 40 px
    model = DetectionModel("yolov5_shufflenet.yaml", nc=2)
    head, before = model.model[-1], model.model[-1].anchors.clone()
    autoanchor.check_anchor_order(head)
    assert torch.equal(head.anchors, before)
    head.anchors.copy_((before * torch.tensor([1.0, 4, 16]).reshape(3, 1, 1)).flip(0))  # in the wrong order
    autoanchor.check_anchor_order(head)
    assert torch.equal(head.anchors[0], before[0])
    head.anchors *= 100
    autoanchor.check_anchors(dataset, model, 4.0, 128)
    assert (head.anchors * head.stride.reshape(-1, 1, 1)).max() < 60


def test_increment_path_makes_nothing_unless_asked(tmp_path: Path) -> None:
    assert general.increment_path(tmp_path / "exp") == tmp_path / "exp" and not (tmp_path / "exp").exists()
    assert general.increment_path(tmp_path / "exp", mkdir=True).is_dir()
    assert general.increment_path(tmp_path / "exp").name == "exp2"
    assert general.increment_path(tmp_path / "exp", sep="-", mkdir=True) == tmp_path / "exp-2"
    assert (tmp_path / "exp-2").is_dir() and general.increment_path(tmp_path / "exp", exist_ok=True).name == "exp"
    (tmp_path / "a.v1.txt").touch()
    assert general.increment_path(tmp_path / "a.v1.txt").name == "a.v12.txt"


@pytest.mark.parametrize(
    ("imgsz", "options", "expected", "warned"),
    [
        (640, {}, 640, False),
        (600, {"s": 64}, 640, True),
        ([100, 320], {"s": torch.tensor(32.0)}, [128, 320], True),
        ((64, 64), {"s": 32}, [64, 64], False),
        (64, {"floor": 96}, 96, True),
    ],
)
def test_check_img_size(imgsz, options: dict, expected, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        assert general.check_img_size(imgsz, **options) == expected
    assert bool(caplog.records) == warned


def test_shapes_may_name_channels() -> None:
    det = torch.tensor([[32.0, 48, 64, 80, 0.9, 1]])
    det[:, :4] = general.scale_coords(torch.Size((128, 128)), det[:, :4], (64, 128, 3)).round()
    assert det[0, :4].tolist() == [32, 16, 64, 48]
    assert general.clip_coords(torch.tensor([[-5.0, 5, 500, 500]]), (64, 128, 3)).tolist() == [[0, 5, 128, 64]]


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "CPU"])
def test_select_device(device) -> None:
    assert torch_utils.select_device(device, batch_size=1) == torch.device("cpu")
    assert torch_utils.select_device(None) == torch_utils.select_device("")


@pytest.mark.skipif(torch.cuda.is_available(), reason="device 0 is there")
def test_a_device_by_its_number() -> None:
    with pytest.raises(UserError, match="--device 0: torch .* sees 0 CUDA devices"):
        torch_utils.select_device(0)


def test_decorator_and_clocks() -> None:
    @torch_utils.smart_inference_mode()
    def inside() -> bool:
        return torch.is_inference_mode_enabled()

    assert inside() and not torch.is_inference_mode_enabled()
    timer = general.Profile(t=1.0)
    start = torch_utils.time_sync()
    for _ in range(2):
        with timer:
            torch.ones(1)
    assert 0 < timer.dt < timer.t - 1 <= torch_utils.time_sync() - start + 0.1


def test_seeds_decide() -> None:
    general.init_seeds(3, deterministic=True)
    first = torch.rand(2), np.random.rand()
    torch.use_deterministic_algorithms(False)
    general.init_seeds(3)
    assert torch.equal(torch.rand(2), first[0]) and np.random.rand() == first[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("red", "text"), "\033[31mtext\033[0m"),
        (("text",), "\033[34m\033[1mtext\033[0m"),
        (("bright_red", "bold", Path("a")), "\033[91m\033[1ma\033[0m"),
    ],
)
def test_colours_of_text(words: tuple, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert general.colorstr(*words) == str(words[-1])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert general.colorstr(*words) == expected


@pytest.mark.parametrize(
    ("requirements", "missing"),
    [
        (["torch>=1.7", "opencv-python"], ""),
        ("no-such-package==1  # comment", "no-such-package"),
        (["thop", "no-such-package"], "no-such-package"),
        (["git+https://example.com/x.git", "pywin32; sys_platform == 'win32'", "-r other.txt", ""], ""),
        (ROOT / "requirements.txt", ""),
    ],
)
def test_requirements_are_named_not_installed(
    requirements, missing: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(os, "system", None)
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        assert general.check_requirements(requirements, exclude=("thop",), install=True) == (not missing)
    assert [f"missing: {missing};" in r.message for r in caplog.records] == [True] * bool(missing)


def test_messages(caplog: pytest.LogCaptureFixture, weights: Path) -> None:
    with caplog.at_level(logging.INFO, logger="yolov5"):
        general.print_args({"a": 1, "b": "c"})
        torch_utils.model_info(attempt_load(weights), verbose=False, imgsz=64)
    assert caplog.messages[0].endswith(": a=1, b=c") and len(caplog.records) == 2
    parameters = sum(p.numel() for p in attempt_load(weights).parameters())
    assert f"{parameters:,} parameters" in caplog.messages[1] and "GFLOPs at 64x64" in caplog.messages[1]


def test_logging_can_be_turned_down() -> None:
    level = general.LOGGER.level
    try:
        general.set_logging(verbose=False)
        assert not general.LOGGER.isEnabledFor(logging.WARNING) and general.LOGGER.isEnabledFor(logging.ERROR)
        general.set_logging("yolov5")
        assert general.LOGGER.isEnabledFor(logging.INFO)
    finally:
        general.LOGGER.setLevel(level)


def test_colours_of_classes() -> None:
    assert plots.colors(torch.tensor(1.0)) == plots.colors(21) == (0xFF, 0x9D, 0x97)
    assert plots.colors(1, True) == (0x97, 0x9D, 0xFF)


def test_annotator_takes_what_scripts_give() -> None:
    im = np.zeros((60, 80, 3), np.uint8)
    annotator = plots.Annotator(im, line_width=1, font="Arial.ttf", pil=False, example="人")
    annotator.box_label([torch.tensor(v) for v in (10.0, 30, 70, 55)], "a", color=(9, 9, 9), txt_color=(0, 200, 0))
    annotator.box_label((1, 2, 3, 4), None, (0, 0, 1))
    assert not im.any() and (annotator.result()[..., 1] > 100).any()


@pytest.mark.parametrize(("bgr", "first"), [(True, (10, 20, 30)), (False, (30, 20, 10))])
def test_save_one_box(bgr: bool, first: tuple, tmp_path: Path) -> None:
    im = np.full((50, 60, 3), (10, 20, 30), np.uint8)
    for _ in range(2):
        crop = plots.save_one_box(torch.tensor([10.0, 10, 40, 20]), im, tmp_path / "red/a.png", 1.0, 4, True, BGR=bgr)
    assert crop.shape == (33, 35, 3) and tuple(crop[0, 0]) == first  # 30 and 4 square, the top 2 rows cut off
    assert sorted(p.name for p in (tmp_path / "red").iterdir()) == ["a.jpg", "a2.jpg"]
    assert np.abs(cv2.imread(str(tmp_path / "red/a.jpg"))[9, 9].astype(int) - first).max() < 4
    plots.save_one_box([10, 10, 40, 20], im, tmp_path / "none.jpg", save=False)
    assert not (tmp_path / "none.jpg").exists()


def test_augmentations_change_in_place_and_follow_the_seed() -> None:
    results = []
    for _ in range(2):
        general.init_seeds(1)
        im = drawn()
        assert augmentations.augment_hsv(im, hgain=0.1, sgain=0.7, vgain=0.4) is None
        results.append((im, *augmentations.random_perspective(im, np.array([[1, 30, 20, 80, 70]]), border=(-16, -32))))
    (im, warped, labels), again = results
    assert (im != drawn()).any() and warped.shape == (64, 64, 3) and labels.shape[1] == 5
    assert all(np.array_equal(a, b) for a, b in zip(results[0], again, strict=True))


def test_data_loader(yolo_set: Path) -> None:
    data = general.check_dataset(yolo_set)
    assert (data["nc"], data["names"], data["test"]) == (2, {0: "red", 1: "blue"}, None)
    hyp = load_hyp("hyp.scratch-low.yaml")
    loader, dataset = dataloaders.create_dataloader(data["train"], 64, 5, 32, hyp=hyp, augment=True, workers=0,
                                                    shuffle=True)  # fmt: skip
    assert len(dataset) == 12 and len(loader) == 3 and loader.batch_size is None and loader.num_workers == 0
    first, second = ([batch for batch in loader] for _ in range(2))
    images, targets, paths, _ = first[0]
    assert images.shape == (5, 3, 64, 64) and images.dtype == torch.uint8 and targets.shape[1] == 6 and len(paths) == 5
    assert [b[2] for b in first] != [b[2] for b in second]  # each pass is an epoch of its own
    with pytest.raises(UserError, match="image_weights"):
        dataloaders.create_dataloader(data["train"], 64, 4, 32, image_weights=True)


def test_backend_agrees_with_the_runtime(weights: Path) -> None:
    model = DetectMultiBackend([weights], device=torch.device("cpu")).eval()
    assert (model.stride, model.names, model.pt, model.fp16) == (32, {0: "red", 1: "blue"}, True, False)
    assert not (model.jit or model.onnx or model.engine) and model.device == torch.device("cpu")
    model.warmup((1, 3, 64, 64))
    x = torch.rand(2, 3, 64, 96)
    out = model(x, augment=False, visualize=False)
    expected = load_runtime(weights, torch.device("cpu")).predict(x)
    assert isinstance(out, list) and len(out) == 1
    torch.testing.assert_close(out[0], expected, rtol=1e-4, atol=1e-3)  # the runtime's convolutions are others
    out[0][..., :4] += 1  # as some scripts do
    assert torch.equal(model.half().model(x.half())[0].float(), model(x)[0].float())
    with pytest.raises(UserError, match="visualize"):
        model(x, visualize=Path("features"))


def test_multi_backend_of_an_exported_model(weights: Path) -> None:
    (file,) = export.run(weights=str(weights), include="torchscript", imgsz=[64, 96])
    model = DetectMultiBackend(file, data="coco128.yaml", fp16=True)
    assert (model.stride, model.names, model.fp16) == (32, {0: "red", 1: "blue"}, False)
    assert model.jit and not (model.pt or model.onnx or model.xml) and model.model is None
    model.warmup((1, 3, 640, 640))  # of the size it has
    x = torch.rand(2, 3, 64, 96)
    out = model(x)[0]
    torch.testing.assert_close(out, DetectMultiBackend(weights)(x)[0], rtol=1e-4, atol=1e-3)
    out[..., :4] += 1
    with pytest.raises(UserError, match="exported for 64x96 px and got 64x64"):
        model(x[..., :64])
    with pytest.raises(UserError, match="--augment needs a checkpoint"):
        model(x, augment=True)


@pytest.mark.parametrize("options", [{"map_location": "cpu"}, {"device": torch.device("cpu"), "fuse": False}])
def test_attempt_load(weights: Path, options: dict) -> None:
    model = attempt_load([str(weights)], **options)
    norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert norms == (not options.get("fuse", True)) and not model.training
    assert int(model.stride.max()) == 32 and model.names[1] == "blue"
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        out = model(x, augment=False)[0]
    assert next(model.parameters()).dtype == torch.float32
    assert torch.allclose(out, DetectMultiBackend(weights)(x)[0], atol=1e-2)
