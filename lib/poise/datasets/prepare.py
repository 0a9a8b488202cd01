"""COCO and MPII put where the experiments expect them: fetched where that is allowed, checked,
unpacked; what is by hand is named and looked at.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from poise.config.sources import Archive, ManualDownload, Source, relative_to
from poise.errors import ConfigError, DataError, single_line
from poise.io import archives, download
from poise.io.files import format_bytes
from poise.io.json_file import read_json
from poise.io.mat_file import read_matlab
from poise.visualization.tables import align_columns

TRIES = 8
#: seconds before try 2, 3, ... of a transfer that broke
WAITS = tuple(min(2.0**turn, 60.0) for turn in range(1, TRIES))
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


def prepare(
    source: Source,
    root: str | Path,
    *,
    only: Sequence[str] = (),
    base: str = "",
    zipped: bool = False,
    keep: bool = False,
    agreed: Callable[[str], bool] = lambda question: True,
    waits: Sequence[float] = WAITS,
) -> list[str]:
    """Fetch, check and unpack what of `source` is not yet whole in `root`, and return what a person
    still has to fetch, a line for each.

    only: names of archives; none are those that are needed for training and testing. base: another
    place that has the same files. zipped: leave images in their archives, for DATASET.DATA_FORMAT
    zip. keep: do not remove the archives afterwards. agreed: asked with the sizes before anything
    is fetched. waits: seconds before try 2, 3, ... of a transfer that broke. Raises ConfigError and
    DataError; a later call goes on.
    """
    root = Path(root)
    known = {archive.name: archive for archive in source.archives}
    parts = f"the parts are {', '.join(known)}" if known else "all of it is by hand"
    for name in only:
        if name not in known:
            raise ConfigError(f"{source.name} has no part {name!r} to fetch; {parts}")
    chosen = (
        [known[name] for name in only]
        if only
        else [archive for archive in source.archives if archive.default]
    )
    states = {archive.name: _state(archive, root, zipped) for archive in chosen}
    rows = [("part", "to fetch", "state")]
    rows += [
        (a.name, format_bytes(_left(a, root)) if a.size else "not known", states[a.name] or "whole")
        for a in chosen
    ]
    if chosen:
        print(align_columns(rows), end="", flush=True)
    missing = [archive for archive in chosen if states[archive.name]]
    if missing:
        _check_room(missing, root, zipped)
        if not agreed(
            f"fetch {format_bytes(sum(_left(archive, root) for archive in missing))} to {root}"
            f" ({source.terms})?"
        ):
            raise DataError(f"{root}: nothing was fetched")
    for archive in missing:
        file = _fetched(archive, root, base or source.base, waits)
        if zipped and archive.folder:
            target = _zip_place(archive, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        else:
            _unpack(archive, file, root)
            if not keep:
                file.unlink()
        state = _state(archive, root, zipped)
        if state:
            raise DataError(f"{root}: {archive.name} is unpacked and still not whole: {state}")
        print(f"{archive.name}: whole", flush=True)
    for archive in source.local:
        file = root / archive.path
        if file.is_file() and _state(archive, root, False):
            _unpack(archive, file, root)
            print(f"{archive.name}: unpacked from {file}, which may be removed now", flush=True)
    return [line for part in source.manual_downloads if (line := look(part, root))]


def ask(question: str) -> bool:
    """On the terminal; raises ConfigError where there is none."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} There is nobody to ask; give --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _state(archive: Archive, root: Path, zipped: bool) -> str:
    """What is missing of an unpacked archive, in words; '' where it is whole."""
    if not archive.folder:
        absent = [
            target for target in archive.members.values() if not _is_whole_json(root / target)
        ]
        return f"{len(absent)} of {len(archive.members)} files are missing" if absent else ""
    if zipped and _zip_place(archive, root).is_file():
        return ""
    found = count_images(root / archive.folder)
    return "" if found >= archive.files else f"{found} of {archive.files} images are there"


