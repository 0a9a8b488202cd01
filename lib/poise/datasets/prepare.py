"""Download, verify and unpack COCO and MPII, and check the parts that need a manual download."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from poise.config.sources import Archive, ManualDownload, Source, relative_to
from poise.errors import ConfigError, DataError, single_line
from poise.io import archives, download
from poise.io.files import format_bytes
from poise.io.json_file import read_json
from poise.io.mat_file import read_matlab
from poise.visualization.tables import align_columns

MAX_ATTEMPTS = 8
#: seconds before attempt 2, 3, ... of a download that failed
RETRY_DELAYS = tuple(min(2.0**attempt, 60.0) for attempt in range(1, MAX_ATTEMPTS))
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


def prepare(
    source: Source,
    root: str | Path,
    *,
    only: Sequence[str] = (),
    base: str = "",
    zipped: bool = False,
    keep: bool = False,
    confirm: Callable[[str], bool] | None = None,
    retry_delays: Sequence[float] = RETRY_DELAYS,
) -> list[str]:
    """Download, verify and unpack what is missing in `root`. A later call resumes.

    Args:
        source: The dataset.
        root: Its folder.
        only: Names of archives; default those that training and testing need.
        base: URL of a mirror.
        zipped: Keep images in their archives, for DATASET.DATA_FORMAT zip.
        keep: Keep the archives after unpacking.
        confirm: Called with a question before a download.
        retry_delays: Seconds before attempt 2, 3, ... of a download that failed.

    Returns:
        One line for each part that still needs a manual download.

    Raises:
        ConfigError, DataError: in one line.
    """
    root = Path(root)
    archives_to_check = _choose_archives(source, only)
    states = {archive.name: _state(archive, root, zipped) for archive in archives_to_check}
    _print_states(archives_to_check, states, root)
    missing = [archive for archive in archives_to_check if states[archive.name]]
    if missing:
        _check_disk_space(missing, root, zipped)
        size = format_bytes(sum(_remaining_bytes(archive, root) for archive in missing))
        question = f"download {size} to {root} ({source.terms})?"
        if confirm is not None and not confirm(question):
            raise DataError(f"{root}: nothing was downloaded")
    for archive in missing:
        file = _download(archive, root, base or source.base, retry_delays)
        if zipped and archive.folder:
            target = _zip_path(archive, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        else:
            _unpack(archive, file, root)
            if not keep:
                file.unlink()
        state = _state(archive, root, zipped)
        if state:
            raise DataError(f"{root}: {archive.name} was unpacked but is incomplete: {state}")
        print(f"{archive.name}: complete", flush=True)
    for archive in source.local:
        file = root / archive.path
        if file.is_file() and _state(archive, root, False):
            _unpack(archive, file, root)
            print(f"{archive.name}: unpacked from {file}, which may be removed now", flush=True)
    return [line for part in source.manual_downloads if (line := check_manual(part, root))]


def confirm_on_terminal(question: str) -> bool:
    """Ask on the terminal. Raises ConfigError if there is none."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} There is no terminal to ask on; give --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _choose_archives(source: Source, only: Sequence[str]) -> list[Archive]:
    archives_by_name = {archive.name: archive for archive in source.archives}
    if not only:
        return [archive for archive in source.archives if archive.default]
    parts = "all parts need a manual download"
    if archives_by_name:
        parts = f"the parts are {', '.join(archives_by_name)}"
    for name in only:
        if name not in archives_by_name:
            raise ConfigError(f"{source.name} has no part {name!r} to download; {parts}")
    return [archives_by_name[name] for name in only]


def _print_states(chosen: Sequence[Archive], states: dict[str, str], root: Path) -> None:
    if not chosen:
        return
    rows = [("part", "to download", "state")]
    for archive in chosen:
        size = format_bytes(_remaining_bytes(archive, root)) if archive.size else "unknown"
        rows.append((archive.name, size, states[archive.name] or "complete"))
    print(align_columns(rows), end="", flush=True)


