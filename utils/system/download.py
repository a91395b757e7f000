"""Download files over http(s): progress, resume of an interrupted one, size check. Never called unasked."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils.archive import Archive
from utils.errors import UserError
from utils.files import MODEL_FOLDERS, ROOT, check_suffix, find_file
from utils.system.console import LOGGER, progress

_CHUNK = 1 << 18
_MAX_MEMBER = 1 << 30  # bytes of one unpacked file of a zip
_DROPPED = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError, urllib.error.URLError)


def download(url: str, path: str | Path, timeout: float = 30.0, attempts: int = 5, wait: float = 2.0) -> Path:
    """Fetch `url` to `path` and return it; a file that is there already is not fetched again.

    The bytes go to `<path>.part`, which is renamed when its size is the one the server told; what is left of an
    interrupted download is resumed, if the server's file is still the same one. A dropped connection is tried again
    `attempts` times in all, `wait` seconds apart. Raises UserError for anything that ends the download.
    """
    path = Path(path)
    if path.is_file():
        return path
    _check_scheme(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(1, attempts + 1):
        try:
            if _fetch(url, part, path.name, timeout):
                os.replace(part, path)
                _validator_file(part).unlink(missing_ok=True)
                return path
            reason = "the connection ended early"
        except urllib.error.HTTPError as e:
            e.close()
            reason = f"the server answered {e.code} {e.reason}"
            if e.code < 500 and e.code not in (408, 416, 429):
                raise UserError(f"cannot download {url}: {reason}") from None
        except _DROPPED as e:
            reason = str(getattr(e, "reason", e)) or type(e).__name__
        except OSError as e:
            raise UserError(f"cannot write {part}: {e.strerror}") from e
        if attempt < attempts:
            LOGGER.warning(f"{path.name}: {reason}; trying again")
            time.sleep(wait)
    have = f"; the {part.stat().st_size} bytes so far are kept, run it again to go on" if part.is_file() else ""
    raise UserError(f"cannot download {url}: {reason}{have}, or fetch it by other means to {path}")


def download_files(
    url: str | Path | Iterable[str | Path], dir: str | Path = ".", unzip: bool = True, delete: bool = True,
    curl: bool = False, threads: int = 1, retry: int = 3,
) -> None:  # fmt: skip
    """`download` as YOLOv5's scripts call it: fetch one or several addresses into the folder `dir`.

    unzip: unpack the zips among them there, and with `delete` remove those zips. threads: files at a time. retry:
    attempts after the first. curl is taken for the sake of those scripts and has no effect.
    Raises UserError for the first file that cannot be had.
    """
    urls = [str(u) for u in ([url] if isinstance(url, (str, Path)) else url)]

    def fetch(address: str) -> None:
        file = download(address, Path(dir) / _file_name(address), attempts=retry + 1)
        if unzip and file.suffix.lower() == ".zip":
            _unpack(file, Path(dir))
            if delete:
                file.unlink()

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(fetch, urls))


def _file_name(url: str) -> str:
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if name in ("", ".."):
        raise UserError(f"{url}: names no file")
    return name


def _unpack(file: Path, folder: Path) -> None:
    """Write the safe members of a zip into a folder; the others are named in a warning."""
    with Archive(file) as archive:
        for name, reason in archive.refused:
            LOGGER.warning(f"{file}: {name} is left out: {reason}")
        for name in progress(archive.members, f"unpacking {file.name}"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(archive.read(name, _MAX_MEMBER))


def check_file(file: str | Path, suffix: str | Sequence[str] = "") -> str:
    """Return the path of a file: as given, below the project, or for a yaml below data or models.

    An http(s) address is fetched into the current folder. suffix: those it may have. Raises UserError if there is no
    such file.
    """
    remote = urllib.parse.urlsplit(str(file)).scheme in ("http", "https")
    name = _file_name(str(file)) if remote else file
    if suffix:
        check_suffix(name, suffix)
    if remote:
        return str(download(str(file), name))
    for path in (Path(file), ROOT / file):
        if path.is_file():
            return str(path)
    if Path(file).suffix.lower() in ("", ".yaml", ".yml"):
        return str(find_file(file, ("data", "data/hyps", *MODEL_FOLDERS), "the file"))
    raise UserError(f"{file}: no such file")


def check_yaml(file: str | Path, suffix: str | Sequence[str] = (".yaml", ".yml")) -> str:
    """`check_file` for a yaml."""
    return check_file(file, suffix)


def is_url(url: str | Path, check: bool = True) -> bool:
    """Whether `url` is an http(s) address; with `check`, whether the server also answers it without an error."""
    if urllib.parse.urlsplit(str(url)).scheme not in ("http", "https"):
        return False
    try:
        if check:
            _opener().open(str(url), timeout=30).close()
    except OSError:
        return False
    return True


def safe_download(
    file: str | Path, url: str, url2: str | None = None, min_bytes: float = 1, error_msg: str = ""
) -> None:
    """`download` as YOLOv5's scripts call it: `url` to `file`, from `url2` if the first fails.

    Raises UserError, with `error_msg`, if neither gives at least `min_bytes`.
    """
    for address in filter(None, (url, url2)):
        try:
            if download(address, file).stat().st_size >= min_bytes:
                return
            Path(file).unlink()
            reason = f"{address} is smaller than {min_bytes:,.0f} bytes"
        except UserError as e:
            reason = str(e)
    raise UserError(f"{file}: {reason}{'; ' if error_msg else ''}{error_msg}")


def attempt_download(file: str | Path, repo: str = "", release: str = "") -> str:
    """The path of a weights file: as given, or fetched if it is an http(s) address.

    A bare name is not looked up in a release, whatever repo and release say. Raises UserError if the file is not there.
    """
    if not is_url(file, check=False) and not Path(file).is_file():
        raise UserError(f"{file}: no such file; weights are not downloaded by name, fetch the file or give its address")
    return check_file(file)


def _fetch(url: str, part: Path, name: str, timeout: float) -> bool:
    """One request; return whether `part` is whole now. HTTPError 416 leaves no `part` behind."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "voc2yolo"})
    validator = _read_validator(part)
    if have and validator:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)  # another file by now: the server sends it from its start
    try:
        response = _opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:
            if _total(e.headers) == have:
                e.close()
                return True
            part.unlink()
        raise
    with response:
        resumed = response.status == 206
        if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            part.unlink()
            return False
        start = have if resumed else 0
        total = _total(response.headers) if resumed else _length(response.headers)
        if total is not None and total - start > shutil.disk_usage(part.parent).free:
            raise UserError(f"not enough room for {name} in {part.parent}: {(total - start) / 1e6:.0f} MB are needed")
        if not resumed:
            _keep_validator(part, response.headers)
        got = _copy(response, part, name, start, total)
    if total is None:
        LOGGER.warning(f"{name}: the server did not tell the size, it could not be checked")
        return True
    if got > total:
        part.unlink()
        raise UserError(f"{url}: {got} bytes came, the server told {total}; try again")
    return got == total


