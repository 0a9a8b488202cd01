"""Read and write files of torch.save without running code of a file.

Files are read with torch.load(weights_only=True), which makes tensors and plain values only.
Published checkpoints have other objects too: HRNet's a NumPy number next to the weights, mmpose's
NumPy arrays and the loggers of mmengine, timm's the arguments of the command line. An empty
placeholder replaces each of these, so that the weights can be read.
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

# keys of a state dict in a checkpoint: of HRNet, mmcv, timm; MSPN, detectron2
_WRAPPERS = ("state_dict", "model", "model_state_dict")
AVERAGED = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel
_JOINTS, _EXPERIMENT = "poise.joints", "poise.experiment"  # keys of a state dict's _metadata
_MAX_PLACEHOLDERS = 64  # each has the file read once more
_MAX_NUMPY_PLACEHOLDERS = 16  # more for classes of NumPy
_MAX_EXPERIMENT_LENGTH = 1 << 18  # characters
_MAX_NAME_LENGTH = 1000  # of a tensor
_MAX_SHARED_BYTES = 1 << 30  # of a tensor whose values share memory
_PROBE_BYTES = 1 << 20  # more than a block of a disk
# members of TorchScript's and torch.export's files
_EXPORT_MEMBERS = ("constants.pkl", "archive_format", "serialized_exported_program.json")
_TORCH_WRITE_ERROR = re.compile("inline_container|PytorchStreamWriter|iostream error")
# yacs' CfgNode, mmcv's ConfigDict, EasyDict, OmegaConf's DictConfig, defaultdict
_DICT_CLASS = re.compile(r"(?i)(dict|cfgnode|dictconfig)$")

State = dict[str, torch.Tensor]


@dataclass
class WeightFile:
    """The content of a weight file.

    Args:
        path: path of the file.
        state: tensors under the file's names, without 'module.'.
        foreign: classes of objects that were not read.
        joints: names of the keypoints, see add_keypoint_names.
        experiment: text of the experiment, see add_experiment.
    """

    path: str
    state: State
    foreign: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    experiment: str = ""


class WeightReadError(DataError):
    """The system failed to read a file that may be intact.

    Examples: a disk that is not available for a moment, too many open files, no memory.
    """


class _Placeholder:
    """Stands for an object of an unknown class; its content is dropped."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _DictPlaceholder(_Placeholder):
    """The same for kinds of dict, whose items are set one by one."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def read_state_dict(path: str | Path) -> State:
    """Return the state dict of a file, see read_weight_file."""
    return read_weight_file(path).state


def read_weight_file(path: str | Path) -> WeightFile:
    """Read a file of torch.save or safetensors with a state dict.

    The state dict may be in a dict as 'state_dict', 'model' or 'model_state_dict'. What
    DataParallel, DistributedDataParallel, AveragedModel and torch.compile add to names is removed.

    Raises DataError if the file is missing, is not a weight file, or has weights that cannot be
    read without running code.
    """
    path = Path(path)
    content: Any
    foreign: list[str] = []
    if _is_safetensors(path):
        content = _read_safetensors(path)
    else:
        content, foreign = _read(path, "weight file", _MAX_PLACEHOLDERS)
    content = _unwrap(content)
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        if foreign:
            raise _foreign_code(path, foreign[0])
        raise DataError(f"{path}: holds no state dict (names and tensors)")
    state: State = {}
    for key, tensor in content.items():
        name = _strip_prefixes(str(key))
        if len(name) > _MAX_NAME_LENGTH:
            raise DataError(
                f"{path}: holds a tensor with a name of {len(name)} letters,"
                f" {escape_name(name, 40)}, which no network has"
            )
        if name in state:
            raise DataError(f"{path}: holds {escape_name(name)} twice, with and without 'module.'")
        if not is_plain(tensor):
            raise DataError(
                f"{path}: {escape_name(name)} is not a plain tensor (sparse, quantized, without"
                " memory, or of more values than the file holds)"
            )
        state[name] = tensor
    if AVERAGED in state and is_averaging_counter(content):
        del state[AVERAGED]
    joints, experiment = _read_metadata(content)
    return WeightFile(str(path), state, tuple(foreign), joints, experiment)


def _unwrap(content: Any) -> Any:
    """Return the state dict of a checkpoint; it may be wrapped twice: {"model": {"state_dict"}}."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            return content
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return content
        content = inner[0]
    return content


def _strip_prefixes(name: str) -> str:
    """Return a tensor's name without the wrappers: `_orig_mod.` anywhere, leading `module.`."""
    return re.sub(r"\A(?:module\.)+", "", re.sub(r"(?<![^.])_orig_mod\.", "", name))


def is_averaging_counter(names: Iterable[Any]) -> bool:
    """Return whether n_averaged is AveragedModel's, outside of its `module.`, or the network's."""
    wrappers = {_strip_prefixes(name): name.count("module.") for name in map(str, names)}
    counter = wrappers.pop(AVERAGED)
    return bool(wrappers) and counter < min(wrappers.values())


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins as those of safetensors: length of a JSON header, header."""
    try:
        if not path.is_file():  # opening a named pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            has_header = file.read(1) == b"{" and header_length <= path.stat().st_size
        return path.suffix == ".safetensors" or has_header
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


def add_keypoint_names(state: Any, names: Sequence[str]) -> Any:
    """Add the names of the keypoints to a network's state_dict().

    They are in the `_metadata` that every state_dict() has next to PyTorch's version numbers, so
    the saved file stays a plain state dict for other programs.
    """
    state._metadata[_JOINTS] = list(names)
    return state


def add_experiment(state: Any, text: str) -> Any:
    """Add the text of an experiment to a network's state_dict()."""
    state._metadata[_EXPERIMENT] = text
    return state