def _state(archive: Archive, root: Path, zipped: bool) -> str:
    """Return what is missing of an unpacked archive, '' if it is complete."""
    if not archive.folder:
        total = len(archive.members)
        missing = sum(not _is_complete_json(root / path) for path in archive.members.values())
        return f"{missing} of {total} files are missing" if missing else ""
    if zipped and _zip_path(archive, root).is_file():
        return ""
    count = count_images(root / archive.folder)
    return "" if count >= archive.files else f"{count} of {archive.files} images are there"


def _remaining_bytes(archive: Archive, root: Path) -> int:
    """Return how many bytes of an archive are still to be downloaded."""
    file = root / Path(archive.path).name
    if not _state(archive, root, True) or file.is_file():
        return 0
    partial_file = file.with_name(f"{file.name}.part")
    if partial_file.is_file():
        return max(archive.size - partial_file.stat().st_size, 0)
    return archive.size


def _check_disk_space(missing: Sequence[Archive], root: Path, zipped: bool) -> None:
    """Raise DataError if the disk has no space for the files and the largest archive.

    Archives are unpacked one by one and then removed.
    """
    folder = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    needed = sum(_remaining_bytes(archive, root) for archive in missing)
    if not zipped:
        needed += max(archive.size for archive in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{root}: about {format_bytes(needed)} are needed, and {format_bytes(free)} are free"
            " on its disk; nothing was downloaded"
        )


def _zip_path(archive: Archive, root: Path) -> Path:
    return root / f"{archive.folder.rstrip('/')}.zip"


def _download(archive: Archive, root: Path, base: str, retry_delays: Sequence[float]) -> Path:
    """Download an archive to `root`, verify it and return its path."""
    return download.download_file(
        f"{base.rstrip('/')}/{archive.path}",
        root,
        digest=archive.digest,
        size=archive.size,
        unchecked=not archive.digest,
        waits=retry_delays,
    )


def _unpack(archive: Archive, file: Path, root: Path) -> None:
    from tqdm import tqdm

    print(f"unpacking {file} to {root}", flush=True)
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        archives.unpack(file, root, lambda member: relative_to(member, archive.place), bar.update)


def count_images(folder: Path) -> int:
    """Count non-empty image files directly in a folder; 0 if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sum(
                entry.name.lower().endswith(_IMAGE_ENDINGS) and entry.stat().st_size > 0
                for entry in entries
            )
    except OSError:
        return 0


def _is_complete_json(path: Path) -> bool:
    """Return whether a JSON file exists and ends with a bracket; a user's copy may be cut off."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
            return file.read().rstrip().endswith((b"}", b"]"))
    except OSError:
        return False


def check_manual(part: ManualDownload, root: Path) -> str:
    """Return what to do about a part that needs a manual download, '' if it is usable."""
    path = root / part.path
    if not path.exists() or (part.check == "images" and not count_images(path)):
        return f"{part.what}: {path} is missing, needed for {part.needed_for}: {part.how}"
    try:
        content = _CHECKS[part.check](path)
    except DataError as error:
        return f"{part.what}: {single_line(error)}; {part.how}"
    print(f"{part.what}: {path}, {content}", flush=True)
    return ""


def _images(path: Path) -> str:
    return f"{count_images(path)} images"


def _have_keys(entries: object, keys: set[str]) -> bool:
    """Return whether a value is a list of objects that have all keys."""
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and keys <= entry.keys() for entry in entries
    )


def _detections(path: Path) -> str:
    entries = read_json(path, "detection file")
    keys = {"image_id", "category_id", "bbox", "score"}
    if not _have_keys(entries, keys):
        raise DataError(f"{path}: not a list of detections ({', '.join(sorted(keys))})")
    num_persons = sum(entry["category_id"] == 1 for entry in entries)
    if not num_persons:
        raise DataError(f"{path}: holds {len(entries)} boxes, none of category 1, person")
    return f"{num_persons} boxes of persons"


def _persons(path: Path) -> str:
    entries = read_json(path, "annotation file")
    keys = {"image", "center", "scale", "joints", "joints_vis"}
    if not entries or not _have_keys(entries, keys):
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
    "images": _images,
    "detections": _detections,
    "persons": _persons,
    "head boxes": _head_boxes,
}
