"""Fetch a weight file over HTTPS: told beforehand, resumed where a transfer broke, checked, and only then put in place."""
from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from poise.errors import DataError, one_line

_CHUNK = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_url(path: str) -> bool:
    return "://" in path


def sha256_prefix(name: str) -> str | None:
    """The checksum that a published file name carries: 'resnet50-19c8e357.pth' -> '19c8e357'; None where there is none."""
    match = re.search(r"-([0-9a-f]{8,64})\.[A-Za-z0-9.]+$", name)
    return match.group(1) if match else None


def fetch(url: str, folder: str | Path) -> Path:
    """Return the local copy of `url` in `folder`, fetching it when it is not there.

    The file name must carry the first 8 or more hex digits of the file's sha256, and the content must agree; a file already
    there is checked too. Plain http is taken from this machine only. Raises DataError with what failed and what to do.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise DataError(f"{url}: not an address ({error})") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise DataError(f"{url}: only https addresses are fetched; fetch the file yourself and give its path")
    name = Path(urllib.parse.unquote(parts.path)).name
    digest = sha256_prefix(name)
    if digest is None:
        raise DataError(f"{url}: the file name carries no sha256 prefix (name-0123abcd.pth), so it could not be checked; "
                        "fetch the file yourself and give its path")
    target, part = Path(folder) / name, Path(folder) / f"{name}.part"
    if target.exists():
        _check(target, digest, url)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _transfer(url, part)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{url}: cannot be fetched ({one_line(error)}); what came is kept in {part} and the next try goes on from there, "
                        f"or put the file at {target} by hand") from None
    _check(part, digest, url)
    os.replace(part, target)
    return target


def _transfer(url: str, part: Path) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:   # 416: nothing is left to send, the part is whole
            raise
        return
    with response:
        if response.status != 206:      # the server sends all of it again
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        print(f"fetching {url} ({'size unknown' if total is None else f'{total / 1e6:.1f} MB'}) to {part.with_suffix('')}")
        with open(part, "ab" if have else "wb") as file, tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            have = file.tell()
    if total is not None and have < total:
        raise ConnectionError(f"the transfer ended after {have} of {total} bytes")


def _check(path: Path, digest: str, url: str) -> None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); remove it, and {url} is fetched again") from None
    if not found.startswith(digest):
        path.unlink()
        raise DataError(f"{path}: its sha256 begins with {found[:len(digest)]}, the name says {digest}; the file was removed, fetch {url} again")
