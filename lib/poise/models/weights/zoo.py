"""models/zoo.yaml: the weight files that were released, where they lie, and where Poise expects
them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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
_TEXTS = (
    "name",
    "family",
    "what",
    "file",
    "page",
    "licence",
    "target",
    "url",
    "sha256_prefix",
    "note",
)


@dataclass(frozen=True)
class ZooEntry:
    """One released file.

    what: 'imagenet' (a backbone, for MODEL.PRETRAINED) or 'pose' (a whole network, for
    TEST.MODEL_FILE). file: its published name; '' where its page does not tell before one is there.
    page: where it is offered. url: from where it can be fetched; '' where only a person can
    (by_hand). sha256_prefix: first hex digits of its sum, as in the published name; '' for none.
    size_bytes: 0 where not known. target: path where experiments expect it. experiments: those that
    start from it or test it, with `overrides` behind their name.
    """

    name: str
    family: str
    what: str
    file: str
    page: str
    licence: str
    target: str
    url: str = ""
    by_hand: bool = False
    sha256_prefix: str = ""
    size_bytes: int = 0
    experiments: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    note: str = ""


def read_zoo(path: str | Path = ZOO) -> dict[str, ZooEntry]:
    """{name: entry} in the order of the file: a list of groups, whose keys hold for each of their
    `files` that has no other.

    `url` and `target` of a group that end in / are continued by the file's name. Raises DataError,
    naming the entry and the key.
    """
    groups = parse_yaml(read_bytes(path, "list of released weights", MAX_BYTES), path, DataError)
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("files"), list) for group in groups
    ):
        raise DataError(f"{path}: must be a list of groups, each with a list of files")
    entries: dict[str, ZooEntry] = {}
    for group in groups:
        shared = {key: value for key, value in group.items() if key != "files"}
        for number, own in enumerate(group["files"]):
            if not isinstance(own, dict):
                raise DataError(
                    f"{path}: file {number} of a group must be a group of keys, got"
                    f" {short_repr(own)}"
                )
            entry = _entry({**shared, **own}, path)
            if entry.name in entries:
                raise DataError(f"{path}: two entries are called {entry.name}")
            entries[entry.name] = entry
    return entries


def _entry(values: dict[str, Any], path: str | Path) -> ZooEntry:
    name = escape_name(values.get("name", "an entry without a name"))
    known = {f.name for f in fields(ZooEntry)}
    for key in values:
        if key not in known:
            raise DataError(
                f"{path}: {name}: unknown key {escape_name(key)}; the keys are"
                f" {', '.join(sorted(known))}"
            )
    values = {key: value for key, value in values.items() if value is not None}
    for key in ("name", "family", "what", "page", "licence", "target"):
        if not values.get(key):
            raise DataError(f"{path}: {name}: {key} is missing")
    values.setdefault("file", "")
    for key in _TEXTS:
        if not isinstance(values.get(key, ""), str) or not values.get(key, "").isprintable():
            raise DataError(
                f"{path}: {name}: {key} must be text of one line, got {short_repr(values[key])}"
            )
    for key in ("url", "target"):
        if values.get(key, "").endswith("/"):
            values[key] += values["file"]
    if archives.find_name_error(values["target"]):
        raise DataError(
            f"{path}: {name}: the target {values['target']}"
            f" {archives.find_name_error(values['target'])}; it is below the folder in which Poise"
            " runs"
        )
    for key in ("experiments", "overrides"):
        value = values.get(key, [])
        if not isinstance(value, list) or not all(
            isinstance(item, str) and item.isprintable() for item in value
        ):
            raise DataError(
                f"{path}: {name}: {key} must be a list of texts, got {short_repr(value)}"
            )
        values[key] = tuple(value)
    _check_numbers(values, f"{path}: {name}")
    return ZooEntry(**values)


def _check_numbers(values: dict[str, Any], where: str) -> None:
    """Raise DataError for an invalid size, kind, source or checksum of an entry."""
    size = values.get("size_bytes", 0)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 60:
        raise DataError(
            f"{where}: size_bytes must be a whole number or null, got {short_repr(size)}"
        )
    if values["what"] not in KINDS:
        raise DataError(
            f"{where}: what must be {' or '.join(KINDS)}, got {short_repr(values['what'])}"
        )
    if not isinstance(values.get("by_hand", False), bool) or bool(values.get("url")) == values.get(
        "by_hand", False
    ):
        raise DataError(f"{where}: give either a url or by_hand: true")
    prefix = values.get("sha256_prefix", "")
    if prefix and (len(prefix) < 8 or not set(prefix) <= set("0123456789abcdef")):
        raise DataError(
            f"{where}: sha256_prefix must be 8 or more lower-case hex digits in quotes, got"
            f" {short_repr(prefix)}"
        )


def find(entries: dict[str, ZooEntry], name: str, source: str | Path = ZOO) -> ZooEntry:
    """The entry of that name, or of that file name. Raises ConfigError with the nearest names."""
    if name in entries:
        return entries[name]
    same = [
        entry
        for entry in entries.values()
        if name and Path(name).name in (entry.file, Path(entry.target).name)
    ]
    if same:
        return same[0]
    close = difflib.get_close_matches(name, entries, n=3, cutoff=0.3)
    nearest = ", ".join(close)
    raise ConfigError(
        f"{name!r} is not in {source};"
        f" {f'the nearest names are {nearest}; ' if close else ''}--list shows all"
    )


def fetch(entry: ZooEntry, folder: str | Path | None = None, force: bool = False) -> Path:
    """Fetch a file, check it, and put it at its target, or under its name in `folder`; one that is
    there is checked only.

    force: fetch it although it is there. Raises DataError where that fails, and for an entry that
    is by hand and not there.
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
    """Where the file belongs."""
    return Path(entry.target) if folder is None else Path(folder) / Path(entry.target).name


