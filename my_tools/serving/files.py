"""The files of the browser demo: the page, ONNX Runtime Web (see `--install`), the model and sample images."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from models.export.engines import kind_of, need
from models.export.exported import ExportedRuntime
from models.inference.runtime import warm_up
from models.weights.checkpoint import find_weights
from utils.errors import UserError
from utils.files import atomic_write, newest
from utils.system.console import LOGGER, quoted, shown

FOLDER = Path(__file__).resolve().parents[1] / "web_demo"
VENDOR = FOLDER / "vendor"
RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# engine -> its script and WASM file; the page loads only those of the engine it uses
ENGINES = {"wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
           "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")}  # fmt: skip
VENDOR_FILES = tuple(name for pair in ENGINES.values() for name in pair)
ABOUT = "package.json"  # the runtime's version and licence
PAGE = ("index.html", "style.css", "app.js", "results.js", "draw.js", "camera.js", "offline.js", "worker.js",
        "detector.js", "letterbox.js", "boxes.js", "sw.js", "manifest.webmanifest", "icon.svg")  # fmt: skip
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json", ".wasm": "application/wasm", ".onnx": "application/octet-stream",
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".bmp": "image/bmp",
}  # fmt: skip
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))  # image formats that every browser can show
MOST_SAMPLES = 12
INSTALL = "python my_tools/web_demo.py --install"
SETTINGS = ("conf_thres", "iou_thres", "max_det")  # inputs with default values, of a graph with NMS


@dataclass(frozen=True)
class Item:
    """A file of the site: its bytes, media type and hash."""

    content: bytes
    kind: str
    digest: str

    @classmethod
    def of(cls, content: bytes, suffix: str) -> Item:
        """Make an item from a file's bytes and its suffix, such as .js."""
        return cls(content, TYPES[suffix.lower()], hashlib.sha256(content).hexdigest()[:16])


def build_site(weights: str | Path, source: str | Path) -> dict[str, Item]:
    """Return all files of the site by their path from its root. Raises UserError for bad weights and missing files."""
    file = onnx_file(weights)
    check_installed()
    samples = sample_files(source)
    runtime = open_model(file)
    model = Item.of(served_model(file, bool(runtime.facts.nms)), ".onnx")
    site = {name: Item.of((FOLDER / name).read_bytes(), Path(name).suffix) for name in PAGE}
    site |= {f"vendor/{name}": Item.of((VENDOR / name).read_bytes(), Path(name).suffix)
             for name in (*VENDOR_FILES, ABOUT)}  # fmt: skip
    site["model.onnx"] = model
    listed = []
    for number, path in enumerate(samples, 1):
        name = f"samples/{number}{path.suffix.lower()}"
        site[name] = Item.of(path.read_bytes(), path.suffix)
        listed.append({"url": with_hash(name, site), "name": path.stem})
    content = json.dumps(description(runtime, file, site, listed), ensure_ascii=False, indent=1)
    site["site.json"] = Item.of(content.encode(), ".json")
    LOGGER.info(f"{shown(file)}: {len(runtime.names)} classes, {len(samples)} sample images")
    return site


def with_hash(name: str, site: Mapping[str, Item]) -> str:
    """Return the URL of a file with its hash as a query, so that browsers may cache it forever."""
    return f"{name}?v={site[name].digest}"


def description(runtime: ExportedRuntime, file: Path, site: Mapping[str, Item], samples: list) -> dict:
    """Return the content of site.json: the model, the runtime's files, the samples and the page's files to cache."""
    facts = runtime.facts
    return {
        "runtime": VERSION,
        "model": {"file": file.name, "url": with_hash("model.onnx", site), "bytes": file.stat().st_size,
                  "names": list(facts.names.values()), "imgsz": list(facts.imgsz), "stride": facts.stride,
                  "dynamic": facts.dynamic, "nms": bool(facts.nms), "precision": facts.precision},
        "engines": {engine: {"script": with_hash(f"vendor/{script}", site), "wasm": with_hash(f"vendor/{wasm}", site)}
                    for engine, (script, wasm) in ENGINES.items()},
        "samples": samples,
        "page": [name for name in PAGE if name not in ("index.html", "sw.js")],
    }  # fmt: skip


def onnx_file(weights: str | Path) -> Path:
    """Return the .onnx file for --weights, or the newest run's if `weights` is empty.

    Raises UserError, with the command that exports one, if there is none.
    """
    if weights and kind_of(Path(weights)) == "onnx":
        file = Path(weights)
        if not file.is_file():
            raise UserError(f"--weights {file} does not exist")
        return file
    if weights and kind_of(Path(weights)):
        raise UserError(f"--weights {weights}: browsers need .onnx files; export one with --include onnx")
    if weights and Path(weights).suffix:
        checkpoint = find_weights(weights)
        raise UserError(f"--weights {weights} is not an .onnx file; {export_command(checkpoint)} writes one")
    checkpoint = find_weights(weights) if weights else newest("train/*/weights/best.pt")
    if checkpoint is None:
        raise UserError("no --weights given and no trained model in runs/train; run train.py and export.py first")
    file = checkpoint.with_suffix(".onnx")
    if not file.is_file():
        raise UserError(f"there is no {shown(file)}; {export_command(checkpoint)} writes it")
    return file


