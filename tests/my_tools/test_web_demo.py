"""The browser demo without a browser: what the server answers, what wrong input is told, the install step."""

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

import pytest
from helpers import ROOT, run_main, run_script
from web_models import to_onnx, untrained

from my_tools import web_demo
from my_tools.serving import files as web_demo_files
from my_tools.serving.files import Item, build_site
from my_tools.web_demo import HEADERS, Server, make_server
from utils.errors import UserError

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
                         ("[::1]:8000", 200), ("[::1]", 200), ("", 403), ("localhost:80:80", 403)):  # fmt: skip
        assert ask(server, "/model.onnx", Host=host)[0].status == status, host


def test_the_service_worker_answers_for_the_files_of_the_page() -> None:
    own = re.search(r"const OWN = new Set\(\[(.*?)\]\)", (web_demo_files.FOLDER / "sw.js").read_text(), re.S)[1]
    assert {*re.findall("'(.*?)'", own), "sw.js"} == {"", "site.json", "model.onnx", *web_demo_files.PAGE}


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
    with pytest.raises(UserError, match="already exists"):
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
    ({"weights": "{}/best.pt"}, r"not an .onnx file; python export.py --weights .*best.pt --include onnx writes one"),
    ({"weights": "{}/none.onnx"}, "none.onnx does not exist"),
    ({"weights": "{}/none.pt"}, "none.pt"),
    ({"weights": "{}/a.torchscript"}, "browsers need .onnx files"),
    ({"weights": "{}/text.onnx"}, "cannot be opened as onnx"),
    ({"weights": "{}/plain.onnx"}, "has no class names and stride"),
    ({"weights": "{}/batch.onnx"}, "takes 2 images at a time; export it with --batch-size 1"),
    ({"weights": "{}/best.onnx", "source": "{}/vendor"}, "no images for the page found"),
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
    assert "is not installed: python my_tools/web_demo.py --install downloads it\n" in capsys.readouterr().err
    shutil.copytree(folder / "vendor", tmp_path / "vendor")
    (tmp_path / "vendor/package.json").write_text('{"version": "1.0.0"}')
    with pytest.raises(UserError, match="but 1.0.0 is installed: python my_tools/web_demo.py --install replaces it"):
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
    with pytest.raises(UserError, match="does not have the known hash of onnxruntime-web .*; nothing was installed"):
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
    with pytest.raises(UserError, match=r"npm could not download .* \(npm error code ENOTFOUND\); check the network"):
        web_demo.run(install=True)
