"""Download files over HTTPS, with resume and checksums."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poise.errors import DataError, single_line
from poise.io.files import open_nofollow

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TEMPORARY_STATUS = (408, 425, 429, 500, 502, 503, 504)  # of HTTP; another try may succeed
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def download_file(
    url: str,
    folder: str | Path,
    *,
    name: str = "",
    digest: str = "",
    size: int = 0,
    unchecked: bool = False,
    force: bool = False,
    waits: Sequence[float] = (),
) -> Path:
    """Return the local copy of `url` in `folder`, downloaded if it is missing.

    A file that exists is verified too. Raises DataError with the cause and the fix.

    Args:
        url: https, or http on this machine.
        folder: created if it is missing.
        name: of the copy; '' takes the name in the URL.
        digest: first 8 or more hex digits of the sha256, or 'md5:' and the complete md5; '' takes
            the digits in the name of the URL.
        size: expected bytes; 0 if unknown.
        unchecked: download a file without a digest, with a warning; else it is an error.
        force: download again, and replace the old file once the new one is complete.
        waits: seconds before each retry after an error that may be temporary. They start again
            after a try that made progress.
    """
    published = _published_name(url)
    expected = digest or sha256_prefix(published)
    if expected is None and not unchecked:
        raise DataError(
            f"{url}: the file name carries no sha256 prefix (name-0123abcd.pth), so it could not be"
            " checked; download the file yourself and give its path"
        )
    target = Path(folder) / (name or published)
    if target.exists() and not force:
        verify_checksum(target, expected, url)
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(part):
            if target.exists() and not force:  # another process was faster
                verify_checksum(target, expected, url)
                return target
            _transfer_with_retries(url, part, size, waits)
            verify_checksum(part, expected, url)
            os.replace(part, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        resume = f"the next try resumes from {part}, " if part.exists() else ""
        raise DataError(
            f"{url}: cannot be downloaded ({single_line(error)}); {resume}or put the file at"
            f" {target} yourself"
        ) from None
    if expected is None:
        log.warning("%s: was not checked, because its publisher gives no sum of it", target)
    return target


def verify_checksum(path: str | Path, digest: str | None, source: str) -> None:
    """Remove a file and raise DataError if its checksum does not begin with `digest`.

    Args:
        path: the file.
        digest: of sha256, or 'md5:' and the digits of the md5: it detects damage as well, and COCO
            publishes no other. None only checks that the file is readable and not empty.
        source: where to download it again, for error messages.
    """
    path = Path(path)
    algorithm, _, digits = (digest or "").rpartition(":")
    algorithm = algorithm or "sha256"
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            if not digest:
                is_empty = not file.read(1)
            else:
                while chunk := file.read(_CHUNK):
                    checksum.update(chunk)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); remove it, and {source} is downloaded"
            " again"
        ) from None
    if not digest:
        if is_empty:
            path.unlink()
            raise DataError(f"{path}: was empty; the file was removed, download {source} again")
        return
    if not checksum.hexdigest().startswith(digits):
        path.unlink()
        raise DataError(
            f"{path}: its {algorithm} begins with {checksum.hexdigest()[: len(digits)]}, and"
            f" {digits} was published; the file was removed, download {source} again"
        )


def sha256_prefix(name: str) -> str | None:
    """Return the checksum in a published file name, or None.

    'resnet50-19c8e357.pth' -> '19c8e357', and with mmpose's date behind it
    'mspn50_coco_256x192-8fbfb5d0_20201123.pth' -> '8fbfb5d0'.
    """
    match = re.search(r"-([0-9a-f]{8,64})(?:_\d{8})?\.[A-Za-z0-9.]+$", name)
    return match.group(1) if match else None


def is_url(path: str) -> bool:
    return "://" in path


def _published_name(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise DataError(f"{url}: not an address ({error})") from None
    _check_scheme(parts)
    return Path(urllib.parse.unquote(parts.path)).name


class _PermanentError(OSError):
    """An error that a retry would not fix."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, which GitHub's releases need, but only to allowed schemes."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_scheme(urllib.parse.urlsplit(newurl))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(parts: urllib.parse.SplitResult) -> None:
    if parts.scheme == "https":
        return
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise DataError(
        f"{parts.geturl()}: only https addresses are downloaded; download the file yourself and"
        " give its path"
    )


