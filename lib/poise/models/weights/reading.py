"""Reading and writing files of torch.save. No code of a stranger's file is ever run.

Files are read with torch.load(weights_only=True), which makes tensors and plain values and nothing
else. Published checkpoints hold other things too: HRNet's have a NumPy number beside the weights,
mmpose's NumPy arrays and the loggers of mmengine, timm's the arguments of the command line. For
these an empty object of ours stands in, so the weights can be had although the rest is not
understood.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise.config.dataset_yaml import MAX_JOINTS
from poise.errors import DataError, escape_name, is_out_of_memory, single_line
from poise.io.archives import open_bounded_zip
from poise.io.files import atomic_write, check_memory
from poise.models.weights import zoo
from poise.models.weights.nesting import check_nesting

# where a dict with the state dict in it may have it: HRNet, mmcv, timm; MSPN, detectron2
_WRAPPERS = ("state_dict", "model", "model_state_dict")
AVERAGED = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel
_MOST_FOREIGN_CLASSES = 64
_JOINTS, _EXPERIMENT = "poise.joints", "poise.experiment"
_LONGEST_EXPERIMENT = 1 << 18  # characters
_MOST_OF_NUMPY = 16  # besides; each class has the file read once more
# members of TorchScript's and torch.export's files
_OF_EXPORTS = ("constants.pkl", "archive_format", "serialized_exported_program.json")
_TORCHS_WRITER = re.compile("inline_container|PytorchStreamWriter|iostream error")
_MORE_THAN_A_BLOCK = 1 << 20  # bytes
_LONGEST_NAME = 1000  # of a tensor
_MOST_SHARED = 1 << 30  # bytes that a tensor may claim whose values are all the same few

State = dict[str, torch.Tensor]


@dataclass
class WeightFile:
    """The weights of a file under the names that they have there, without 'module.'.

    foreign: the classes of what was not read. joints, experiment: see add_keypoint_names and
    add_experiment.
    """

    path: str
    state: State
    foreign: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    experiment: str = ""


class WeightReadError(DataError):
    """The system could not read a file that may be whole: a disk that is away for a moment, too
    many open files, no memory.
    """


class _Unread:
    """Stands for an object of a class that is not ours to make; whatever it was made of is
    dropped.
    """

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


class _UnreadDict(_Unread):
    """The same for kinds of dict, which are filled item by item."""

    def __new__(cls, *_, **__):
        return OrderedDict()


def read_state_dict(path: str | Path) -> State:
    """The state dict in a file, under the names that it has there: see read_weight_file."""
    return read_weight_file(path).state


def read_weight_file(path: str | Path) -> WeightFile:
    """The weights in a file: bare, or in a dict as 'state_dict', 'model' or 'model_state_dict'.

    Files of torch.save and of safetensors. Names are those of the network itself, without what
    DataParallel, DistributedDataParallel, AveragedModel and torch.compile add to them.

    Raises DataError when the file is missing, is not a weight file, or holds weights that could not
    be read without running code.
    """
    path = Path(path)
    if _is_safetensors(path):
        content, foreign = _read_safetensors(path), []
    else:
        content, foreign = _read(path, "weight file", _MOST_FOREIGN_CLASSES)
    for _ in range(3):  # a state dict may be wrapped twice, as {"model": {"state_dict": ...}}
        inner = (
            next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
            if isinstance(content, Mapping)
            else None
        )
        if inner is None:
            break
        content = inner
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        if foreign:
            raise _foreign_code(path, foreign[0])
        raise DataError(f"{path}: holds no state dict (names and tensors)")
    state: State = {}
    for name, tensor in content.items():
        plain = _own_name(str(name))
        if len(plain) > _LONGEST_NAME:
            raise DataError(
                f"{path}: holds a tensor with a name of {len(plain)} letters,"
                f" {escape_name(plain, 40)}, which no network has"
            )
        if plain in state:
            raise DataError(f"{path}: holds {escape_name(plain)} twice, with and without 'module.'")
        if not is_plain(tensor):
            raise DataError(
                f"{path}: {escape_name(plain)} is no plain tensor (sparse, quantised, without"
                " memory, or of more values than the file holds)"
            )
        state[plain] = tensor
    if AVERAGED in state and is_averaging_counter(content):
        del state[AVERAGED]
    return WeightFile(
        str(path), state, tuple(foreign), _joints_of(content), _experiment_of(content)
    )


def _own_name(name: str) -> str:
    """Return a tensor's name without the wrappers: `_orig_mod.` anywhere, leading `module.`."""
    return re.sub(r"\A(?:module\.)+", "", re.sub(r"(?<![^.])_orig_mod\.", "", name))


