"""The arithmetic of the browser demo's page, run in Node and compared with Python's."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from my_tools.serving.files import FOLDER
from utils.boxes import scale_boxes
from utils.data.augment import letterbox
from utils.evaluation.nms import non_max_suppression

RUNNER = """
import { readFileSync } from 'node:fs';
import * as box from './letterbox.js';
import * as nms from './boxes.js';

const cases = JSON.parse(readFileSync('cases.json'));
const bytes = (text) => new Uint8ClampedArray(Buffer.from(text, 'base64'));
const floats = (text) => new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer);
const packed = (array) => Buffer.from(array.buffer).toString('base64');
const results = {
  letterbox: cases.letterbox.map(({ pixels, width, height, target, auto, stride, kind }) => {
    const place = box.plan(width, height, target, auto, stride);
    const table = box.byteTable(kind);
    const out = new table.constructor(3 * place.height * place.width);
    box.letterbox(bytes(pixels), width, height, place, table, out);
    return { place, data: packed(out) };
  }),
  suppress: cases.suppress.map(({ data, numbers, conf, iou, most }) => {
    const rows = floats(data);
    return packed(nms.suppress(rows, rows.length / numbers, numbers, conf, iou, most));
  }),
  move: cases.move.map(({ rows, place, width, height }) => packed(nms.toPicture(floats(rows), place, width, height))),
  graph: packed(nms.fromGraph(floats(cases.graph))),
  halves: cases.halves.map(box.fromHalf),
  round: [0.5, 1.5, 2.5, 2.4999, 7, -0.5, -1.5].map(box.roundHalfEven),
};
console.log(JSON.stringify(results));
"""


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def in_node(folder: Path, **cases: object) -> dict:
    """What the page's functions give; the test is skipped where there is no Node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    for name in ("letterbox.js", "boxes.js"):
        shutil.copy(FOLDER / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')  # browsers are told by the page, Node by this
    (folder / "run.js").write_text(RUNNER)
    every = {"letterbox": [], "suppress": [], "move": [], "graph": "", "halves": [], **cases}
    (folder / "cases.json").write_text(json.dumps(every))
    done = subprocess.run([node, "run.js"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def array_of(text: str, dtype: type = np.float32) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_pictures_become_the_input_that_opencv_makes_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases, expected = [], []
    for height, width, target, auto, stride, kind in (
        (97, 131, (64, 96), False, 32, "float32"), (97, 131, (64, 96), True, 32, "float32"),
        (120, 160, (64, 64), True, 32, "float32"), (128, 192, (64, 96), True, 32, "float32"),
        (31, 20, (64, 64), False, 32, "float32"), (31, 20, (128, 128), True, 64, "float16"),
        (64, 64, (64, 64), True, 32, "float32"), (3, 400, (64, 64), True, 32, "float32"),
        (1, 1, (32, 32), False, 32, "float32"), (77, 45, (96, 96), True, 32, "float16"),
    ):  # fmt: skip
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        rgba = np.dstack((image, np.full((height, width), 255, np.uint8)))
        cases.append({"pixels": text_of(rgba), "width": width, "height": height, "target": target, "auto": auto,
                      "stride": stride, "kind": kind})  # fmt: skip
        expected.append(letterbox(image, target, auto=auto, stride=stride)[0].transpose(2, 0, 1))
    for case, made, wanted in zip(cases, in_node(tmp_path, letterbox=cases)["letterbox"], expected, strict=True):
        assert (made["place"]["height"], made["place"]["width"]) == wanted.shape[1:], case
        dtype = np.float16 if case["kind"] == "float16" else np.float32
        found = array_of(made["data"], dtype).reshape(wanted.shape)
        levels = np.rint(found.astype(np.float32) * 255) - wanted
        # OpenCV is built in several ways, which round some pixels differently
        assert np.abs(levels).max() <= 1 and (levels != 0).mean() < 0.01, case
        same = levels == 0
        np.testing.assert_array_equal(found[same], (wanted.astype(np.float32) / 255).astype(dtype)[same])


def test_boxes_are_chosen_and_moved_as_in_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    suppressed, moved, expected = [], [], []
    for count, classes, conf, iou, most in (
        (300, 3, 0.25, 0.45, 300), (800, 1, 0.05, 0.6, 300), (500, 20, 0.6, 0.45, 9), (50, 2, 0.999, 0.45, 300),
        (400, 2, 0.0, 0.0, 300),
    ):  # fmt: skip
        rows = rng.random((count, 5 + classes)).astype(np.float32)
        rows[:, :2] *= 320
        rows[:, 2:4] = rows[:, 2:4] * 120 + 2
        rows[count // 2 :: 7] = rows[: len(rows[count // 2 :: 7])]  # equal scores, too
        suppressed.append({"data": text_of(rows), "numbers": 5 + classes, "conf": conf, "iou": iou, "most": most})
        expected.append(non_max_suppression(torch.from_numpy(rows[None]), conf, iou, max_det=most)[0])
        moved.append({"rows": text_of(expected[-1].numpy()), "place": {"height": 256, "width": 320}, "width": 811,
                      "height": 613})  # fmt: skip
    graph = np.arange(21, dtype=np.float32).reshape(3, 7)
    results = in_node(tmp_path, suppress=suppressed, move=moved, graph=text_of(graph))
    for found, wanted in zip(results["suppress"], expected, strict=True):
        np.testing.assert_array_equal(array_of(found).reshape(-1, 6), wanted.numpy())
    for found, wanted in zip(results["move"], expected, strict=True):
        scale_boxes((256, 320), wanted[:, :4], (613, 811))
        wanted[:, :4] = wanted[:, :4].round()
        np.testing.assert_array_equal(array_of(found).reshape(-1, 6), wanted.numpy())
    assert max(map(len, expected)) > 99 and len(expected[2]) == 9
    np.testing.assert_array_equal(array_of(results["graph"]).reshape(-1, 6), graph[:, 1:])
    assert results["round"] == [0, 2, 2, 2, 7, 0, -2]


def test_float16_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    bits = np.arange(0, 65536, 7, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))]
    found = in_node(tmp_path, halves=finite.tolist())["halves"]
    np.testing.assert_array_equal(np.array(found, np.float32), finite.view(np.float16).astype(np.float32))