@contextmanager
def _exclusive(part: Path) -> Iterator[None]:
    """Lock the file of a transfer, so that the ranks of one training download it once.

    An empty file is removed afterwards. Systems without such locks (Windows) do not lock.
    """
    if part.is_symlink() or part.exists() and not part.is_file():
        raise DataError(
            f"{part}: is a link or not a regular file, and nothing is downloaded into it; remove it"
        )
    with open(part, "ab", opener=open_nofollow) as locked:
        try:
            import fcntl

            fcntl.flock(locked, fcntl.LOCK_EX)
        except (ImportError, OSError):  # a network file system may not support locks either
            pass
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _transfer_with_retries(url: str, part: Path, size: int, waits: Sequence[float]) -> None:
    failures = 0
    max_failures = len(waits) + 1
    while True:
        before = part.stat().st_size
        try:
            _transfer(url, part, size)
            return
        except (OSError, http.client.HTTPException) as error:
            failures += 1
            if part.exists() and part.stat().st_size > before:
                failures = 1
            if not _is_temporary(error) or failures >= max_failures:
                raise
            print(f"{url}: {single_line(error)}; try {failures + 1} of {max_failures}", flush=True)
            time.sleep(waits[failures - 1])


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, _PermanentError):
        return False
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _TEMPORARY_STATUS
    return getattr(error, "errno", None) not in _DISK_ERRORS


def _transfer(url: str, part: Path, size: int) -> None:
    """Append the missing end of a file to `part`."""
    from tqdm import tqdm

    response, begin = _open_response(url, part)
    if response is None:
        return
    with response:
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length else None
        _check_size(part, begin, total, size)
        shown = "size unknown" if total is None else f"{total / 1e6:.1f} MB"
        print(f"downloading {url} ({shown}) to {part.with_suffix('')}", flush=True)
        with (
            open(part, "ab" if begin else "wb", opener=open_nofollow) as file,
            tqdm(total=total, initial=begin, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(_CHUNK):
                if size and file.tell() + len(chunk) > size:
                    raise _PermanentError(
                        f"the server sends more than the {size} bytes that were published"
                    )
                file.write(chunk)
                bar.update(len(chunk))
            received = file.tell()
    if received < (total or size):
        raise ConnectionError(f"the transfer ended after {received} of {total or size} bytes")


def _open_response(url: str, part: Path) -> tuple[Any, int]:
    """Return the response and the position in the file where it begins.

    The response is None if `part` is complete already.
    """
    begin = part.stat().st_size
    opener = urllib.request.build_opener(_SafeRedirects)
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begin:
            raise
        content_range = error.headers.get("Content-Range")
        if content_range is None or content_range.endswith(f"/{begin}"):
            return None, begin
        os.truncate(part, 0)  # longer than the file: the beginning of another one
        return opener.open(url, timeout=60), 0
    expected = f"bytes {begin}-"
    content_range = response.headers.get("Content-Range", expected)
    if response.status != 206 or not content_range.startswith(expected):
        begin = 0  # the server sends the complete file
    return response, begin


def _check_size(part: Path, begin: int, total: int | None, size: int) -> None:
    """Raise _PermanentError if the size is not the published one or does not fit on the disk."""
    if total is None:
        return
    if size and total != size:
        raise _PermanentError(f"the server has a file of {total} bytes, and {size} were published")
    free = shutil.disk_usage(part.parent).free
    if total - begin > free:
        raise _PermanentError(
            f"{(total - begin) / 1e6:.1f} MB are to come, and {free / 1e6:.1f} MB are free on"
            f" the disk of {part.parent}"
        )