def is_averaging_counter(names: Iterable[Any]) -> bool:
    """Whether n_averaged is AveragedModel's, which is outside of its `module.`, or the network's
    own.
    """
    wrappers = {_own_name(name): name.count("module.") for name in map(str, names)}
    counter = wrappers.pop(AVERAGED)
    return bool(wrappers) and counter < min(wrappers.values())


def _is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors: the length of a JSON header, then the header."""
    try:
        if not path.is_file():  # opening a named pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
        return path.suffix == ".safetensors" or (brace == b"{" and length <= path.stat().st_size)
    except OSError:  # reading it reports this
        return False


def _read_safetensors(path: Path) -> State:
    check_memory(path, "weight file", path.stat().st_size)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise DataError(
            f"{path}: is a file of safetensors, which is not installed; "
            "pip install 'poise[safetensors]'"
        ) from None
    try:
        return load_file(path)
    except (OSError, MemoryError) as error:
        raise read_error(path, error) from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{path}: not a weight file of safetensors, or damaged ({single_line(error)[:200]})"
        ) from None


def add_keypoint_names(state: State, names: Sequence[str]) -> State:
    """A network's state_dict() that says, once it is saved, what the network's joints are.

    The names stand beside PyTorch's own version numbers, in the `_metadata` that every state_dict()
    carries: the file stays a plain state dict for whoever else reads it.
    """
    state._metadata[_JOINTS] = list(names)
    return state


def add_experiment(state: State, text: str) -> State:
    """Add a text of weights.experiment to a network's state_dict(), next to the joints' names."""
    state._metadata[_EXPERIMENT] = text
    return state


def _joints_of(content: Any) -> tuple[str, ...]:
    """Return the names that add_keypoint_names added, or () for other files and values."""
    about = getattr(content, "_metadata", None)
    names = about.get(_JOINTS) if isinstance(about, Mapping) else None
    return (
        tuple(names)
        if isinstance(names, list)
        and len(names) <= MAX_JOINTS
        and all(isinstance(name, str) for name in names)
        else ()
    )


def _experiment_of(content: Any) -> str:
    """Return the text that add_experiment added, or '' for other files and values."""
    about = getattr(content, "_metadata", None)
    text = about.get(_EXPERIMENT) if isinstance(about, Mapping) else None
    return text if isinstance(text, str) and len(text) <= _LONGEST_EXPERIMENT else ""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory for its values: a few bytes of a file can say that a million
    rows are all the same one.
    """
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
    ):
        return False
    return tensor.numel() * tensor.element_size() <= max(
        tensor.untyped_storage().nbytes(), _MOST_SHARED
    )


def read_tensors(path: str | Path, what: str) -> Any:
    """The content of a file of torch.save: tensors and plain values, nothing else; NumPy's objects
    are left empty.

    `what` goes into the DataError where it cannot be read.
    """
    return _read(Path(path), what, 0)[0]


def save(path: str | Path, content: Any) -> None:
    """torch.save in place of the old file, wholly or not at all. Raises DataError where it
    cannot be written.
    """
    with atomic_write(path) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:
            _try_writing(part)  # torch does not say why a write failed
            first: BaseException = error  # closing the file fails too, and hides what came before
            while isinstance(first.__context__, RuntimeError):
                first = first.__context__
            if not _TORCHS_WRITER.search(str(first)):
                raise first from None
            raise DataError(
                f"{path}: cannot be written ({single_line(error)}); the file before it, if any, is"
                " kept"
            ) from None


