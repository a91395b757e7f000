"""The browser demo in headless Chromium: the boxes are detect.py's, it works offline and on a phone's screen."""

from __future__ import annotations

import functools
import http.server
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser
from helpers import shared, write_yolo_set
from PIL import Image
from web_models import draw_picture, to_onnx, untrained

import detect
import export
from my_tools.serving.files import Item, build_site, check_installed, write_site
from my_tools.web_demo import make_server
from utils.data.images import read_image
from utils.errors import UserError

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytestmark = pytest.mark.slow

STATE = "document.body.dataset.state"
GRAPHS = {"fixed": {}, "float16": {"half": True}, "fixed, NMS": {"nms": True}, "dynamic": {"dynamic": True},
          "dynamic, NMS": {"dynamic": True, "nms": True}, "int8": {"int8": True}}  # fmt: skip
ROWS = """return [...document.querySelectorAll('#found button')].map(
    ({dataset}) => [...dataset.box.split(' '), dataset.sure, dataset.cls].map(Number))"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        check_installed()
    except UserError as e:
        pytest.skip(str(e))
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn picture, and one as a phone stores it: lying on its side, with a note that says so."""
    folder = tmp_path_factory.mktemp("pictures")
    draw_picture(folder / "1.png")
    turned = Image.open(draw_picture(folder / "small.png", 90, 120))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "2.jpg", quality=95, exif=exif)
    (folder / "small.png").unlink()
    assert read_image(folder / "2.jpg").shape[:2] == (90, 120)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("weights") / "best.pt", 96)


@contextmanager
def serving(file: Path, source: Path) -> Iterator[str]:
    """The address of the page with a model."""
    with started(build_site(file, source)) as address:
        yield address


@contextmanager
def started(site: Mapping[str, Item], port: int = 0) -> Iterator[str]:
    """The address of a server; at the end its connections are closed too, as when its process ends."""
    with make_server(site, "127.0.0.1", port) as server:
        connections, process = [], server.process_request

        def note(connection: socket.socket, client: Any) -> None:
            connections.append(connection)
            process(connection, client)

        server.process_request = note
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def found_on_sample(page: Browser, number: int) -> np.ndarray:
    """What the page finds on a sample: rows of x1, y1, x2, y2, confidence, class."""
    page.js(f"{STATE} = ''; document.querySelectorAll('#samples button')[{number}].click()")
    assert page.wait(f"['done', 'failed'].includes({STATE}) && {STATE}") == "done", page.text()
    return np.array(page.js(ROWS)).reshape(-1, 6)


def found_by_detect(file: Path, picture: Path, project: Path) -> np.ndarray:
    """What detect.py finds, in the same form."""
    folder = detect.run(weights=str(file), source=str(picture), save_txt=True, save_conf=True, nosave=True,
                        device="cpu", amp="off", max_det=300, project=str(project))  # fmt: skip
    cls, x, y, w, h, sure = np.loadtxt(folder / "labels" / f"{picture.stem}.txt", ndmin=2).T
    height, width = read_image(picture).shape[:2]
    corners = np.stack(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height), 1)
    return np.column_stack((corners.round(), sure, cls))


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Each box has a partner of its class within a pixel, and about as sure; but for those on the edge of counting."""
    off = np.abs(found[:, None] - expected[None]) / (1, 1, 1, 1, 1e-3, 0.1)
    near, sure = off.max(2) <= 1, 0.251
    assert (found[:, 4] > sure).any()
    assert near.any(1)[found[:, 4] > sure].all() and near.any(0)[expected[:, 4] > sure].all(), (found, expected)


def check_graph(page: Browser, checkpoint: Path, graph: str, source: Path, tmp_path: Path) -> None:
    """Compare the page with detect.py on each picture of a folder."""
    shutil.copy(checkpoint, tmp_path / "best.pt")
    flags = dict(GRAPHS[graph])
    with pytest.MonkeyPatch.context() as patched:
        if "int8" in flags:
            flags["data"] = str(write_yolo_set(tmp_path / "set", 6))
            patched.setattr(export.Judge, "map50", lambda self, file: 0.5)  # it is not trained
        file = to_onnx(tmp_path / "best.pt", **flags)
    with serving(file, source) as address:
        page.open(address)
        page.wait(f"{STATE} == 'ready'")
        assert page.js("return crossOriginIsolated") and "WASM with SIMD" in page.text()
        for number, picture in enumerate(sorted(source.iterdir())):
            assert_alike(found_on_sample(page, number), found_by_detect(file, picture, tmp_path))
    assert [line for line in page.log() if "No available adapters" not in line] == []


@pytest.mark.parametrize("graph", GRAPHS)
def test_boxes_on_drawn_pictures(graph: str, chromium: Browser, weights: Path, pictures: Path, tmp_path: Path) -> None:
    check_graph(chromium, weights, graph, pictures, tmp_path)


@pytest.mark.parametrize("graph", ["fixed", "dynamic, NMS"])
def test_boxes_of_a_trained_network_on_photographs(graph: str, chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    for name in ("bus.jpg", "zidane.jpg"):
        shutil.copy(shared(f"images/{name}"), tmp_path / "photographs")
    check_graph(chromium, shared("weights/v5lite-s.pt"), graph, tmp_path / "photographs", tmp_path)
    text = chromium.text()
    assert "best.onnx" in text and "MB, float32" in text and "80: person, bicycle" in text and "person" in text


def test_it_works_offline(chromium: Browser, weights: Path, pictures: Path, tmp_path: Path) -> None:
    """Loaded once and never used, then without its server; also with a file of the user's own."""
    shutil.copy(weights, tmp_path / "best.pt")
    file = to_onnx(tmp_path / "best.pt")
    with serving(file, pictures) as address:
        chromium.open(address)
        chromium.wait("document.querySelector('#offline').innerText == 'Works offline'")
    chromium.open(address)
    chromium.wait(f"{STATE} == 'ready'")
    expected = found_by_detect(file, pictures / "1.png", tmp_path)
    assert_alike(found_on_sample(chromium, 0), expected)
    chromium.js(f"{STATE} = ''")
    chromium.type_into("#file", str(pictures / "2.jpg"))
    chromium.wait(f"{STATE} == 'done'")
    assert_alike(np.array(chromium.js(ROWS)), found_by_detect(file, pictures / "2.jpg", tmp_path))


