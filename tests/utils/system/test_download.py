"""Downloading from a server on this machine: whole, resumed, cut off, changed meanwhile, refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.system.download import download

CONTENT = bytes(range(256)) * 4000  # 1 MB


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /file; the attributes tell how badly."""

    etag = '"one"'
    cut_after: int | None = None  # bytes of the body, then the connection is dropped; once
    ranges = True
    length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        if self.path != "/file":
            self.send_error(int(self.path[1:]))
            return
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = 0
        if asked and self.server.ranges and self.headers.get("If-Range") == self.server.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(body[:cut])

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_whole_file_and_nothing_beside_it(server: Server, tmp_path: Path) -> None:
    path = download(f"{server.url}/file", tmp_path / "new" / "a.zip")
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["a.zip"]
    download(f"{server.url}/file", path)
    assert len(server.asked) == 1  # what is there is not fetched again


def test_dropped_connection_is_resumed_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cut_after = 300_000
    path = download(f"{server.url}/file", tmp_path / "a.zip", wait=0)
    assert path.read_bytes() == CONTENT and server.asked == [None, "bytes=300000-"]


def test_interrupted_download_is_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cut_after = 300_000
    with pytest.raises(UserError, match="300000 bytes so far are kept"):
        download(f"{server.url}/file", tmp_path / "a.zip", attempts=1)
    assert not (tmp_path / "a.zip").exists()
    assert download(f"{server.url}/file", tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("change", [{"etag": '"two"'}, {"ranges": False}])
def test_part_of_another_file_is_not_kept(server: Server, tmp_path: Path, change: dict) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"old" * 100)
    (tmp_path / "a.zip.part.etag").write_text('"one"')
    for name, value in change.items():
        setattr(server, name, value)
    assert download(f"{server.url}/file", tmp_path / "a.zip").read_bytes() == CONTENT


def test_part_of_unknown_origin_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"who knows")
    assert download(f"{server.url}/file", tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.asked == [None]


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"too long"])
def test_part_as_long_as_the_file_or_longer(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "a.zip.part").write_bytes(part)
    (tmp_path / "a.zip.part.etag").write_text('"one"')
    assert download(f"{server.url}/file", tmp_path / "a.zip", wait=0).read_bytes() == CONTENT


def test_unknown_size_is_said(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.length = False
    with caplog.at_level("WARNING", "yolov5"):
        assert download(f"{server.url}/file", tmp_path / "a.zip").read_bytes() == CONTENT
    assert "could not be checked" in caplog.text


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("file:///etc/hostname", "only http and https"),
        ("ftp://127.0.0.1/file", "only http and https"),
        ("{url}/404", "404"),
        ("{url}/503", "503"),
        ("{url}/to/file:///etc/hostname", "only http and https|not allowed|302"),
        ("{url}/to/ftp://127.0.0.1/file", "only http and https"),
        ("http://127.0.0.1:1/file", "cannot download"),
    ],
)
def test_refusals_are_one_clear_error(server: Server, tmp_path: Path, address: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        download(address.format(url=server.url), tmp_path / "a.zip", attempts=2, wait=0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zip").exists()