def _read_metadata(content: Any) -> tuple[tuple[str, ...], str]:
    """Return the keypoint names and the experiment of a state dict; () and '' if invalid."""
    metadata = getattr(content, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return (), ""
    names = metadata.get(_JOINTS)
    if (
        not isinstance(names, list)
        or len(names) > MAX_JOINTS
        or not all(isinstance(name, str) for name in names)
    ):
        names = []
    text = metadata.get(_EXPERIMENT)
    if not isinstance(text, str) or len(text) > _MAX_EXPERIMENT_LENGTH:
        text = ""
    return tuple(names), text


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has memory for its values.

    A few bytes of a file can define a tensor whose million rows share memory.
    """
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
    ):
        return False
    max_bytes = max(tensor.untyped_storage().nbytes(), _MAX_SHARED_BYTES)
    return tensor.numel() * tensor.element_size() <= max_bytes


def read_tensors(path: str | Path, what: str) -> Any:
    """Return the tensors and plain values in a file of torch.save; NumPy's objects are empty.

    what: description of the file for the DataError.
    """
    return _read(Path(path), what, 0)[0]


def save(path: str | Path, content: Any) -> None:
    """Write a file of torch.save atomically. Raises DataError if it cannot be written."""
    with atomic_write(path) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:
            _try_writing(part)  # torch does not say why a write failed
            first: BaseException = error  # closing the file fails too, and hides what came before
            while isinstance(first.__context__, RuntimeError):
                first = first.__context__
            if not _TORCH_WRITE_ERROR.search(str(first)):
                raise first from None
            raise DataError(
                f"{path}: cannot be written ({single_line(error)}); the file before it, if any, is"
                " kept"
            ) from None


def _try_writing(path: Path) -> None:
    """Raise the system's OSError if the file cannot grow, as on a full disk."""
    with open(path, "ab") as file:
        file.write(bytes(_PROBE_BYTES))


def read_error(path: str | Path, error: OSError | MemoryError) -> WeightReadError:
    """Return the exception for a failure of the system."""
    reason = getattr(error, "strerror", None) or str(error) or "no memory left"
    return WeightReadError(f"{path}: cannot be read ({reason}); the file may be whole: try again")


def _read(path: Path, what: str, max_placeholders: int) -> tuple[Any, list[str]]:
    """Return the content of a file and the classes that placeholders replace.

    torch names one unknown class at a time, so each has the file read once more.
    """
    try:
        exists = path.is_file()
    except OSError as error:
        raise read_error(path, error) from None
    if not exists:
        raise DataError(f"{path}: no such {what}{zoo.download_hint(path)}")
    placeholders: dict[str, type] = {}
    while True:
        try:
            if not placeholders:
                _check_archive(path, what)
            return _load_plain(path, placeholders), list(placeholders)
        except (OSError, MemoryError) as error:
            raise read_error(path, error) from None
        except DataError:
            raise
        # a corrupt file makes torch raise many kinds, AssertionError and struct.error among them
        except Exception as error:
            if is_out_of_memory(error):
                raise read_error(path, MemoryError()) from None
            match = re.search(r"GLOBAL ([\w.]+)", str(error))
            if match is None and not placeholders:
                raise DataError(
                    f"{path}: not a {what} of PyTorch, or damaged ({type(error).__name__})"
                ) from None
            shown_name = match[1] if match else next(iter(placeholders))
            # torch shortens the names of builtins
            name = shown_name if "." in shown_name else f"builtins.{shown_name}"
            max_count = max_placeholders + _MAX_NUMPY_PLACEHOLDERS * name.startswith("numpy.")
            is_blocked = "blocked" in str(error)
            if name in placeholders or len(placeholders) >= max_count or is_blocked:
                raise _foreign_code(path, shown_name) from None
            is_dict = _DICT_CLASS.search(name) is not None
            placeholders[name] = _DictPlaceholder if is_dict else _Placeholder


def _load_plain(path: Path, placeholders: Mapping[str, type]) -> Any:
    replaced: list[Any] = [(placeholder, name) for name, placeholder in placeholders.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals(replaced):
        warnings.simplefilter("ignore")  # torch warns of what it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path, what: str) -> None:
    """Raise DataError if reading a file would take much more memory than its size.

    torch unpacks compressed members, which its own files never have, and may use all of the stack.
    """

    def nested() -> DataError:
        return DataError(
            f"{path}: not a {what} that PyTorch has written, for it nests tuples without end; do"
            " not trust it"
        )

    size = path.stat().st_size
    check_memory(path, what, size)
    with open(path, "rb") as file:
        # the format before PyTorch 1.6, which has no compression
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            check_nesting(file, nested)
            return
    with open_bounded_zip(path, plain=True) as archive:
        members = archive.infolist()
        if any(member.filename.rsplit("/", 1)[-1] in _EXPORT_MEMBERS for member in members):
            raise DataError(
                f"{path}: holds an exported network (TorchScript or torch.export), not a {what};"
                " give the weights that it was made from"
            )
        compressed = [m for m in members if m.compress_type or m.file_size != m.compress_size]
        if compressed or sum(member.file_size for member in members) > size:
            raise DataError(
                f"{path}: not a {what} that PyTorch has written, for its members are compressed or"
                " larger than the file; do not trust it"
            )
        for member in members:
            if member.filename.endswith("data.pkl"):
                with archive.open(member) as pickle:
                    check_nesting(pickle.read(), nested)


def _foreign_code(path: str | Path, name: str) -> DataError:
    return DataError(
        f"{path}: holds more than tensors and plain values ({escape_name(name)}), and reading it"
        " could run untrusted code; save its state dict alone and use that"
    )