def manual_instructions(entry: ZooEntry, target: str | Path) -> str:
    """What a person has to do for a file that no program may fetch."""
    which = f"the file {entry.file}" if entry.file else f"the weights ({entry.note or entry.name})"
    return (
        f"{entry.name} has to be fetched by hand: open {entry.page}, download {which}, and put it"
        f" at {target}"
    )


def table(entries: Iterable[ZooEntry]) -> str:
    """A line for each: name, kind, size, how it is fetched, how it can be checked."""
    rows = [("name", "what", "MB", "fetched", "checked by", "licence")]
    rows += [
        (
            e.name,
            e.what,
            f"{e.size_bytes / 1e6:.1f}" if e.size_bytes else "?",
            "by hand" if e.by_hand else "here",
            e.sha256_prefix or "nothing",
            e.licence.split(" ")[0] if not e.licence.startswith("not known") else "?",
        )
        for e in entries
    ]
    return align_columns(rows).rstrip("\n")


def describe(entry: ZooEntry) -> str:
    """Everything about one entry, a line for each key, with the commands that use it."""
    key = "TEST.MODEL_FILE" if entry.what == "pose" else "MODEL.PRETRAINED"
    lines = [
        f"{f.name}: {value}"
        for f in fields(ZooEntry)
        if f.name not in ("experiments", "overrides", "by_hand")
        and (value := getattr(entry, f.name))
    ]
    tool = "test" if entry.what == "pose" else "train"
    lines += [
        " ".join(["python", f"tools/{tool}.py", "--cfg", path, key, entry.target, *entry.overrides])
        for path in entry.experiments
    ]
    return "\n".join(lines)


def find_release(path: str | Path) -> ZooEntry | None:
    """The entry of a file of this name; None where there is none, or the list is not installed."""
    try:
        entries = read_zoo()
    except DataError:
        return None
    return next(
        (e for e in entries.values() if Path(path).name in (e.file, Path(e.target).name)), None
    )


def download_hint(path: str | Path) -> str:
    """Behind 'no such file', how to come by a file that was released; '' for any other."""
    entry = find_release(path)
    if entry is None:
        return ""
    if entry.by_hand:
        return f"; {manual_instructions(entry, path)}"
    return f"; python tools/download_weights.py {entry.name} fetches it from {entry.url}"


def experiment_download_hint(experiment: str, dataset: str) -> str:
    """Say how to fetch released weights for an experiment file's name without ending; fetchable
    ones first.
    """
    try:
        entries = read_zoo().values()
    except DataError:
        entries = ()
    wanted = (f"experiments/{dataset}/", f"/{experiment}.yaml")
    fits = [
        entry
        for entry in entries
        if entry.what == "pose"
        and not entry.by_hand
        and any(
            path.startswith(wanted[0]) and path.endswith(wanted[1]) for path in entry.experiments
        )
    ]
    # an entry with overrides would need them on the command line too
    name = min(fits, key=lambda entry: len(entry.overrides)).name if fits else "--list"
    return f"fetch released weights: python tools/download_weights.py {name}"