def _try_writing(path: Path) -> None:
    """Raise the system's OSError where no more can be written to a file, as on a full disk."""
    with open(path, "ab") as file:
        file.write(bytes(_MORE_THAN_A_BLOCK))


def read_error(path: str | Path, error: OSError | MemoryError) -> WeightReadError:
    """What to raise where the system failed and not the file."""
    return WeightReadError(
        f"{path}: cannot be read"
        f" ({getattr(error, 'strerror', None) or str(error) or 'no memory left'}); the file may be"
        " whole: try again"
    )


def _read(path: Path, what: str, most_foreign: int) -> tuple[Any, list[str]]:
    """(content, foreign classes). Each class that torch does not know is replaced by an empty
    one, and the reading begun again.
    """
    try:
        there = path.is_file()
    except OSError as error:
        raise read_error(path, error) from None
    if not there:
        raise DataError(f"{path}: no such {what}{zoo.download_hint(path)}")
    foreign: dict[str, type] = {}
    while True:
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals(
                    [(empty, name) for name, empty in foreign.items()]
                ),
            ):
                warnings.simplefilter("ignore")  # torch warns of what it then refuses
                if not foreign:
                    _check_packing(path, what)
                return torch.load(path, map_location="cpu", weights_only=True), list(foreign)
        except (OSError, MemoryError) as error:
            raise read_error(path, error) from None
        except DataError:
            raise
        # a damaged file makes torch raise many kinds, AssertionError and struct.error among them
        except Exception as error:
            if is_out_of_memory(error):
                raise read_error(path, MemoryError()) from None
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            if found is None and foreign:
                raise _foreign_code(path, next(iter(foreign))) from None
            if found is None:
                raise DataError(
                    f"{path}: not a {what} of PyTorch, or damaged ({type(error).__name__})"
                ) from None
            # torch shortens the names of builtins
            name = found[1] if "." in found[1] else f"builtins.{found[1]}"
            if (
                name in foreign
                or len(foreign) >= most_foreign + _MOST_OF_NUMPY * name.startswith("numpy.")
                or "blocked" in str(error)
            ):
                raise _foreign_code(path, found[1]) from None
            # yacs' CfgNode, mmcv's ConfigDict, EasyDict, OmegaConf's DictConfig, defaultdict
            foreign[name] = (
                _UnreadDict if re.search(r"(?i)(dict|cfgnode|dictconfig)$", name) else _Unread
            )


def _check_packing(path: Path, what: str) -> None:
    """Raise DataError where reading would take much more memory than the file has bytes, for
    torch unpacks compressed members, which its own files never have, or all of the stack.
    """
    size = path.stat().st_size
    check_memory(path, what, size)
    with open(path, "rb") as file:
        # the form before PyTorch 1.6, which nothing can be packed in
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            check_nesting(file, lambda: _nested(path, what))
            return
    with open_bounded_zip(path, plain=True) as archive:
        members = archive.infolist()
        if any(member.filename.rsplit("/", 1)[-1] in _OF_EXPORTS for member in members):
            raise DataError(
                f"{path}: holds an exported network (TorchScript or torch.export), not a {what};"
                " give the weights that it was made from"
            )
        if (
            any(
                member.compress_type or member.file_size != member.compress_size
                for member in members
            )
            or sum(member.file_size for member in members) > size
        ):
            raise DataError(
                f"{path}: not a {what} that PyTorch has written, for its members are compressed or"
                " larger than the file; do not trust it"
            )
        for member in members:
            if member.filename.endswith("data.pkl"):
                with archive.open(member) as file:
                    check_nesting(file.read(), lambda: _nested(path, what))


def _nested(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: not a {what} that PyTorch has written, for it nests tuples without end; do not"
        " trust it"
    )


def _foreign_code(path: str | Path, name: str) -> DataError:
    return DataError(
        f"{path}: holds more than tensors and plain values ({escape_name(name)}), and reading it"
        " could run a stranger's code; save its state dict alone and use that"
    )
