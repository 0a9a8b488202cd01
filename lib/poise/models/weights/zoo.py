"""The released weight files of models/zoo.yaml: their links, checksums and local paths."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from poise.errors import ConfigError, DataError, escape_name, short_repr
from poise.io import archives, download
from poise.io.files import read_bytes
from poise.io.yaml_file import MAX_BYTES, parse_yaml
from poise.visualization.tables import align_columns

ZOO = Path(__file__).parents[4] / "models" / "zoo.yaml"
KINDS = ("imagenet", "pose")
_REQUIRED = ("name", "family", "what", "page", "licence", "target")


@dataclass(frozen=True)
class ZooEntry:
    """One released file.

    Args:
        name: unique in the list.
        family: name of the network family.
        what: 'imagenet' (a backbone, for MODEL.PRETRAINED) or 'pose' (a whole network, for
            TEST.MODEL_FILE).
        file: published file name; '' if its page does not show it before the download.
        page: web page that offers the file.
        licence: license of the weights.
        target: path where experiments expect the file.
        url: download link; '' if a program cannot download it (by_hand).
        by_hand: whether a person has to download it.
        sha256_prefix: first hex digits of the checksum, as in the published name; '' if unknown.
        size_bytes: 0 if unknown.
        experiments: those that start from the file or test it.
        overrides: KEY, VALUE, ... that these experiments need.
        note: which file it is, if `file` is ''.
    """

    name: str
    family: str
    what: str
    page: str
    licence: str
    target: str
    file: str = ""
    url: str = ""
    by_hand: bool = False
    sha256_prefix: str = ""
    size_bytes: int = 0
    experiments: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    note: str = ""


def read_zoo(path: str | Path = ZOO) -> dict[str, ZooEntry]:
    """Return {name: entry} in the order of a list of released weights.

    The file is a list of groups. The keys of a group apply to each of its `files`, which may
    override them. `url` and `target` of a group that end in / are continued by the file's name.
    Raises DataError naming the entry and the key.
    """
    groups = parse_yaml(read_bytes(path, "list of released weights", MAX_BYTES), path, DataError)
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("files"), list) for group in groups
    ):
        raise DataError(f"{path}: must be a list of groups, each with a list of files")
    entries: dict[str, ZooEntry] = {}
    for group in groups:
        shared = {key: value for key, value in group.items() if key != "files"}
        for number, keys in enumerate(group["files"]):
            if not isinstance(keys, dict):
                raise DataError(
                    f"{path}: file {number} of a group must be a group of keys, got"
                    f" {short_repr(keys)}"
                )
            entry = _parse_entry({**shared, **keys}, path)
            if entry.name in entries:
                raise DataError(f"{path}: two entries are called {entry.name}")
            entries[entry.name] = entry
    return entries


def find(entries: dict[str, ZooEntry], name: str, source: str | Path = ZOO) -> ZooEntry:
    """Return the entry of a name or file name. Raises ConfigError with the nearest names."""
    if name in entries:
        return entries[name]
    entry = _find_file(entries.values(), name)
    if entry is not None:
        return entry
    close = difflib.get_close_matches(name, entries, n=3, cutoff=0.3)
    hint = f"the nearest names are {', '.join(close)}; " if close else ""
    raise ConfigError(f"{name!r} is not in {source}; {hint}--list shows all")


def find_release(path: str | Path) -> ZooEntry | None:
    """Return the entry of a file of this name, or None if it has none or the list is missing."""
    try:
        return _find_file(read_zoo().values(), path)
    except DataError:
        return None


def fetch(entry: ZooEntry, folder: str | Path | None = None, force: bool = False) -> Path:
    """Download a file and verify it; verify only if it exists.

    Args:
        entry: the file. Raises DataError if a person has to download it and it does not exist.
        folder: destination folder instead of the entry's target.
        force: download it even if it exists.

    Returns:
        The path of the file.
    """
    target = target_path(entry, folder)
    if entry.by_hand:
        if not target.is_file():
            raise DataError(manual_instructions(entry, target))
        if entry.sha256_prefix:
            download.verify_checksum(target, entry.sha256_prefix, entry.page)
        return target
    return download.download_file(
        entry.url,
        target.parent,
        name=target.name,
        digest=entry.sha256_prefix,
        unchecked=not entry.sha256_prefix,
        force=force,
    )


def target_path(entry: ZooEntry, folder: str | Path | None = None) -> Path:
    """Return the path of a file, in `folder` or at its target."""
    return Path(entry.target) if folder is None else Path(folder) / Path(entry.target).name


def table(entries: Iterable[ZooEntry]) -> str:
    """Return a table with one line per entry."""
    rows = [("name", "what", "MB", "download", "checked by", "licence")]
    for entry in entries:
        size = f"{entry.size_bytes / 1e6:.1f}" if entry.size_bytes else "?"
        source = "manual" if entry.by_hand else "automatic"
        licence = entry.licence.split(" ")[0]
        if entry.licence.startswith("not known"):
            licence = "?"
        checksum = entry.sha256_prefix or "nothing"
        rows.append((entry.name, entry.what, size, source, checksum, licence))
    return align_columns(rows).rstrip("\n")


def describe(entry: ZooEntry) -> str:
    """Return all keys of an entry and the commands that use it, one line each."""
    hidden = ("experiments", "overrides", "by_hand")
    values = {f.name: getattr(entry, f.name) for f in fields(ZooEntry) if f.name not in hidden}
    lines = [f"{key}: {value}" for key, value in values.items() if value]
    tool, key = "train", "MODEL.PRETRAINED"
    if entry.what == "pose":
        tool, key = "test", "TEST.MODEL_FILE"
    for path in entry.experiments:
        command = ["python", f"tools/{tool}.py", "--cfg", path, key, entry.target]
        lines.append(" ".join([*command, *entry.overrides]))
    return "\n".join(lines)


def manual_instructions(entry: ZooEntry, target: str | Path) -> str:
    """Return what a person has to do for a file that a program cannot download."""
    which = f"the weights ({entry.note or entry.name})"
    if entry.file:
        which = f"the file {entry.file}"
    return (
        f"{entry.name} cannot be downloaded automatically; open {entry.page}, download {which} and"
        f" save it as {target}"
    )


def download_hint(path: str | Path) -> str:
    """Return how to download a missing file, to be appended to 'no such file'; '' if unknown."""
    entry = find_release(path)
    if entry is None:
        return ""
    if entry.by_hand:
        return f"; {manual_instructions(entry, path)}"
    return f"; python tools/download_weights.py {entry.name} downloads it from {entry.url}"


def experiment_download_hint(experiment: str, dataset: str) -> str:
    """Return how to download released weights for an experiment, by its file's name without .yaml.

    If there are several, the one that needs the fewest overrides.
    """
    entries: Iterable[ZooEntry] = ()
    with suppress(DataError):
        entries = read_zoo().values()
    folder, file = f"experiments/{dataset}/", f"/{experiment}.yaml"
    matching = [
        entry
        for entry in entries
        if entry.what == "pose"
        and not entry.by_hand
        and any(path.startswith(folder) and path.endswith(file) for path in entry.experiments)
    ]
    name = "--list"
    if matching:
        name = min(matching, key=lambda entry: len(entry.overrides)).name
    return f"download released weights: python tools/download_weights.py {name}"


def _find_file(entries: Iterable[ZooEntry], path: str | Path) -> ZooEntry | None:
    """Return the first entry whose published file or target has the name of `path`."""
    name = Path(path).name
    for entry in entries:
        if name and name in (entry.file, Path(entry.target).name):
            return entry
    return None


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_list_of_lines(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_line, value))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def _is_checksum(value: Any) -> bool:
    return not value or (len(value) >= 8 and set(value) <= set("0123456789abcdef"))


# type of a field of ZooEntry -> (check, what it must be)
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_line, "text of one line"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_size, "a whole number or null"),
    "tuple[str, ...]": (_is_list_of_lines, "a list of texts"),
}
# field -> the same, after its type
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "what": (KINDS.__contains__, " or ".join(KINDS)),
    "sha256_prefix": (_is_checksum, "8 or more lower-case hex digits in quotes"),
}


def _parse_entry(values: dict[str, Any], path: str | Path) -> ZooEntry:
    """Return the entry of `values`. Raises DataError naming the entry and the key."""
    where = f"{path}: {escape_name(values.get('name', 'an entry without a name'))}"
    types = {f.name: str(f.type) for f in fields(ZooEntry)}
    for key in values:
        if key not in types:
            raise DataError(
                f"{where}: unknown key {escape_name(key)}; the keys are {', '.join(sorted(types))}"
            )
    values = {key: value for key, value in values.items() if value is not None}
    for key in _REQUIRED:
        if not values.get(key):
            raise DataError(f"{where}: {key} is missing")
    checks = [(key, *_TYPES[types[key]]) for key in values]
    checks += [(key, *check) for key, check in _VALUES.items() if key in values]
    for key, is_valid, expected in checks:
        if not is_valid(values[key]):
            raise DataError(f"{where}: {key} must be {expected}, got {short_repr(values[key])}")
    for key in ("experiments", "overrides"):
        values[key] = tuple(values.get(key, ()))
    for key in ("url", "target"):
        if values.get(key, "").endswith("/"):
            values[key] += values.get("file", "")
    entry = ZooEntry(**values)
    if bool(entry.url) == entry.by_hand:
        raise DataError(f"{where}: give either a url or by_hand: true")
    error = archives.find_name_error(entry.target)
    if error:
        raise DataError(
            f"{where}: the target {entry.target} {error}; it must be below the working directory"
        )
    return entry