def _copy(response: http.client.HTTPResponse, part: Path, name: str, start: int, total: int | None) -> int:
    """Append the response to `part` (or begin it anew at 0); return the size it then has."""
    got = start
    bar = progress(desc=name, total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024)
    with bar, open(part, "ab" if start else "wb") as f:
        while chunk := response.read(_CHUNK):
            f.write(chunk)
            got += len(chunk)
            bar.update(len(chunk))
        f.flush()
        os.fsync(f.fileno())
    return got


def _length(headers: http.client.HTTPMessage) -> int | None:
    text = headers.get("Content-Length") or ""
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _total(headers: http.client.HTTPMessage) -> int | None:
    match = re.search(r"/(\d{1,15})$", headers.get("Content-Range") or "")
    return int(match[1]) if match else None


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _read_validator(part: Path) -> str:
    try:
        return _validator_file(part).read_text(encoding="latin-1").strip()
    except OSError:
        return ""


def _keep_validator(part: Path, headers: http.client.HTTPMessage) -> None:
    """Keep what tells this version of the server's file from another, so that two are never glued together."""
    etag = headers.get("ETag") or ""
    value = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""
    _validator_file(part).write_text(value, encoding="latin-1")


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"only http and https addresses are downloaded, not {url}")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https back to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise UserError(f"{req.full_url} sends on to the unprotected {newurl}: not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_HttpRedirects)
