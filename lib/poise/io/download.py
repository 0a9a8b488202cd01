"""Fetch a file over HTTPS: told beforehand, resumed where a transfer broke, checked, and only
then put in place.
"""

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

from poise.errors import DataError, single_line
from poise.io.files import open_nofollow

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP's answers that another time may not come
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_url(path: str) -> bool:
    return "://" in path


def sha256_prefix(name: str) -> str | None:
    """The checksum that a published file name carries: 'resnet50-19c8e357.pth' -> '19c8e357',
    and mmpose's with a date behind it, 'mspn50_coco_256x192-8fbfb5d0_20201123.pth' ->
    '8fbfb5d0'; None where there is none.
    """
    match = re.search(r"-([0-9a-f]{8,64})(?:_\d{8})?\.[A-Za-z0-9.]+$", name)
    return match.group(1) if match else None


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
    """Return the local copy of `url` in `folder`, fetching it when it is not there.

    name: of the copy; '' is the name in the address. digest: first 8 or more hex digits of the
    file's sha256, or 'md5:' and all of that sum; '' takes them from the name in the address, and a
    file whose name carries none is refused, or with `unchecked` fetched with a warning. size: what
    it must have, 0 where that is not known. A file already there is checked too; with `force` it is
    fetched anew and replaced when the new one is whole. waits: seconds before each
    further try of a transfer that broke for a reason that may pass; after one that brought
    something they start again. Plain http is taken from this machine only.
    Raises DataError with what failed and what to do.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise DataError(f"{url}: not an address ({error})") from None
    _check_scheme(parts)
    published = Path(urllib.parse.unquote(parts.path)).name
    digest = digest or sha256_prefix(published)
    if digest is None and not unchecked:
        raise DataError(
            f"{url}: the file name carries no sha256 prefix (name-0123abcd.pth), so it could not be"
            " checked; fetch the file yourself and give its path"
        )
    target = Path(folder) / (name or published)
    part = target.with_name(f"{target.name}.part")
    if target.exists() and not force:
        verify_checksum(target, digest, url)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            if target.exists() and not force:  # another process was faster
                verify_checksum(target, digest, url)
                return target
            _transfer_in_turns(url, part, size, waits)
            verify_checksum(part, digest, url)
            os.replace(part, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        kept = (
            f"what came is kept in {part} and the next try goes on from there, "
            if part.exists()
            else ""
        )
        raise DataError(
            f"{url}: cannot be fetched ({single_line(error)}); {kept}or put the file at {target} by"
            " hand"
        ) from None
    if digest is None:
        log.warning("%s: was not checked, because its publisher gives no sum of it", target)
    return target


def verify_checksum(path: str | Path, digest: str | None, source: str) -> None:
    """Raise DataError, and remove the file, unless the hex digits of its sum begin with `digest`;
    None checks that it can be read.

    digest: of sha256, or 'md5:' and the digits of that: against damage it does as well, and COCO's
    archives have no other.

    source: from where it can be fetched again.
    """
    path = Path(path)
    kind, digits = digest.split(":", 1) if digest and ":" in digest else ("sha256", digest)
    sum_ = hashlib.new(kind, usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK if digest else 1):
                sum_.update(chunk)
                if not digest:
                    return
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); remove it, and {source} is fetched again"
        ) from None
    if not digest:
        path.unlink()
        raise DataError(f"{path}: was empty; the file was removed, fetch {source} again")
    if not sum_.hexdigest().startswith(digits):
        path.unlink()
        raise DataError(
            f"{path}: its {kind} begins with {sum_.hexdigest()[: len(digits)]}, and {digits} was"
            f" published; the file was removed, fetch {source} again"
        )


def _check_scheme(parts: urllib.parse.SplitResult) -> None:
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise DataError(
            f"{parts.geturl()}: only https addresses are fetched; fetch the file yourself and give"
            " its path"
        )


class _OnlySafeRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are followed, as GitHub's releases need, but never to where a first address
    could not lead.
    """

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: D102, the name and signature are urllib's
        _check_scheme(urllib.parse.urlsplit(newurl))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold the file of a transfer, so that several processes (ranks of one training) fetch it once:
    the others wait.

    An empty one is removed afterwards. Where the system has no such locks (Windows) nothing is
    held.
    """
    if part.is_symlink() or part.exists() and not part.is_file():
        raise DataError(
            f"{part}: is a link or no ordinary file, and nothing is downloaded into it; remove it"
        )
    with open(part, "ab", opener=open_nofollow) as held:
        try:
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX)
        except (ImportError, OSError):  # a network file system may know no locks either
            pass
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _transfer_in_turns(url: str, part: Path, size: int, waits: Sequence[float]) -> None:
    turn, tries = 0, len(waits) + 1
    while True:
        had = part.stat().st_size
        try:
            _transfer(url, part, size)
            return
        except (OSError, http.client.HTTPException) as error:
            passes = (
                error.code in _PASSING
                if isinstance(error, urllib.error.HTTPError)
                else getattr(error, "errno", None) not in _DISK
            )
            turn = 1 if part.exists() and part.stat().st_size > had else turn + 1
            if not passes or isinstance(error, _PermanentError) or turn >= tries:
                raise
            print(f"{url}: {single_line(error)}; try {turn + 1} of {tries}", flush=True)
            time.sleep(waits[turn - 1])


class _PermanentError(OSError):
    """What another try would not mend."""


def _transfer(url: str, part: Path, size: int) -> None:
    """Bring `part` up to the whole file, from where it ends."""
    from tqdm import tqdm

    have = part.stat().st_size
    opener = urllib.request.build_opener(_OnlySafeRedirects)
    try:
        response = opener.open(
            urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {}),
            timeout=60,
        )
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if (
            error.headers.get("Content-Range", "").endswith(f"/{have}")
            or "Content-Range" not in error.headers
        ):
            return  # nothing is left to send, the part is whole
        os.truncate(part, 0)  # longer than the file: the beginning of another
        response, have = opener.open(url, timeout=60), 0
    with response:
        if response.status != 206 or not response.headers.get(
            "Content-Range", f"bytes {have}-"
        ).startswith(f"bytes {have}-"):
            have = 0  # the server sends all of it again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if size and total is not None and total != size:
            raise _PermanentError(
                f"the server has a file of {total} bytes, and {size} were published"
            )
        if total is not None and total - have > free:
            raise _PermanentError(
                f"{(total - have) / 1e6:.1f} MB are to come, and {free / 1e6:.1f} MB are free on"
                f" the disk of {part.parent}"
            )
        print(
            f"fetching {url} ({'size unknown' if total is None else f'{total / 1e6:.1f} MB'}) to"
            f" {part.with_suffix('')}",
            flush=True,
        )
        with (
            open(part, "ab" if have else "wb", opener=open_nofollow) as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(_CHUNK):
                if size and file.tell() + len(chunk) > size:
                    raise _PermanentError(
                        f"the server sends more than the {size} bytes that were published"
                    )
                file.write(chunk)
                bar.update(len(chunk))
            have = file.tell()
    if have < (total or size):
        raise ConnectionError(f"the transfer ended after {have} of {total or size} bytes")
