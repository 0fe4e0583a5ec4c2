"""Downloads a file over HTTP: what is there of it is continued, by a later call as well.

What arrives lies in NAME.part, beside the server's word for this version of the file (ETag or Last-Modified) in NAME.part.version, so that two
versions are never joined. huggingface_hub continues files of the hub only; fsspec and pooch begin again."""

import base64
import hashlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from experiments.config.reading import RunConfigError
from retrieval_actors.sources.data_files import one_line

ATTEMPTS = 5  # without a new byte
PAUSE_S = 1.0  # before the second attempt; doubled before each further one
BUSY = (408, 429, 500, 502, 503, 504)
Report = Callable[[str, int, int], None]  # name, bytes done, bytes in all (0: unknown)


class NotFetched(RunConfigError):
    """The server did not give the file; the text is the reason, in one line."""


def download(address: str, target: Path, sha256: str, report: Report) -> None:
    """`sha256`: of the whole file, if known; then a part is continued whatever the server says of its version. Raises NotFetched."""
    part = target.with_name(f"{target.name}.part")
    failures, furthest, md5 = 0, -1, ""
    timeout = httpx.Timeout(60, connect=10)
    with httpx.Client(follow_redirects=True, timeout=timeout, headers={"Accept-Encoding": "identity"}) as client:
        while True:
            try:
                md5 = _receive(client, address, part, bool(sha256), report)
                break
            except OSError as error:
                raise NotFetched(f"{part} cannot be written ({error.strerror})") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reached = part.stat().st_size if part.exists() else 0
                failures, furthest = (0 if reached > furthest else failures) + 1, max(furthest, reached)
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
                final = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol | httpx.InvalidURL)
                if (final and not reached) or failures == ATTEMPTS or (status and status not in BUSY):
                    raise NotFetched(f"the server answers {status}" if status else one_line(error)[:200]) from None
            time.sleep(PAUSE_S * 2 ** (failures - 1))
    if md5 and md5 != base64.b64encode(checksum(part, "md5")).decode():
        part.unlink()
        _version_of(part).unlink(missing_ok=True)
        raise NotFetched("what arrived does not have the MD5 checksum that the server states; call again")
    part.rename(target)
    _version_of(part).unlink(missing_ok=True)


def _receive(client: httpx.Client, address: str, part: Path, known: bool, report: Report) -> str:
    """Appends to `part` until it is complete. Returns the MD5 checksum (base64) that the server states, if it does."""
    done, version = part.stat().st_size if part.exists() else 0, _version_of(part)
    stated = version.read_text() if version.exists() else ""
    wanted = {}
    if done and (stated or known):
        wanted = {"Range": f"bytes={done}-"} | ({"If-Range": stated} if stated else {})
    with client.stream("GET", address, headers=wanted) as answer:
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if answer.status_code == 416 and found and found[2] == str(done):
            return _md5(answer)
        if answer.status_code == 416 or (answer.status_code == 206 and not (found and found[1] == str(done))):
            part.unlink()
            raise httpx.RemoteProtocolError("the server gives another part of the file than the one asked for", request=answer.request)
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise NotFetched("the server answers with a web page, not with the file")
        if answer.status_code != 206:
            done = 0  # it cannot continue, or has another version by now
        left = int(answer.headers.get("Content-Length", 0))
        if left > (free := shutil.disk_usage(part.parent).free):
            raise NotFetched(f"{left / 1e9:.1f} GB are left to download, the disk of {part.parent} has {free / 1e9:.1f} GB: free some")
        etag = answer.headers.get("ETag", "")
        version.write_text(etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", ""))
        with part.open("ab" if done else "wb") as file:
            total = done + left if left else 0
            for chunk in answer.iter_raw():
                file.write(chunk)
                done += len(chunk)
                report(part.stem, done, total)
        return _md5(answer)


def checksum(file: Path, kind: str = "sha256") -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, kind).digest()


def _md5(answer: httpx.Response) -> str:
    """As Google's storage states it."""
    found = re.search(r"md5=([\w+/]+=*)", answer.headers.get("X-Goog-Hash", ""))
    return found[1] if found else ""


def _version_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")
