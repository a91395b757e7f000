"""val.py's flags, tasks and protocols, with a detector that finds the drawn squares by their colour."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import val
from utils.data.dataset import DetectionDataset
from utils.data.labels import label_path, load_labels
from utils.data.loader import create_loader
from utils.errors import UserError
from utils.evaluation.scoring import Settings
from utils.settings.options import ValOptions
from utils.system.console import LOGGER

PICTURES = {"confusion_matrix.png", "errors.jpg", "F1_curve.png", "P_curve.png", "PR_curve.png", "R_curve.png",
            "val_batch0_labels.jpg", "val_batch0_pred.jpg"}  # fmt: skip


class Squares:
    """In place of a `Runtime`: finds the reddest and the bluest rectangle of each image, and invents a faint one."""

    def __init__(self, weights: Path, device: torch.device, half: bool, amp: str = "off") -> None:
        self.weights, self.device, self.half, self.reason = weights, device, half, f"--amp {amp}"
        self.names, self.stride, self.imgsz = {0: "red", 1: "blue"}, 32, 128
        self.size, self.model = None, self
        self.calls: list[tuple[tuple[int, ...], bool]] = []

    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        self.calls.append((tuple(images.shape), augment))
        out = torch.zeros(len(images), 4, 7)
        for k, im in enumerate(images.int()):
            for cls, colour in ((0, im[0] - im[2]), (1, im[2] - im[0])):
                ys, xs = (colour > 100).nonzero(as_tuple=True)
                if len(ys):
                    x1, x2, y1, y2 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
                    out[k, cls, :5] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.9])
                    out[k, cls, 5 + cls] = 1
            out[k, 2, [0, 1, 2, 3, 4, 5]] = torch.tensor([70.0, 20, 30, 30, 0.1, 1])
        return out


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Squares]:
    """The runtimes that val.py loads; any name of a weights file will do."""
    runtimes: list[Squares] = []

    def load(weights: Path, device: torch.device, half: bool, amp: str) -> Squares:
        runtimes.append(Squares(weights, device, half))
        return runtimes[-1]

    monkeypatch.setattr(val, "load_runtime", load)
    return runtimes


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(LOGGER, level, lambda text, *_: lines.append(str(text)))
    return lines


@pytest.fixture
def flags(tmp_path: Path, yolo_set: Path) -> dict:
    """What every run here is given; results go to tmp_path/out."""
    return {"data": str(yolo_set), "weights": "w.pt", "project": str(tmp_path), "name": "out", "workers": 0,
            "device": "cpu", "batch_size": 4}  # fmt: skip


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def annotate(data: Path, size: tuple[int, int] = (96, 128)) -> None:
    """A COCO file beside the drawn val images in which every blue square is difficult; they lose their labels."""
    images, rows = [], []
    for k, image in enumerate(sorted((data.parent / "images/val").iterdir())):
        images.append({"id": 50 + k, "file_name": image.name, "height": size[0], "width": size[1]})
        lines = label_path(image).read_text().splitlines()
        label_path(image).write_text("".join(f"{line}\n" for line in lines if line.startswith("0")))
        for cls, cx, cy, w, h in (map(float, line.split()) for line in lines):
            w, h = w * size[1], h * size[0]
            box = [cx * size[1] - w / 2, cy * size[0] - h / 2, w, h]
            rows.append({"id": len(rows) + 1, "image_id": 50 + k, "category_id": int(cls), "bbox": box, "area": w * h,
                         "iscrowd": int(cls), "difficult": int(cls)})  # fmt: skip
    (data.parent / "annotations").mkdir()
    categories = [{"id": 0, "name": "red"}, {"id": 1, "name": "blue"}]
    content = {"images": images, "annotations": rows, "categories": categories}
    (data.parent / "annotations/instances_val.json").write_text(json.dumps(content))


def test_figures_and_pictures_of_a_detector_that_is_right(loaded, flags, printed, tmp_path: Path) -> None:
    results = val.run(**flags)
    assert results.summary == pytest.approx([1, 1, 0.995, 0.995], abs=0.02)
    assert (results.images, results.objects.tolist(), results.difficult) == (12, [12, 6], None)
    assert files(tmp_path / "out") == PICTURES | {f"val_batch{k}_{w}.jpg" for k in (1, 2) for w in ("labels", "pred")}
    text = "\n".join(printed)
    assert "AP50-95 by COCO's rule" in text and "protocol yolov5" in text and "12 images, 18 objects" in text
    assert "ms NMS" in text and str(tmp_path / "out") in text and " blue " in text
    assert val.run(**flags, noplots=True).summary == pytest.approx(results.summary)
    assert files(tmp_path / "out2") == set()


def test_batches_do_not_change_the_figures(loaded, flags) -> None:
    one, other = (val.run(**{**flags, "batch_size": b}, noplots=True) for b in (1, 12))
    np.testing.assert_array_equal(one.size_ap, other.size_ap)
    np.testing.assert_array_equal(one.ap, other.ap)


def test_labels_of_weights() -> None:
    named = {"a/x.pt": "x", "b/exp/weights/best.pt": "exp_best", "b/exp2/weights/best.pt": "exp2_best",
             "b/exp2/weights/best.onnx": "best_onnx"}  # fmt: skip
    assert val.labels_of(list(map(Path, named))) == list(named.values())
    again = ["b/exp/weights/best.pt", "c/exp/weights/best.pt"]
    assert val.labels_of(list(map(Path, again))) == ["exp_best", "exp_best_2"]


def test_interrupted_without_waiting_for_whole_batches(yolo_set: Path) -> None:
    index = load_labels([yolo_set.parent / "images/val"], 2, "val: ")
    dataset = DetectionDataset(index, 64, 12, rect=True, stride=32)
    (batch,) = create_loader(dataset, 12, 0, shuffle=False)
    batch = (batch[0].repeat(10, 1, 1, 1), *batch[1:])
    called: list[int] = []

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        called.append(len(images))
        time.sleep(0.05)
        return torch.zeros(len(images), 1, 7), None

    class Interrupted(list):
        def __iter__(self):
            yield from (batch, batch)
            raise KeyboardInterrupt

    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            val.collect(forward, Interrupted([0] * 4), {0: "a", 1: "b"}, torch.device("cpu"), Settings())
    finally:
        torch.set_num_threads(usual)
    assert len(called) <= 4 and set(called) <= {val.PIECE}


@pytest.mark.parametrize(("batches", "threads"), [(1, 2), (3, 2), (4, 2), (3, 4), (2, 1)])
def test_seconds_are_those_of_the_whole_machine(batches: int, threads: int, yolo_set: Path) -> None:
    """Batches looked at side by side take a part of it each, one that is left over the whole."""
    index = load_labels([yolo_set.parent / "images/val"], 2, "val: ")
    ((images, targets, paths, shapes),) = create_loader(
        DetectionDataset(index, 64, 12, rect=True, stride=32), 12, 0, shuffle=False
    )
    loader = [(images, targets, [f"{k}/{path}" for path in paths], shapes) for k in range(batches)]

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(0.1)
        return torch.zeros(len(images), 1, 7), None

    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        part = val.collect(forward, loader, {0: "a", 1: "b"}, torch.device("cpu"), Settings())
        wall = time.perf_counter() - start
    finally:
        torch.set_num_threads(usual)
    alone = batches % threads if threads > 1 else batches
    expected = 0.1 * 2 * ((batches - alone) / threads + alone)  # in two pieces each
    assert expected <= part.seconds[1] <= wall


def test_batches_looked_at_side_by_side_give_the_same(loaded, flags, tmp_path: Path) -> None:
    """The figures and every file but for times, whatever the number of threads."""
    usual, results = torch.get_num_threads(), {}
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            options = {"batch_size": 1, "save_txt": True, "save_conf": True, "save_json": True, "name": str(threads)}
            results[threads] = val.run(**{**flags, **options})
    finally:
        torch.set_num_threads(usual)
    np.testing.assert_array_equal(results[1].ap, results[3].ap)
    written = {name: (tmp_path / "1" / name).read_bytes() for name in files(tmp_path / "1")}
    assert len(written) > 20 and files(tmp_path / "3") == set(written)
    for name, content in written.items():
        assert (tmp_path / "3" / name).read_bytes() == content, name


@pytest.mark.parametrize("count", [1, 8, 9, 21])
def test_pieces_of_a_batch_are_put_together(count: int) -> None:
    looked_at: list[int] = []

    def forward(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        looked_at.append(len(x))
        return x * 2, [x[:, :1], x[:, 1:]]

    x = torch.arange(count * 3.0).reshape(count, 3)
    decoded, raw = val.in_pieces(forward, x, threading.Event())
    assert torch.equal(decoded, x * 2) and torch.equal(torch.cat(raw, 1), x)
    assert max(looked_at) <= 8 and sum(looked_at) == count
    assert val.in_pieces(lambda x: (x, None), x, threading.Event())[1] is None


@pytest.mark.parametrize("halves", [(slice(0, 1), slice(1, None)), (slice(0, None), slice(0, 0))])
def test_an_evaluation_shared_over_processes(loaded, flags, tmp_path: Path, halves, yolo_set: Path) -> None:
    """Two loaders over batches of one set; each process hands its part over once and gets both."""
    opt = ValOptions(**flags)
    split = val.load_split(val.load_data(str(yolo_set)), opt)
    dataset = val.DetectionDataset(split.index, 128, 4, rect=True, pad=0.5)
    batches = list(val.create_loader(dataset, 4, 0, shuffle=False))
    runtime, cpu = Squares(Path("w"), torch.device("cpu"), False), torch.device("cpu")

    def loss(raw: Tensor, targets: Tensor) -> tuple[None, Tensor]:
        return None, torch.tensor([float(len(targets)), 1.0, targets.sum().item()])

    def evaluate(part: list, folder: str, writes: bool = True, **more) -> val.Results:
        (tmp_path / folder).mkdir(exist_ok=True)
        settings = val.Settings(folder=tmp_path / folder, plots=True, save_json=True, writes=writes)
        return val.evaluate(lambda im: (runtime.predict(im), im), part, runtime.names, cpu, settings, loss, **more)

    whole, kept = evaluate(batches, "whole"), []
    evaluate(batches[halves[1]], "second", writes=False, gather=lambda part: kept.append(part) or [part])
    assert files(tmp_path / "second") == set()
    shared = evaluate(batches[halves[0]], "shared", gather=lambda part: [part, *kept])
    for name in ("p", "r", "ap", "objects", "size_ap", "losses", "images_per_class", "summary"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(whole, name), err_msg=name)
    assert shared.losses == pytest.approx(np.mean([loss(None, b[1])[1].numpy() for b in batches], 0))
    for name in ("predictions.json", "errors.jpg", "confusion_matrix.png"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(("protocol", "figure"), [("voc07", 1.0), ("voc12", 1.0), ("coco", 1.0), ("yolov5", 0.995)])
def test_protocols_with_difficult_objects(protocol, figure, loaded, flags, printed, yolo_set) -> None:
    if protocol == "coco":
        pytest.importorskip("faster_coco_eval")
    annotate(yolo_set)
    results = val.run(**flags, protocol=protocol, noplots=True, verbose=True)
    assert results.difficult == 6
    text = "\n".join(printed)
    assert f"protocol {protocol}" in text and "12 images, 12 objects" in text and "6 difficult ones" in text
    if protocol == "yolov5":
        assert results.score is None and results.summary[2] == pytest.approx(figure, abs=0.01)
        return
    assert results.score.ap[:, 0].tolist() == pytest.approx([figure], abs=0.01) and "known" not in text
    assert ("ARmedium" in text) == (protocol == "coco")


def test_voc_without_a_coco_file_warns_that_nothing_is_ignored(loaded, flags, printed) -> None:
    val.run(**flags, protocol="voc07", noplots=True)
    assert any("no difficult object is known in 12 of 12 images" in line for line in printed)


@pytest.mark.parametrize("damage", ["{", "size"])
def test_a_bad_coco_file(damage: str, loaded, flags, printed, yolo_set: Path) -> None:
    annotate(yolo_set, (200, 300) if damage == "size" else (96, 128))
    if damage == "{":
        (yolo_set.parent / "annotations/instances_val.json").write_text("{")
    with pytest.raises(UserError, match="instances_val.json" if damage == "{" else "is 128x96 px, .* gives 300x200"):
        val.run(**flags, protocol="voc07")
    assert val.run(**flags, noplots=True).difficult is None  # YOLOv5's figures do not need it
    assert any("voc2yolo.py" in line for line in printed)


def test_the_package_for_coco_is_asked_for_before_any_work(loaded, flags, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="pip install faster-coco-eval"):
        val.run(**flags, protocol="coco")
    assert not loaded and not (tmp_path / "out").exists()


def test_save_txt_conf_and_json(loaded, flags, tmp_path: Path, yolo_set: Path) -> None:
    annotate(yolo_set)
    val.run(**flags, save_txt=True, save_conf=True, save_json=True, noplots=True)
    assert files(tmp_path / "out") == {"predictions.json"} | {f"labels/{k:03d}.txt" for k in range(12)}
    lines = [line.split() for f in (tmp_path / "out/labels").iterdir() for line in f.read_text().splitlines()]
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(rows) == len(lines) == 30 and {len(line) for line in lines} == {6}
    assert {row["image_id"] for row in rows} == set(range(50, 62))
    val.run(**flags, save_txt=True, noplots=True, conf_thres=0.5)
    lines = [line.split() for f in (tmp_path / "out2/labels").iterdir() for line in f.read_text().splitlines()]
    assert len(lines) == 18 and {len(line) for line in lines} == {5}


def test_save_txt_of_equal_names_in_two_folders(loaded, flags, printed, tmp_path: Path, yolo_set: Path) -> None:
    """Each image has a file; where names are equal, the first path keeps its name."""
    root = yolo_set.parent
    for kind in ("images", "labels"):
        for file in sorted((root / kind / "val").iterdir())[:2]:
            (root / kind / "val/more").mkdir(exist_ok=True)
            file.rename(root / kind / "val/more" / f"003{file.suffix}" if "001" in file.name else file)
    val.run(**flags, save_txt=True, noplots=True)
    numbers = [k for k in range(12) if k != 1]
    assert files(tmp_path / "out") == {f"labels/{k:03d}.txt" for k in numbers} | {"labels/003_2.txt"}
    assert any("labels/*.txt: names already taken" in line and "more/003.png -> 003_2" in line for line in printed)


def test_save_hybrid_completes_the_labels(loaded, flags, printed, tmp_path: Path, yolo_set: Path) -> None:
    label = yolo_set.parent / "labels/val/000.txt"
    label.write_text("1 0.9 0.9 0.1 0.1\n")  # of something that the detector does not see
    val.run(**flags, save_hybrid=True, save_conf=True, conf_thres=0.5, noplots=True)
    rows = [line.split() for line in (tmp_path / "out/labels/000.txt").read_text().splitlines()]
    assert [(r[0], float(r[5])) for r in rows] == [("1", 1.0), ("0", pytest.approx(0.9))]
    assert [float(v) for v in rows[0][1:5]] == pytest.approx([0.9, 0.9, 0.1, 0.1], abs=1e-5)
    rows = [line.split() for line in (tmp_path / "out/labels/001.txt").read_text().splitlines()]
    assert sorted(r[0] for r in rows) == ["0", "1"] and {r[5] for r in rows} == {"1"}  # labels, found again or not
    assert any("metrics above are meaningless" in line for line in printed)


def test_task_speed_times_each_of_the_weights(loaded, flags, printed, tmp_path: Path) -> None:
    results = val.run(**{**flags, "weights": ["a.pt", "b.pt"]}, task="speed")
    assert len(results) == 2 and all(set(r.speed) == {"pre-process", "inference", "NMS"} for r in results)
    said = [line for line in printed if "ms NMS per image at 128 px" in line]
    assert [line[:6] for line in said] == ["a.pt: ", "b.pt: "]
    assert results[0].curves.r[0, 50] == 1 and len(loaded[0].calls) == 4  # a warm-up and three batches
    assert not (tmp_path / "out").exists()


def test_task_study_writes_rows_and_a_picture(loaded, flags, tmp_path: Path) -> None:
    runs = [tmp_path / f"{name}/weights/best.pt" for name in "xy"]
    results = val.run(**{**flags, "weights": [*map(str, runs), "last.pt"]}, task="study", imgsz=[64, 128])
    assert files(tmp_path / "out") == {"study.png", *(f"study_squares_{n}.txt" for n in ("x_best", "y_best", "last"))}
    rows = np.loadtxt(tmp_path / "out/study_squares_x_best.txt")
    assert rows.shape == (2, 8) and rows[:, 0].tolist() == [64, 128]
    np.testing.assert_allclose(rows[:, 1:5], [r.summary for r in results[:2]], rtol=1e-3)
    np.testing.assert_allclose(rows[:, 5:], [list(r.speed.values()) for r in results[:2]], rtol=1e-3)


def test_study_without_sizes_goes_through_yolov5s(loaded, flags, monkeypatch) -> None:
    sizes: list[int] = []
    real = val.evaluate_at
    monkeypatch.setattr(val, "evaluate_at", lambda size, *rest: sizes.append(size) or real(64, *rest))
    val.run(**flags, task="study")
    assert sizes == [256, 384, 512, 640, 768, 896, 1024, 1152, 1280, 1408, 1536]


def test_flags_that_reach_the_detector(loaded, flags) -> None:
    val.run(**{**flags, "batch_size": 3}, imgsz=[64], augment=True, half=True, noplots=True)
    assert loaded[0].half and [call[0][0] for call in loaded[0].calls] == [1, 3, 3, 3, 3]
    assert all(max(shape[2:]) == 96 and augment for shape, augment in loaded[0].calls[1:])  # 64 and half a stride


@pytest.mark.parametrize(
    ("changed", "detections"),
    [({}, 30), ({"conf_thres": 0.5}, 18), ({"max_det": 1}, 12), ({"task": "train"}, 30), ({"single_cls": True}, 30)],
)
def test_flags_that_change_the_detections(changed: dict, detections: int, loaded, flags, tmp_path: Path) -> None:
    val.run(**flags, **changed, save_json=True, noplots=True)
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(rows) == detections
    assert {r["category_id"] for r in rows} == ({0} if "single_cls" in changed or "max_det" in changed else {0, 1})


def test_iou_thres_and_exist_ok(loaded, flags, tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple] = []
    real = val.non_max_suppression
    monkeypatch.setattr(val, "non_max_suppression", lambda *a, **k: seen.append(a[1:3]) or real(*a, **k))
    val.run(**flags, iou_thres=0.3, conf_thres=0.2, noplots=True)
    val.run(**flags, exist_ok=True, noplots=True)
    assert set(seen) == {(0.2, 0.3), (0.001, 0.6)} and not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": ["a.pt", "b.pt"]}, "--weights: several files are for --task speed and --task study"),
        ({"imgsz": [64, 128]}, "--imgsz: val.py takes one size"),
        ({"imgsz": [64, 128], "task": "speed"}, "--imgsz: val.py takes one size"),
        ({"imgsz": 0}, "--imgsz 0"),
        ({"task": "vall"}, "--task vall.*did you mean 'val'"),
        ({"protocol": "voc7"}, "--protocol voc7.*did you mean 'voc07'"),
        ({"task": "speed", "save_hybrid": True}, "--save-(txt|hybrid) is of no use with --task speed"),
        ({"task": "study", "save_json": True}, "--save-json is of no use with --task study"),
        ({"task": "test"}, "there is no 'test:'"),
    ],
)
def test_wrong_flags_are_one_line(changed: dict, message: str, loaded, flags, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as e:
        val.run(**{**flags, **changed})
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_command_line_defaults_are_those_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["val.py"])
    assert ValOptions(**vars(val.parse_opt())) == ValOptions()
    monkeypatch.setattr(sys, "argv", "val.py --weights a.pt b.pt --imgsz 64 96 --task study --save-conf".split())
    opt = ValOptions(**vars(val.parse_opt()))
    assert (opt.files, opt.sizes, opt.save_conf) == ([Path("a.pt"), Path("b.pt")], [64, 96], True)


def test_a_long_list_of_classes_is_shown_if_asked(loaded, flags, printed, monkeypatch) -> None:
    names = {k: f"class{k}" for k in range(31)}
    monkeypatch.setattr(val, "names_of", lambda *_: names)
    monkeypatch.setattr(val, "load_checked", lambda w, *_: Squares(w, torch.device("cpu"), False))
    for verbose in (False, True):
        printed.clear()
        val.run(**flags, verbose=verbose, noplots=True)
        assert any("class1 " in line for line in printed) == verbose


def test_settings_of_train_py_still_do(loaded) -> None:
    """train.py makes settings without a folder and calls with a loss in sixth place."""
    settings = val.Settings(single_cls=True)
    results = val.evaluate(lambda im: (im, None), [], {0: "red"}, torch.device("cpu"), settings, None)
    assert results.images == 0 and results.losses == (0, 0, 0)
    assert val.results_table(results, {0: "red"}).splitlines()[1].split()[0] == "all"
