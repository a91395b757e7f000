"""The browser demo without a browser: what the server answers, what wrong input is told, and its JavaScript in Node."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, run_main, run_script
from web_models import to_onnx, untrained

from my_tools import web_demo, web_demo_files
from my_tools.web_demo import HEADERS, Server, make_server
from my_tools.web_demo_files import Item, build_site
from utils.augment import letterbox
from utils.boxes import scale_boxes
from utils.errors import UserError
from utils.nms import non_max_suppression

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a small untrained network with best.onnx beside it, and nms.onnx; a folder like ONNX Runtime Web's."""
    made = tmp_path_factory.mktemp("web")
    for name, nms in (("best", False), ("nms", True)):
        to_onnx(untrained(made / f"{name}.pt"), nms=nms, dynamic=nms)
    vendor = made / "vendor"
    vendor.mkdir()
    for name in web_demo_files.VENDOR_FILES:
        (vendor / name).write_bytes(f"stands for {name}".encode())
    (vendor / "package.json").write_text(json.dumps({"version": web_demo_files.VERSION}))
    return made


@pytest.fixture
def vendor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for ONNX Runtime Web, which is only there where somebody has asked for it."""
    monkeypatch.setattr(web_demo_files, "VENDOR", folder / "vendor")
    return folder / "vendor"


@pytest.fixture
def server(folder: Path, vendor: Path) -> Iterator[Server]:
    with make_server(build_site(folder / "best.onnx", ROOT / "data/images"), "127.0.0.1", 0) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


# --- the server ------------------------------------------------------------------------------------------------------


def test_every_file_is_served_with_its_type_and_the_headers_for_threads(server: Server) -> None:
    kinds = {"/": "text/html", "/index.html": "text/html", "/app.js": "text/javascript",
             "/site.json": "application/json", "/vendor/ort.wasm.bundle.min.mjs": "text/javascript",
             "/style.css": "text/css", "/vendor/ort-wasm-simd-threaded.wasm": "application/wasm",
             "/model.onnx": "application/octet-stream",
             "/samples/1.jpg": "image/jpeg", "/manifest.webmanifest": "application/manifest+json",
             "/icon.svg": "image/svg+xml"}  # fmt: skip
    for path, item in server.site.items():
        answer, content = ask(server, f"{path}?v=1")
        assert (answer.status, content) == (200, item.content)
        assert answer.headers["Content-Type"].startswith(kinds.get(path, ""))
        assert {k: v for k, v in HEADERS.items() if answer.headers[k] != v} == {}
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and "Python" not in str(answer.headers)
    assert set(kinds) <= set(server.site)
    assert not re.search("'unsafe-|http|[*]", HEADERS["Content-Security-Policy"])


@pytest.mark.parametrize("path", ["/nothing", "/vendor/", "/samples", "/../web_demo.py", "/vendor/../../web_demo.py",
                                  "/%2e%2e/web_demo.py", "//etc/passwd", "/app.js/", "/site.json/..", "*"])  # fmt: skip
def test_what_is_not_in_the_site_does_not_exist(path: str, server: Server) -> None:
    answer, content = ask(server, path)
    assert (answer.status, content) == (404, b"404 Not Found\n")
    assert answer.headers["Content-Security-Policy"] and answer.headers["Content-Type"] == "text/plain"


def test_only_get_and_head_are_answered_and_only_to_this_machine(server: Server) -> None:
    answer, content = ask(server, "/app.js", "HEAD")
    assert (answer.status, content) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len(server.site["/app.js"].content)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0].status == 501
    etag = ask(server, "/")[0].headers["ETag"]
    assert [ask(server, "/", **{"If-None-Match": tag})[0].status for tag in (etag, '"old"')] == [304, 200]
    for host, status in (("evil.example:80", 403), ("localhost", 200), (f"127.0.0.1:{server.server_port}", 200),
                         ("[::1]:8000", 200), ("", 403)):  # fmt: skip
        assert ask(server, "/model.onnx", Host=host)[0].status == status, host


def test_site_json_says_what_the_model_says(folder: Path, vendor: Path) -> None:
    for name, nms in (("best", False), ("nms", True)):
        site = build_site(folder / f"{name}.onnx", ROOT / "data/images")
        said = json.loads(site["site.json"].content)
        assert said["model"] == {
            "file": f"{name}.onnx", "url": f"model.onnx?v={site['model.onnx'].digest}", "stride": 32,
            "bytes": (folder / f"{name}.onnx").stat().st_size, "names": ["red", "<b>blue</b>"], "imgsz": [64, 64],
            "dynamic": nms, "nms": nms, "precision": "float32",
        }  # fmt: skip
        addresses = [s["url"] for s in said["samples"]] + [u for e in said["engines"].values() for u in e.values()]
        assert all(site[url.partition("?v=")[0]].digest == url.partition("?v=")[2] for url in addresses)
        assert [s["name"] for s in said["samples"]] == [f"shapes{k}" for k in (1, 2, 3, 4)]
        assert said["runtime"] == web_demo_files.VERSION and set(said["page"]) < set(site)


def test_a_graph_with_nms_is_served_without_the_defaults_of_its_settings(folder: Path, vendor: Path) -> None:
    import onnxruntime

    site = build_site(folder / "nms.onnx", ROOT / "data/images")
    session = onnxruntime.InferenceSession(site["model.onnx"].content, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images", "conf_thres", "iou_thres", "max_det"]
    assert build_site(folder / "best.onnx", ROOT / "data/images")["model.onnx"].content == (
        folder / "best.onnx").read_bytes()  # fmt: skip


def test_out_holds_the_whole_site(folder: Path, vendor: Path, tmp_path: Path) -> None:
    out = web_demo.run(weights=str(folder / "best.onnx"), out=str(tmp_path / "a/site"))
    site = build_site(folder / "best.onnx", ROOT / "data/images")
    assert {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*") if f.is_file()} == {
        name: item.content for name, item in site.items()}  # fmt: skip
    with pytest.raises(UserError, match="is there already"):
        web_demo.run(weights=str(folder / "best.onnx"), out=str(out))
    assert web_demo.run(weights=str(folder / "best.onnx"), out=str(out), exist_ok=True) == out
    with pytest.raises(UserError, match="cannot make the folder .*index.html"):
        web_demo.run(weights=str(folder / "best.onnx"), out=str(out / "index.html/below"))


def test_the_page_is_complete_and_asks_nobody_else() -> None:
    """The folder holds nothing that Python could import in place of the script."""
    files = {f.name for f in web_demo_files.FOLDER.iterdir() if f.is_file()}
    assert files == set(web_demo_files.PAGE) and Path(web_demo.__file__).name == "web_demo.py"
    for name in files:
        text = (web_demo_files.FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|eval\(|innerHTML|<script>| on[a-z]+=\"| style=\"", text), name
        for other in re.findall(r"""(?:from|Worker\(|register\(|fetch\()\s*'(?:\./)?([\w.]+)'""", text):
            assert other in {*files, "site.json"}, other
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert "my_tools/web_demo/vendor/" in ignored


# --- what wrong input is told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "message"), [
    ({"weights": "{}/best.pt"}, r"is no .onnx file; python export.py --weights .*best.pt --include onnx writes one"),
    ({"weights": "{}/none.onnx"}, "none.onnx does not exist"),
    ({"weights": "{}/none.pt"}, "none.pt"),
    ({"weights": "{}/a.torchscript"}, "browsers take .onnx files"),
    ({"weights": "{}/text.onnx"}, "cannot be opened as onnx"),
    ({"weights": "{}/plain.onnx"}, "has no class names and stride"),
    ({"weights": "{}/batch.onnx"}, "takes 2 pictures at a time; export it with --batch-size 1"),
    ({"weights": "{}/best.onnx", "source": "{}/vendor"}, "no picture for the page in it"),
    ({"weights": "{}/best.onnx", "port": 70000}, "--port 70000"),
    ({"weight": "a.onnx"}, "did you mean 'weights'"),
])  # fmt: skip
def test_wrong_input_is_one_line(
    flags: dict, message: str, folder: Path, vendor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "text.onnx").write_text("no model")
    if not (folder / "batch.onnx").is_file():
        shutil.copy(folder / "best.pt", folder / "batch.pt")
        to_onnx(folder / "batch.pt", batch_size=2)
        import onnx

        model = onnx.load(str(folder / "best.onnx"))
        del model.metadata_props[:]
        onnx.save(model, str(folder / "plain.onnx"))
    monkeypatch.setattr(web_demo, "make_server", None)  # nothing of this comes so far
    with pytest.raises(UserError, match=message) as e:
        web_demo.run(**{k: v.format(folder) if isinstance(v, str) else v for k, v in flags.items()})
    assert "\n" not in str(e.value)


def test_the_newest_run_is_shown_if_it_was_exported(
    folder: Path, vendor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_demo_files, "newest", lambda pattern: None)
    with pytest.raises(UserError, match="no --weights given"):
        web_demo_files.onnx_file("")
    monkeypatch.setattr(web_demo_files, "newest", lambda pattern: tmp_path / "weights/best.pt")
    (tmp_path / "weights").mkdir()
    shutil.copy(folder / "best.pt", tmp_path / "weights")
    for weights in ("", tmp_path):
        with pytest.raises(UserError, match="there is no .*best.onnx; python export.py --weights .*best.pt --include"):
            web_demo_files.onnx_file(weights)
    shutil.copy(folder / "best.onnx", tmp_path / "weights")
    assert [web_demo_files.onnx_file(w) for w in ("", tmp_path)] == [tmp_path / "weights/best.onnx"] * 2


def test_a_missing_or_other_runtime_is_told_with_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(web_demo_files, "VENDOR", tmp_path / "vendor")
    assert run_main(monkeypatch, web_demo, "--weights", folder / "best.onnx") == 1
    assert "is not here yet: python my_tools/web_demo.py --install fetches it\n" in capsys.readouterr().err
    shutil.copytree(folder / "vendor", tmp_path / "vendor")
    (tmp_path / "vendor/package.json").write_text('{"version": "1.0.0"}')
    with pytest.raises(UserError, match="here is 1.0.0: python my_tools/web_demo.py --install replaces it"):
        build_site(folder / "best.onnx", ROOT / "data/images")


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is in use; choose another, such as --port {port + 1}"):
            make_server({"index.html": Item(b"", "", "")}, "127.0.0.1", port)
    with pytest.raises(UserError, match="--host 203.0.113.1 --port 0: cannot be listened on"):
        make_server({"index.html": Item(b"", "", "")}, "203.0.113.1", 0)


def test_ctrl_c_is_how_it_ends(
    folder: Path, vendor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt(self: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupt)
    assert run_main(monkeypatch, web_demo, "--weights", folder / "best.onnx", "--port", 0) == 0
    told = capsys.readouterr()
    assert re.search(r"open http://localhost:\d+/ in a browser; Ctrl-C ends this\nended\n$", told.out) and not told.err


@pytest.mark.slow
def test_as_a_script_it_tells_one_line(folder: Path) -> None:
    done = run_script("my_tools/web_demo.py", "--weights", folder / "best.pt")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "--include onnx writes one" in done.stderr


# --- the install step ------------------------------------------------------------------------------------------------


def npm_archive(files: dict[str, bytes]) -> bytes:
    """An archive as npm makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_install_takes_the_archive_that_is_known_and_of_it_only_what_the_page_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(web_demo_files, "VENDOR", tmp_path / "vendor")
    files = {f"package/dist/{name}": name.encode() for name in web_demo_files.VENDOR_FILES}
    about = json.dumps({"version": web_demo_files.VERSION}).encode()
    archive = npm_archive(files | {"package/package.json": about, "package/dist/ort.js": b"x", "../evil": b"x"})
    commands = []

    def npm(command: list[str], cwd: str, **_flags: object) -> subprocess.CompletedProcess:
        commands.append(command)
        (Path(cwd) / "it.tgz").write_bytes(archive)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda name: "/bin/npm")
    monkeypatch.setattr(subprocess, "run", npm)
    with pytest.raises(UserError, match="is not the onnxruntime-web .* known here; nothing was installed"):
        web_demo.run(install=True)
    assert not (tmp_path / "vendor").exists()
    monkeypatch.setattr(web_demo_files, "SHA512", base64.b64encode(hashlib.sha512(archive).digest()).decode())
    assert web_demo.run(install=True) is None
    assert {f.name for f in (tmp_path / "vendor").iterdir()} == {*web_demo_files.VENDOR_FILES, "package.json"}
    assert "--ignore-scripts" in commands[0] and commands[0][-1] == f"onnxruntime-web@{web_demo_files.VERSION}"
    web_demo_files.check_installed()


def test_install_without_npm_or_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="--install needs npm, which comes with Node.js; nothing was installed"):
        web_demo.run(install=True)
    failed = subprocess.CompletedProcess([], 1, "", "\nnpm error code ENOTFOUND\nnpm error more\n")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/npm")
    monkeypatch.setattr(subprocess, "run", lambda *args, **flags: failed)
    with pytest.raises(UserError, match=r"npm could not fetch .* \(npm error code ENOTFOUND\); is there a network\?"):
        web_demo.run(install=True)


# --- the page's arithmetic, in Node ----------------------------------------------------------------------------------

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
        shutil.copy(web_demo_files.FOLDER / name, folder)
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