def export_command(checkpoint: Path) -> str:
    """Return the command that exports a checkpoint to ONNX."""
    return f"python export.py --weights {quoted(shown(checkpoint))} --include onnx"


def open_model(file: Path) -> ExportedRuntime:
    """Open the model and run it once. Raises UserError if it is not a detector that the page can use."""
    runtime = ExportedRuntime(file, torch.device("cpu"))
    if runtime.batch not in (None, 1):
        raise UserError(f"{file} takes {runtime.batch} images at a time; export it with --batch-size 1")
    warm_up(runtime, *runtime.facts.imgsz)
    return runtime


def served_model(file: Path, nms: bool) -> bytes:
    """Return the file's bytes; for a graph with NMS, without the default values of its settings.

    ONNX Runtime Web does not accept a value for an input that has a default.
    """
    if not nms:
        return file.read_bytes()
    model = need("onnx", "a graph with NMS").load(str(file))
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in SETTINGS]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model.SerializeToString()


def sample_files(source: str | Path) -> list[Path]:
    """Return the images of a folder, or one image file. Raises UserError if browsers can show none of them."""
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [f for f in files if f.suffix.lower() in PICTURES and f.is_file()]
    if not found:
        raise UserError(f"--source {path}: no images for the page found ({' '.join(sorted(PICTURES))})")
    if len(found) > MOST_SAMPLES:
        LOGGER.info(f"samples: only the first {MOST_SAMPLES} of {len(found)} images in {shown(path)}")
    return found[:MOST_SAMPLES]


def check_installed() -> None:
    """Raise UserError, with the command to install it, if ONNX Runtime Web is missing or of another version."""
    if not all((VENDOR / name).is_file() for name in (*VENDOR_FILES, ABOUT)):
        raise UserError(f"the page needs ONNX Runtime Web {VERSION}, which is not installed: {INSTALL} downloads it")
    try:
        version = json.loads((VENDOR / ABOUT).read_bytes()).get("version")
    except (ValueError, AttributeError):
        version = None
    if version != VERSION:
        raise UserError(f"the page needs ONNX Runtime Web {VERSION}, but {version} is installed: {INSTALL} replaces it")


def install() -> None:
    """Download ONNX Runtime Web with npm, check its hash and copy the page's files. Raises UserError if it fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("--install needs npm, which comes with Node.js; nothing was installed")
    LOGGER.info(f"downloading {RUNTIME} {VERSION} with npm (33 MB) ...")
    with tempfile.TemporaryDirectory(prefix="web-demo-") as folder:
        command = [npm, "pack", "--ignore-scripts", "--silent", f"{RUNTIME}@{VERSION}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        files = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(files) != 1:
            said = next((line.strip() for line in done.stderr.splitlines() if line.strip()), f"code {done.returncode}")
            raise UserError(f"npm could not download {RUNTIME} {VERSION} ({said}); check the network connection")
        unpack(files[0])
    size = sum((VENDOR / name).stat().st_size for name in VENDOR_FILES)
    LOGGER.info(f"{RUNTIME} {VERSION} is in {shown(VENDOR)} ({size / 1e6:.0f} MB)")


def unpack(archive: Path) -> None:
    """Copy the page's files out of npm's archive. Raises UserError if the archive's hash is not the expected one."""
    with open(archive, "rb") as f:
        digest = hashlib.sha512()
        while piece := f.read(1 << 20):
            digest.update(piece)
    if base64.b64encode(digest.digest()).decode() != SHA512:
        raise UserError(f"npm's archive does not have the known hash of {RUNTIME} {VERSION}; nothing was installed")
    wanted = {f"package/dist/{name}": name for name in VENDOR_FILES} | {f"package/{ABOUT}": ABOUT}
    make_folder(VENDOR)
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in wanted and (content := tar.extractfile(member)):
                with atomic_write(VENDOR / wanted[member.name]) as f:
                    shutil.copyfileobj(content, f)


def write_site(site: Mapping[str, Item], out: Path, exist_ok: bool) -> None:
    """Write the site into a folder. Raises UserError if the folder is not empty, unless `exist_ok`."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not exist_ok):
        raise UserError(f"--out {out} already exists; choose another, or --exist-ok to write into it")
    for name, item in site.items():
        make_folder((out / name).parent)
        with atomic_write(out / name) as f:
            f.write(item.content)


def make_folder(path: Path) -> None:
    """Create a folder unless it exists. Raises UserError if it is not writable."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the folder {path}: {e.strerror}") from e
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} is not writable")