def _left(archive: Archive, root: Path) -> int:
    """Bytes of a transfer that are still to come."""
    if not _state(archive, root, True):
        return 0
    for name, whole in (
        (Path(archive.path).name, True),
        (f"{Path(archive.path).name}.part", False),
    ):
        file = root / name
        if file.is_file():
            return 0 if whole else max(archive.size - file.stat().st_size, 0)
    return archive.size


def _check_room(missing: Iterable[Archive], root: Path, zipped: bool) -> None:
    """Archives are unpacked one after the other and then removed, so there must be room for all
    that is unpacked and the largest archive.
    """
    there = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    sizes = [archive.size for archive in missing]
    needed = sum(_left(archive, root) for archive in missing) + (0 if zipped else max(sizes))
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"{root}: about {format_bytes(needed)} are needed, and {format_bytes(free)} are free"
            " on its disk; nothing was fetched"
        )


def _zip_place(archive: Archive, root: Path) -> Path:
    return root / f"{archive.folder.rstrip('/')}.zip"


def _fetched(archive: Archive, root: Path, base: str, waits: Sequence[float]) -> Path:
    """The archive's file in `root`, checked."""
    url = f"{base.rstrip('/')}/{archive.path}"
    return download.download_file(
        url,
        root,
        digest=archive.digest,
        size=archive.size,
        unchecked=not archive.digest,
        waits=waits,
    )


def _unpack(archive: Archive, file: Path, root: Path) -> None:
    from tqdm import tqdm

    print(f"unpacking {file} to {root}", flush=True)
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        archives.unpack(file, root, lambda member: relative_to(member, archive.place), bar.update)


def count_images(folder: Path) -> int:
    """Image files that have a size, directly in a folder; 0 where there is none."""
    try:
        with os.scandir(folder) as entries:
            return sum(
                entry.name.lower().endswith(_IMAGE_ENDINGS) and entry.stat().st_size > 0
                for entry in entries
            )
    except OSError:
        return 0


def _is_whole_json(path: Path) -> bool:
    """Whether a JSON file is there to its last bracket. Files appear whole or not at all here; a
    person's copy may have broken.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
            return file.read().rstrip().endswith((b"}", b"]"))
    except OSError:
        return False


def look(part: ManualDownload, root: Path) -> str:
    """What is to be done about a part that is by hand; '' where it is there and can be used."""
    path = root / part.path
    missing = not path.exists() or (part.check == "images" and not count_images(path))
    if missing:
        return f"{part.what}: {path} is missing, needed for {part.needed_for}: {part.how}"
    try:
        found = _CHECKS[part.check](path)
    except DataError as error:
        return f"{part.what}: {single_line(error)}; {part.how}"
    print(f"{part.what}: {path}, {found}", flush=True)
    return ""


def _detections(path: Path) -> str:
    entries = read_json(path, "detection file")
    keys = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and keys <= entry.keys() for entry in entries
    ):
        raise DataError(f"{path}: not a list of detections ({', '.join(sorted(keys))})")
    persons = sum(entry["category_id"] == 1 for entry in entries)
    if not persons:
        raise DataError(f"{path}: holds {len(entries)} boxes, none of category 1, person")
    return f"{persons} boxes of persons"


def _persons(path: Path) -> str:
    entries = read_json(path, "annotation file")
    keys = {"image", "center", "scale", "joints", "joints_vis"}
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(entry, dict) and keys <= entry.keys() for entry in entries)
    ):
        raise DataError(
            f"{path}: not a list of persons ({', '.join(sorted(keys))}) in the json form of HRNet"
        )
    return f"{len(entries)} persons"


def _head_boxes(path: Path) -> str:
    heads = read_matlab(path, "ground truth of MPII").get("headboxes_src")
    if heads is None or isinstance(heads, list) or heads.shape[:2] != (2, 2):
        raise DataError(f"{path}: has no headboxes_src, so it is not gt_valid.mat")
    return f"head boxes of {heads.shape[-1]} persons"


_CHECKS: dict[str, Callable[[Path], str]] = {
    "images": lambda path: f"{count_images(path)} images",
    "detections": _detections,
    "persons": _persons,
    "head boxes": _head_boxes,
}
