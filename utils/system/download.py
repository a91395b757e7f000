"""Download files over http(s), with a progress bar, resuming and a size check; only at the user's request."""

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
_MAX_MEMBER = 1 << 30  # largest size in bytes of a file unpacked from a zip
_DROPPED = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError, urllib.error.URLError)


def download(url: str, path: str | Path, timeout: float = 30.0, attempts: int = 5, wait: float = 2.0) -> Path:
    """Download `url` to `path` and return `path`; an existing file is not downloaded again.

    The data is written to `<path>.part`, which is renamed once it has the size reported by the server. An interrupted
    download is resumed if the server's file has not changed. After a dropped connection the download is retried, with
    at most `attempts` attempts in all, `wait` seconds apart. Raises UserError if the download fails.
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
            reason = f"the server returned {e.code} {e.reason}"
            if e.code < 500 and e.code not in (408, 416, 429):
                raise UserError(f"cannot download {url}: {reason}") from None
        except _DROPPED as e:
            reason = str(getattr(e, "reason", e)) or type(e).__name__
        except OSError as e:
            raise UserError(f"cannot write {part}: {e.strerror}") from e
        if attempt < attempts:
            LOGGER.warning(f"{path.name}: {reason}; trying again")
            time.sleep(wait)
    have = f"; the {part.stat().st_size} bytes so far are kept; run it again to resume" if part.is_file() else ""
    raise UserError(f"cannot download {url}: {reason}{have}, or download it by other means to {path}")


def download_files(
    url: str | Path | Iterable[str | Path], dir: str | Path = ".", unzip: bool = True, delete: bool = True,
    curl: bool = False, threads: int = 1, retry: int = 3,
) -> None:  # fmt: skip
    """Download one or several URLs into the folder `dir`, with the signature used by YOLOv5's scripts.

    unzip: unpack zip files into the same folder, and with `delete` remove them afterwards. threads: number of parallel
    downloads. retry: attempts after the first. curl is accepted for compatibility and has no effect.
    Raises UserError for the first file that cannot be downloaded.
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
        raise UserError(f"{url}: the address contains no file name")
    return name


def _unpack(file: Path, folder: Path) -> None:
    """Extract the safe members of a zip into a folder; log a warning for each of the others."""
    with Archive(file) as archive:
        for name, reason in archive.refused:
            LOGGER.warning(f"{file}: {name} is skipped: {reason}")
        for name in progress(archive.members, f"unpacking {file.name}"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(archive.read(name, _MAX_MEMBER))


def check_file(file: str | Path, suffix: str | Sequence[str] = "") -> str:
    """Return the path of a file: as given, relative to the project's root, or, for a yaml, below data/ or models/.

    An http(s) URL is downloaded into the current folder. suffix: allowed suffixes. Raises UserError if the file does
    not exist.
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
    """Return the path of a yaml file; see `check_file`."""
    return check_file(file, suffix)


def is_url(url: str | Path, check: bool = True) -> bool:
    """Whether `url` is an http(s) URL; with `check`, also whether a request to it succeeds."""
    try:
        if urllib.parse.urlsplit(str(url)).scheme not in ("http", "https"):
            return False
        if check:
            _opener().open(str(url), timeout=30).close()
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def safe_download(
    file: str | Path, url: str, url2: str | None = None, min_bytes: float = 1, error_msg: str = ""
) -> None:
    """Download `url`, or `url2` if that fails, to `file`, with the signature used by YOLOv5's scripts.

    Raises UserError, ending with `error_msg`, if neither gives a file of at least `min_bytes`.
    """
    for address in filter(None, (url, url2)):
        try:
            there = Path(file).exists()
            if download(address, file).stat().st_size >= min_bytes:
                return
            if there:
                raise UserError(f"{file} is smaller than {min_bytes:,.0f} bytes; remove it to download it again")
            Path(file).unlink()
            reason = f"{address} is smaller than {min_bytes:,.0f} bytes"
        except UserError as e:
            reason = str(e)
    raise UserError(f"{file}: {reason}{'; ' if error_msg else ''}{error_msg}")


def attempt_download(file: str | Path, repo: str = "", release: str = "") -> str:
    """Return the path of a weights file, which is downloaded if `file` is an http(s) URL.

    File names are not looked up in a GitHub release: `repo` and `release` have no effect. Raises UserError if the file
    does not exist.
    """
    if not is_url(file, check=False) and not Path(file).is_file():
        raise UserError(f"{file}: no such file; weights are not downloaded by name; download the file or give its URL")
    return check_file(file)


def _fetch(url: str, part: Path, name: str, timeout: float) -> bool:
    """Make one request; return whether `part` is complete. After HTTPError 416, `part` has been removed."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "voc2yolo"})
    validator = _read_validator(part)
    if have and validator:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)  # if the file has changed, the server sends it from the start
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
            raise UserError(f"not enough space for {name} in {part.parent}: {(total - start) / 1e6:.0f} MB are needed")
        if not resumed:
            _keep_validator(part, response.headers)
        got = _copy(response, part, name, start, total)
    if total is None:
        LOGGER.warning(f"{name}: the server did not report the size, so it could not be checked")
        return True
    if got > total:
        part.unlink()
        raise UserError(f"{url}: {got} bytes were received, but the server reported {total}; try again")
    return got == total


def _copy(response: http.client.HTTPResponse, part: Path, name: str, start: int, total: int | None) -> int:
    """Append the response to `part`, or overwrite it if `start` is 0; return its new size."""
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
    """Save the ETag or date of the server's file, so that parts of two different versions are never joined."""
    etag = headers.get("ETag") or ""
    value = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""
    _validator_file(part).write_text(value, encoding="latin-1")


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"only http and https URLs can be downloaded, not {url}")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https back to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Return the request for `newurl`; raises UserError if the redirect is not allowed."""
        _check_scheme(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise UserError(f"{req.full_url} redirects to {newurl}, which is not encrypted; it is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_HttpRedirects)