def test_only_the_page_itself_is_kept_as_the_page(
    chromium: Browser, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    """A picture opened in a tab does not take its place, and another program at the address is seen."""
    shutil.copy(weights, tmp_path / "best.pt")
    file = to_onnx(tmp_path / "best.pt")
    with serving(file, pictures) as address:
        chromium.open(address)
        chromium.wait("document.querySelector('#offline').innerText == 'Works offline'")
        chromium.open(f"{address}samples/1.png")
        assert chromium.js("return document.contentType") == "image/png"
        chromium.open(f"{address}other.html")
        assert "404" in chromium.text()
    chromium.open(address)
    chromium.wait(f"{STATE} == 'ready'")

    other = Item(b"<title>other</title>another program", "text/html", "")
    with started({"index.html": other}, int(address.rstrip("/").rpartition(":")[2])):
        for _ in range(2):
            chromium.open(address)
            assert chromium.text() == "another program"
        assert chromium.js("return navigator.serviceWorker.controller") is None


def test_a_static_host_without_headers_gets_threads_too(
    chromium: Browser, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copy(weights, tmp_path / "best.pt")
    write_site(build_site(to_onnx(tmp_path / "best.pt"), pictures), tmp_path / "host/below", exist_ok=False)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "host")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium.open(f"http://localhost:{server.server_port}/below/")
        chromium.wait(f"{STATE} == 'ready' && crossOriginIsolated")
        assert len(found_on_sample(chromium, 0)) > 0
        server.shutdown()


def test_on_a_phone_with_camera_slider_and_wrong_files(
    chromium: Browser, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copy(weights, tmp_path / "best.pt")
    file = to_onnx(tmp_path / "best.pt")
    page = chromium
    try:
        with serving(file, pictures) as address:
            page.cdp("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
            page.open(address)
            page.wait(f"{STATE} == 'ready'")
            rows = found_on_sample(page, 0)
            assert page.js("return document.documentElement.scrollWidth") <= 360
            small = page.js("""return [...document.querySelectorAll('button, label.button, input[type=range]')].filter(
                (e) => e.offsetParent && e.getBoundingClientRect().height < 40).map((e) => e.outerHTML)""")
            assert small == []
            # the name of a class is text, whatever it holds
            assert page.js("return document.querySelectorAll('#found b').length") == 0
            least = float(np.median(rows[:, 4]).round(2))
            page.js("const s = document.querySelector('#conf'); s.step = 0.01; s.value = arguments[0]; "
                    "s.dispatchEvent(new Event('input'))", least)  # fmt: skip
            assert 0 < len(page.js(ROWS)) == (rows[:, 4] > np.float32(least)).sum() < len(rows)
            page.js(f"{STATE} = ''; document.querySelector('#camera').click()")
            page.wait(f"{STATE} == 'live' && document.querySelector('#camera').innerText == 'Stop camera'")
            page.wait("document.querySelector('#canvas').width > 300")
            page.js("document.querySelector('#camera').click()")
            page.wait(f"{STATE} == 'done' && document.querySelector('#camera').innerText == 'Start camera'")
            (tmp_path / "text.txt").write_text("no picture")
            page.type_into("#file", str(tmp_path / "text.txt"))
            page.wait(f"{STATE} == 'failed'")
            assert "The browser cannot read this file as an image." in page.text()
    finally:
        page.cdp("Emulation.clearDeviceMetricsOverride")
