"""The API for code: every kind of picture, what the results hold and write, wrong input."""

from __future__ import annotations

import doctest
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

import detect
import hubconf
from models.inference import detections, hub
from models.inference.hub import AutoShape, create, load_custom
from models.inference.runtime import Runtime, load_runtime
from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from utils.data.images import read_image
from utils.errors import UserError

SIZE, CONF, MOST = 96, 0.001, 5
BGR = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)  # no two rows alike, so that every mistake shows
RGB = np.ascontiguousarray(BGR[..., ::-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """w.pt: an untrained network whose scores differ from place to place, trained at 96 px; a.png: RGB."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = DetectionModel("yolov5_shufflenet.yaml", nc=2)
    with torch.no_grad():
        for conv in model.model[-1].m:
            conv.weight *= 20
    model.names = {0: "hat", 1: "cat/dog"}
    save_checkpoint(folder / "w.pt", weights_content(model.eval(), SIZE))
    cv2.imwrite(str(folder / "a.png"), BGR)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> AutoShape:
    return load_custom(folder / "w.pt", verbose=False, device="cpu")


@pytest.fixture
def model(loaded: AutoShape) -> AutoShape:
    """With YOLOv5's settings, but for thresholds at which an untrained network finds something."""
    for name in ("agnostic", "multi_label", "classes", "iou"):
        setattr(loaded, name, getattr(AutoShape, name))
    loaded.conf, loaded.max_det = CONF, MOST
    return loaded.eval()


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What detect.py finds in a.png: (m, 6) class, corners in whole pixels, confidence."""
    out = detect.run(weights=str(folder / "w.pt"), source=str(folder / "a.png"), conf_thres=CONF, max_det=MOST,
                     save_txt=True, save_conf=True, nosave=True, device="cpu", amp="off",
                     project=str(tmp_path_factory.mktemp("detect")))  # fmt: skip
    rows = np.loadtxt(out / "labels" / "a.txt", ndmin=2)
    half = rows[:, 3:5] / 2
    rows[:, 1:5] = np.concatenate((rows[:, 1:3] - half, rows[:, 1:3] + half), 1) * (90, 60, 90, 60)
    return rows


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a server of the folder's files."""
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def rgba() -> np.ndarray:
    return np.dstack((RGB, np.random.default_rng(1).integers(0, 256, RGB.shape[:2], np.uint8)))


KINDS: dict[str, tuple[Callable[[Path, str], object], list[str]]] = {
    "str": (lambda folder, _: str(folder / "a.png"), ["a.jpg"]),
    "Path": (lambda folder, _: folder / "a.png", ["a.jpg"]),
    "address": (lambda _, address: f"{address}/a.png?size=big", ["a.jpg"]),
    "PIL file": (lambda folder, _: Image.open(folder / "a.png"), ["a.jpg"]),
    "PIL": (lambda *_: Image.fromarray(RGB), ["image0.jpg"]),
    "PIL with alpha": (lambda *_: Image.fromarray(rgba()), ["image0.jpg"]),
    "array": (lambda *_: RGB, ["image0.jpg"]),
    "array that is a view": (lambda *_: BGR[..., ::-1], ["image0.jpg"]),
    "array, channels first": (lambda *_: RGB.transpose(2, 0, 1), ["image0.jpg"]),
    "array with alpha": (lambda *_: rgba(), ["image0.jpg"]),
    "list": (lambda folder, _: [folder / "a.png", RGB, str(folder / "a.png")], ["a.jpg", "image1.jpg", "a_2.jpg"]),
    "tuple": (lambda *_: (Image.fromarray(RGB), RGB), ["image0.jpg", "image1.jpg"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_the_boxes_of_detect_py(
    kind: str, model: AutoShape, expected: np.ndarray, folder: Path, address: str
) -> None:
    make, files = KINDS[kind]
    results = model(make(folder, address))
    assert results.files == files and len(expected) == MOST
    for found, im in zip(results.xyxy, results.ims, strict=True):
        np.testing.assert_array_equal(im, RGB)
        np.testing.assert_allclose(found[:, :4].round(), expected[:, 1:5], atol=1e-3)
        np.testing.assert_allclose(found[:, 4], expected[:, 5], rtol=1e-4)
        np.testing.assert_array_equal(found[:, 5], expected[:, 0])


def test_grey_pictures(model: AutoShape) -> None:
    grey = RGB[..., 0]
    same = model([grey, grey[..., None], Image.fromarray(grey), np.dstack([grey] * 3)])
    assert all(torch.equal(found, same.xyxy[3]) for found in same.xyxy) and len(same.xyxy[3])


def test_pictures_are_turned_as_their_exif_data_say(model: AutoShape, tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    by_path, by_pil = model([tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")]).ims
    assert by_path.shape == by_pil.shape == read_image(tmp_path / "turned.jpg").shape == (90, 60, 3)
    assert np.abs(by_path.astype(int) - by_pil).mean() < 3


def test_a_batch_has_one_shape_and_boxes_stay_with_their_picture(model: AutoShape) -> None:
    model.max_det = 300
    sizes = [(60, 90), (96, 40), (30, 30)]
    results = model([np.full((*size, 3), 200, np.uint8) for size in sizes], size=64)
    assert results.s == (3, 3, 64, 64) and results.n == len(results) == 3
    for found, normalised, (h, w) in zip(results.xyxy, results.xyxyn, sizes, strict=True):
        assert len(found) and (found[:, [0, 2]] <= w).all() and (found[:, [1, 3]] <= h).all() and (found >= 0).all()
        assert found[:, 2].max() > 0.9 * w and found[:, 3].max() > 0.9 * h
        torch.testing.assert_close(normalised[:, :4] * torch.tensor([w, h, w, h]), found[:, :4])


@pytest.mark.parametrize(
    ("size", "shape"),
    [(None, (64, 96)), (np.int64(96), (64, 96)), (100, (96, 128)), (64, (64, 64)), ((64, 128), (64, 96))],
)
def test_size(model: AutoShape, size: int | tuple[int, int] | None, shape: tuple[int, int]) -> None:
    assert model(RGB, size=size).s == (1, 3, *shape)


def test_size_without_a_known_training_size() -> None:
    assert AutoShape(DetectionModel("yolov5_shufflenet.yaml", nc=2)).imgsz == 640


def test_settings_reach_nms(model: AutoShape) -> None:
    model.max_det = 1000
    both = model(RGB).xyxy[0]
    assert set(both[:, 5].tolist()) == {0, 1}
    model.classes = [1]
    assert set(model(RGB).xyxy[0][:, 5].tolist()) == {1}
    model.classes, model.conf = None, float(both[2, 4])
    assert len(model(RGB).xyxy[0]) == 2
    model.conf, model.iou = CONF, 0.0
    few = len(model(RGB).xyxy[0])
    model.agnostic = True
    assert len(model(RGB).xyxy[0]) < few < len(both)
    model.agnostic, model.iou = False, 1.0
    one = len(model(RGB).xyxy[0])
    model.multi_label = True
    assert len(model(RGB).xyxy[0]) > one


def test_a_tensor_goes_straight_through(model: AutoShape) -> None:
    x = torch.rand(2, 3, 64, 96)
    given, (decoded, raw) = model(x), model.model(x)
    assert torch.equal(given[0], decoded) and len(given[1]) == len(raw) == 3
    assert decoded.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 7)
    x = (x * 255).to(torch.uint8)
    torch.testing.assert_close(model(x)[0], model(x / 255)[0])
    assert len(model(x, augment=True)[0][0]) > len(decoded[0])


def test_it_is_a_module(folder: Path) -> None:
    model = load_custom(folder / "w.pt", verbose=False, device="cpu").to(torch.float64)
    assert model(torch.rand(1, 3, 64, 64))[1][0].dtype == torch.float64
    assert model.half()(torch.rand(1, 3, 64, 64))[1][0].dtype == torch.float16
    assert sum(p.numel() for p in model.parameters()) > 500_000
    assert not any(m.training for m in model.modules())


def test_a_runtime_in_place_of_a_network(model: AutoShape, folder: Path) -> None:
    runtime: Runtime = load_runtime(folder / "w.pt", torch.device("cpu"))
    other = AutoShape(runtime)
    other.conf, other.max_det = CONF, MOST
    assert (other.names, other.stride, other.imgsz) == (model.names, 32, SIZE)
    torch.testing.assert_close(other(RGB).xyxy[0], model(RGB).xyxy[0])
    assert other(torch.zeros(1, 3, 64, 64)).shape == (1, 252, 7)


def test_a_network_in_a_wrapper(model: AutoShape) -> None:
    class Backend(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.names, self.stride = model.model, model.names, model.stride

        def forward(self, x: torch.Tensor, augment: bool = False) -> list[torch.Tensor]:
            return [self.model(x, augment)[0]]

    other = AutoShape(Backend(), imgsz=SIZE)
    other.conf, other.max_det = CONF, MOST
    assert torch.equal(other(RGB, profile=True).xyxy[0], model(RGB).xyxy[0])


def test_results(model: AutoShape) -> None:
    results = model([RGB, RGB[:40]])
    assert [results.names[k] for k in (0, 1)] == ["hat", "cat/dog"] and results.pred is results.xyxy
    for form in ("xyxy", "xywh", "xyxyn", "xywhn"):
        assert [x.shape for x in getattr(results, form)] == [(MOST, 6)] * 2, form
        assert all(torch.equal(x[:, 4:], p[:, 4:]) for x, p in zip(getattr(results, form), results.pred, strict=True))
    x1, y1, x2, y2 = results.xyxy[1][0, :4].tolist()
    assert results.xywh[1][0, :4].tolist() == pytest.approx([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    assert results.xywhn[1][0, :4].tolist() == pytest.approx(
        [(x1 + x2) / 180, (y1 + y2) / 80, (x2 - x1) / 90, (y2 - y1) / 40]
    )
    assert len(results.t) == 3 and all(t > 0 for t in results.t)
    results.xyxy[0][0, 0] += 1  # can be changed in place


def test_one_by_one(model: AutoShape) -> None:
    results = model([RGB, RGB[:40]])
    results.render()
    singles = results.tolist()
    assert [len(r) for r in singles] == [1, 1] and [r.files for r in results] == [["image0.jpg"], ["image1.jpg"]]
    assert torch.equal(results[-1].xywhn[0], singles[1].xywhn[0]) and results[-1].s == results.s
    np.testing.assert_array_equal(singles[1].ims[0], RGB[:40])
    assert results[1:].files == ["image1.jpg"] and results[::-1].files == ["image1.jpg", "image0.jpg"]
    with pytest.raises(IndexError):
        results[2]


def test_the_callers_array_can_be_used_again(model: AutoShape) -> None:
    frame = RGB.copy()
    results = model(frame)
    frame[:] = 0
    np.testing.assert_array_equal(results.ims[0], RGB)


def test_text(model: AutoShape, capsys: pytest.CaptureFixture) -> None:
    model.classes = [1]
    results = model([RGB, RGB[:40]])
    results.print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["image 1/2: 60x90 5 cat/dogs", "image 2/2: 40x90 5 cat/dogs"]
    assert lines[2].startswith("Speed: ") and lines[2].endswith("NMS per image at shape (2, 3, 64, 96)")
    assert str(results) == repr(results) == "\n".join(lines)
    model.conf = 1.0
    assert "60x90 (no detections)" in str(model(RGB))


def test_pandas(model: AutoShape) -> None:
    results = model([RGB, RGB[:40]])
    tables = results.pandas()
    for form, box in (("xy", ["xmin", "ymin", "xmax", "ymax"]), ("xywh", ["xcenter", "ycenter", "width", "height"])):
        for suffix in ("", "n"):
            name = (form if form == "xywh" else "xyxy") + suffix
            for table, found in zip(getattr(tables, name), getattr(results, name), strict=True):
                assert list(table.columns) == [*box, "confidence", "class", "name"]
                np.testing.assert_allclose(table.iloc[:, :6].to_numpy(float), found.numpy())
                assert table["name"].tolist() == [results.names[int(c)] for c in found[:, 5]]
                assert table["class"].dtype == int
    model.conf = 1.0
    empty = model(RGB).pandas().xyxy[0]
    assert len(empty) == 0 and len(empty.columns) == 7 and empty["class"].dtype == int


def test_pandas_is_only_asked_for_when_needed(model: AutoShape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    results = model(RGB)
    with pytest.raises(UserError, match="pip install pandas"):
        results.pandas()


def test_render(model: AutoShape) -> None:
    given = RGB.copy()
    results = model(given)
    bare, labelled = results.render(labels=False)[0], results.render()[0]
    assert results.ims[0] is labelled and labelled.shape == RGB.shape and labelled.dtype == np.uint8
    np.testing.assert_array_equal(given, RGB)
    changed = [(im != RGB).any(2).sum() for im in (bare, labelled)]
    assert 0 < changed[0] < changed[1]
    x1, y1 = (round(v) for v in results.xyxy[0][0, :2].tolist())
    colour = detections.color_of(int(results.xyxy[0][0, 5]))[::-1]
    assert (bare == colour).all(2).any() and x1 >= 0 and y1 >= 0


def test_save(model: AutoShape, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = model([folder / "a.png", RGB, folder / "a.png"])
    assert results.save() == Path("runs/detect/exp") and results.save(labels=False) == Path("runs/detect/exp2")
    assert results.save(save_dir="runs/detect/exp", exist_ok=True) == Path("runs/detect/exp")
    assert sorted(p.name for p in Path("runs/detect/exp").iterdir()) == ["a.jpg", "a_2.jpg", "image1.jpg"]
    written = read_image("runs/detect/exp/a.jpg")[..., ::-1].astype(int)
    assert np.abs(written - results.render()[0]).mean() < np.abs(written - RGB).mean()
    Path("file").touch()
    with pytest.raises(UserError, match="file is a file"):
        results.save(save_dir="file", exist_ok=True)


def test_crop(model: AutoShape, tmp_path: Path) -> None:
    results = model([RGB, RGB[:40]])
    results.render()
    crops = results.crop(save_dir=tmp_path / "out")
    assert len(crops) == 2 * MOST and len(list((tmp_path / "out/crops").glob("*/image?-?.jpg"))) == 2 * MOST
    assert {p.name for p in (tmp_path / "out/crops").iterdir()} <= {"hat", "cat_dog"}
    for crop, row in zip(crops, torch.cat(results.xyxy), strict=True):
        assert torch.equal(torch.stack([*crop["box"], crop["conf"], crop["cls"]]), row)
        assert crop["label"] == f"{results.names[int(crop['cls'])]} {float(crop['conf']):.2f}"
    x1, y1 = int(max(crops[0]["box"][0] - 8, 0)), int(max(crops[0]["box"][1] - 8, 0))
    cut = crops[0]["im"]
    assert any((cut == RGB[y : y + len(cut), x : x + cut.shape[1]]).all() for y in range(y1 + 9) for x in range(x1 + 9)
               if y + len(cut) <= 60 and x + cut.shape[1] <= 90)  # fmt: skip
    assert len(results.crop(save=False, save_dir=tmp_path / "none")) == 2 * MOST and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("files", "written"),
    [
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        (["A.jpg", "a.jpg"], ["A.jpg", "a_2.jpg"]),
        (["a.jpg", "a.png"], ["a.jpg", "a_2.png"]),
        (["a.jpg", "a.jpg", "a_2.jpg"], ["a.jpg", "a_2.jpg", "a_3.jpg"]),
    ],
)
def test_saved_files_do_not_overwrite_each_other(files: list[str], written: list[str], tmp_path: Path) -> None:
    found = [torch.tensor([[10.0, 10, 40, 40, 0.5, 0]])] * len(files)
    results = detections.Detections([RGB] * len(files), found, files, names={0: "hat"})
    assert sorted(p.name for p in results.save(save_dir=tmp_path / "s").iterdir()) == sorted(written)
    results.crop(save_dir=tmp_path / "c")
    crops = sorted(p.name for p in (tmp_path / "c/crops/hat").iterdir())
    assert crops == sorted(f"{Path(name).stem}-1.jpg" for name in written)


def test_show_without_a_display(model: AutoShape, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    model(RGB).show()
    assert "no display is available" in capsys.readouterr().out


@pytest.mark.parametrize("works", [True, False])
def test_show_in_the_viewer(model: AutoShape, monkeypatch: pytest.MonkeyPatch, works: bool, capsys) -> None:
    shown: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(detections.ImageShow, "show", lambda image, title: shown.append(title) or works)
    model([RGB, RGB]).show()
    assert shown == (["image0.jpg", "image1.jpg"] if works else ["image0.jpg"])
    assert ("no image viewer was found" in capsys.readouterr().out) != works


def test_show_in_a_notebook(model: AutoShape, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    model([RGB, RGB]).show()
    assert [im.size for im in shown] == [(90, 60)] * 2


def test_profile_prints_every_layer(model: AutoShape, capsys: pytest.CaptureFixture) -> None:
    model(RGB, profile=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(model.model.model) and lines[-1].split()[:2] == ["21", "Detect"]


@pytest.mark.parametrize(
    ("ims", "message"),
    [
        ([], "list of images is empty"),
        (None, "image 0 is of type NoneType: give a path"),
        ([RGB, 3], "image 1 is of type int"),
        ([torch.zeros(3, 64, 64)], "image 0 is of type Tensor"),
        ("nowhere.png", "nowhere.png: No such file"),
        ("", r"\.: is a folder"),
        (ROOT / "data", "data: is a folder; give its images as a list"),
        (ROOT / "train.py", "train.py: the file is not an image"),
        ("a\0b.png", "embedded null"),
        ("x" * 10_000, "File name too long"),
        ("http://127.0.0.1:1/a.png", "cannot download http://127.0.0.1:1/a.png"),
        (RGB / 255, "image 0: an array of float64; it must be uint8"),
        (RGB[None], r"image 0: an array of shape \(1, 60, 90, 3\)"),
        (RGB[..., :2], r"an array of shape \(60, 90, 2\)"),
        (RGB[:0], r"an array of shape \(0, 90, 3\)"),
        (Image.fromarray(RGB[..., 0].astype(np.uint16)), "mode I;16; convert it to 8 bits"),
        (torch.zeros(3, 64, 64), r"a tensor of shape \(3, 64, 64\): it must be \(b, 3, h, w\)"),
        (torch.zeros(1, 3, 64, 70), "multiples of 32"),
    ],
)
def test_wrong_pictures_are_one_line(
    model: AutoShape, monkeypatch: pytest.MonkeyPatch, ims: object, message: str
) -> None:
    monkeypatch.setattr(hub, "download", partial(hub.download, attempts=1))
    with pytest.raises(UserError, match=message) as e:
        model(ims)
    assert "\n" not in str(e.value)


def test_a_cut_off_pil_file(model: AutoShape, folder: Path, tmp_path: Path) -> None:
    content = (folder / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(UserError, match="image 0: this PIL image cannot"):
        model(image)


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"conf": 1.5}, 64, r"\.conf 1.5 and \.iou"),
        ({"conf": "a"}, 64, r"\.conf 'a' and \.iou"),
        ({"classes": [[0]]}, 64, r"\.classes \[\[0\]\]"),
        ({"max_det": 0}, 64, r"\.max_det 0"),
        ({"classes": [2]}, 64, r"\.classes \[2\]: give a list of class indices, or None; this model has 0 to 1"),
        ({"classes": 1}, 64, r"\.classes 1: give a list"),
        ({"training": True}, 64, "training mode"),
        ({}, 0, "size=0: give the longer side"),
        ({}, (1, 2, 3), r"size=\(1, 2, 3\)"),
        ({}, "big", "size='big'"),
    ],
)
def test_wrong_settings_are_one_line(model: AutoShape, settings: dict, size: object, message: str) -> None:
    for key, value in settings.items():
        setattr(model, key, value)
    with pytest.raises(UserError, match=message) as e:
        model(RGB, size=size)
    assert "\n" not in str(e.value)


def test_custom(folder: Path, capsys: pytest.CaptureFixture) -> None:
    model = load_custom(folder / "w.pt", device=torch.device("cpu"))
    assert capsys.readouterr().out.startswith(f"{folder / 'w.pt'}: 2 classes, trained at 96 px, Python ")
    bare = load_custom(folder / "w.pt", autoshape=False, verbose=False, device="cpu")
    assert capsys.readouterr().out == ""
    assert isinstance(bare, DetectionModel) and not bare.training and all(p.requires_grad for p in bare.parameters())
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(bare(x)[0].detach(), model(x)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "names"), [(2, {0: "hat", 1: "cat/dog"}), (3, {0: "0", 1: "1", 2: "2"})]
)
def test_pretrained_takes_what_fits(folder: Path, classes: int, names: dict[int, str]) -> None:
    kinds = {"autoshape": False, "verbose": False, "device": "cpu"}
    given = load_custom(folder / "w.pt", **kinds)
    model = create("yolov5_shufflenet", folder / "w.pt", classes=classes, **kinds)
    assert model.names == names and torch.equal(model.model[0].conv1[0].weight, given.model[0].conv1[0].weight)
    assert torch.equal(model.model[-1].m[0].weight, given.model[-1].m[0].weight) == (classes == 2)


def test_pretrained_brings_its_anchors(folder: Path, tmp_path: Path) -> None:
    given = load_custom(folder / "w.pt", autoshape=False, verbose=False, device="cpu")
    given.model[-1].anchors *= 1.5
    save_checkpoint(tmp_path / "b.pt", weights_content(given, SIZE))
    model = create("yolov5_shufflenet", str(tmp_path / "b.pt"), classes=2, verbose=False, device="cpu")
    torch.testing.assert_close(model.model.model[-1].anchors, given.model[-1].anchors, rtol=1e-3, atol=1e-3)
    assert model.imgsz == SIZE


def test_pretrained_of_other_strides_leaves_the_anchors(folder: Path) -> None:
    model = create("yolov5_stem_shufflenet", folder / "w.pt", classes=2, autoshape=False, verbose=False, device="cpu")
    assert torch.equal(model.model[-1].anchors, DetectionModel("yolov5_stem_shufflenet.yaml").model[-1].anchors)


def test_quiet_is_quiet_and_only_then(folder: Path, capsys: pytest.CaptureFixture) -> None:
    level = hub.LOGGER.level
    create("yolov5_shufflenet", folder / "w.pt", classes=2, verbose=False, device="cpu")
    assert capsys.readouterr().out == "" and hub.LOGGER.level == level == logging.INFO
    create("yolov5_shufflenet", folder / "w.pt", classes=2, device="cpu")
    assert "tensors loaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_custom("nowhere.pt"), "nowhere.pt: no such file"),
        (lambda: create("yolov5n", True), r"yolov5n\(pretrained=True\): weights are not downloaded"),
        (lambda: create("yolov5n", "nowhere.pt"), "nowhere.pt: no such file"),
        (lambda: create("yolov5_shufflenet", classes=0), r"shufflenet\(classes=0\): classes must be a whole number"),
        (lambda: create("yolov5_shufflenet", channels=1), "takes 1 channels .* autoshape=False"),
        (lambda: create("yolov5_shufflenet", device="tpu"), "tpu: give 'cpu'"),
    ],
)
def test_wrong_arguments_are_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        call()
    assert "\n" not in str(e.value)


def test_other_channels_without_autoshape() -> None:
    model = create("yolov5_shufflenet", channels=1, classes=2, autoshape=False, verbose=False, device="cpu")
    assert model(torch.zeros(1, 1, 64, 64))[0].shape == (1, 252, 7)


@pytest.mark.parametrize("module", [hub, detections, hubconf])
def test_docstring_examples(module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    failures, examples = doctest.testmod(module)
    assert not failures and examples
