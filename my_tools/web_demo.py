"""Run an exported detector in a browser on images, samples and the camera; nothing is sent anywhere.

    python my_tools/web_demo.py --install                   # once: downloads ONNX Runtime Web with npm
    python my_tools/web_demo.py --weights best.onnx         # then open the address that it prints
    python my_tools/web_demo.py --weights best.onnx --out site

--out writes the page for any static web host. Browsers allow the camera only on localhost and over https: on a phone,
open the page from an https host or, after `adb reverse tcp:8000 tcp:8000` over USB, from the phone's own localhost.
After the first visit the page works without a network.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import socketserver
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError
from utils.files import ROOT
from utils.settings.flags import Parser, options_from, read_first


@dataclass(frozen=True)
class Options:
    """The flags, with their names in code. Raises UserError for values out of range."""

    weights: str = ""
    source: str = str(ROOT / "data/images")
    host: str = "127.0.0.1"
    port: int = 8000
    out: str = ""
    exist_ok: bool = False
    install: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: must be from 1 to 65535, or 0 for any free port")


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, Options)
    data, model, output, more = map(parser.group, ("data", "model", "output", "more"))
    data("--source", metavar="FOLDER", shown="data/images", help="images that the page offers as samples")
    model("--weights", metavar="ONNX", shown="best.onnx of the newest run",
          help=".onnx file of export.py, or the folder of a run")  # fmt: skip
    output("--out", metavar="FOLDER", help="write the page to this folder instead of serving it")
    output("--exist-ok", action="store_true", help="write to --out even if it is not empty")
    more("--host", metavar="ADDRESS", help="address to listen on; the default is only reachable from this machine")
    more("--port", type=int, metavar="N", help="port to listen on; 0: any free one")
    more("--install", action="store_true", help="first download ONNX Runtime Web (33 MB) with npm")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

from my_tools.serving.files import Item, build_site, install, write_site
from utils.system.console import LOGGER, run_script, shown

LOCAL = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    # these three enable threads in WASM
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; "
                               "media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """Serves a site from memory; all other addresses give 404."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows, two servers could then use one port

    def __init__(self, site: Mapping[str, Item], host: str, port: int) -> None:
        self.site = {f"/{name}": item for name, item in site.items()} | {"/": site["index.html"]}
        self.is_local = host in LOCAL
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Bind like HTTPServer, but without looking up the name of the machine in the network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, unless the browser has only closed the connection."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            LOGGER.warning(f"a request failed: {error}")


class Handler(BaseHTTPRequestHandler):
    """Handles GET and HEAD requests."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Server

    def do_GET(self) -> None:
        """Send a file."""
        self.answer(with_content=True)

    def do_HEAD(self) -> None:
        """Send the headers of a file."""
        self.answer(with_content=False)

    def answer(self, with_content: bool) -> None:
        """Send a file of the site, or status 404 if there is none, 304 if the browser's copy is current, or 403."""
        item = self.server.site.get(self.path.partition("?")[0])
        host = re.sub(r":\d*$", "", self.headers.get("Host", "")).strip("[]")
        if self.server.is_local and host not in LOCAL:  # a foreign name that resolves to this machine
            status, item = HTTPStatus.FORBIDDEN, None
        elif item is None:
            status = HTTPStatus.NOT_FOUND
        else:
            known = self.headers.get("If-None-Match") == f'"{item.digest}"'
            status = HTTPStatus.NOT_MODIFIED if known else HTTPStatus.OK
        content = item.content if item else f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if item:
            self.send_header("ETag", f'"{item.digest}"')
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", item.kind if item else "text/plain")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content and status != HTTPStatus.NOT_MODIFIED:
            self.wfile.write(content)

    def version_string(self) -> str:
        """Return the name of the server, without Python's version."""
        return "web_demo"

    def log_message(self, *_args: Any) -> None:
        """Do not log requests."""


def make_server(site: Mapping[str, Item], host: str, port: int) -> Server:
    """Return a listening server. Raises UserError if it cannot listen."""
    try:
        return Server(site, host, port)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port} is in use; choose another, such as --port {port + 1}") from e
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({e.strerror or e})") from e


def run(**kwargs: Any) -> Path | None:
    """Serve the page until Ctrl-C, or write it to `out` and return that folder; options are named like the flags.

    Raises UserError for bad input.
    """
    opt = options_from(Options, kwargs, "web_demo.run")
    if opt.install:
        install()
        if not opt.weights and not opt.out:
            return None
    site = build_site(opt.weights, opt.source)
    if opt.out:
        out = Path(opt.out)
        write_site(site, out, opt.exist_ok)
        size = sum(len(item.content) for item in site.values())
        LOGGER.info(f"{len(site)} files, {size / 1e6:.0f} MB, in {shown(out)}; upload them to any web host with https")
        return out
    with make_server(site, opt.host, opt.port) as server:
        name = "localhost" if server.is_local else opt.host
        LOGGER.info(f"open http://{name}:{server.server_port}/ in a browser; Ctrl-C ends this")
        if not server.is_local:
            LOGGER.warning("anyone who can reach this machine can download the model; threads, camera and offline use "
                           "need https or localhost")  # fmt: skip
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            LOGGER.info("ended")
    return None


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
