"""Read weight files of every family into a network, loudly.

Files are read with torch.load(weights_only=True): no code of a stranger's file is run. Every load says how many tensors were
loaded, missing, unexpected and mismatched, and a file that does not fit is refused.
"""
from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from poise import download
from poise.errors import DataError

log = logging.getLogger(__name__)

# a NumPy number, as HRNet and SimpleBaseline keep their best score in a checkpoint: bytes and a type, no code
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_NUMBER = [(_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"), np.dtype,
                 *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))]
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_IMAGENET = {
    "resnet18-5c106cde": "https://download.pytorch.org/models/",
    "resnet34-333f7ec4": "https://download.pytorch.org/models/",
    "resnet50-19c8e357": "https://download.pytorch.org/models/",
    "resnet101-5d3b4d8f": "https://download.pytorch.org/models/",
    "resnet152-b121ed2d": "https://download.pytorch.org/models/",
    "res2net50_26w_4s-06e79181": "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/",
    "res2net101_26w_4s-02a759a1": "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/",
    "res2net50_v1b_26w_4s-3cf99910": "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/",
    "res2net101_v1b_26w_4s-0812c246": "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/",
}


@dataclass
class LoadReport:
    """What became of each tensor: names in the network (loaded, missing, mismatched) and in the file (unexpected)."""

    path: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        line = (f"{self.path}: loaded {len(self.loaded)} of {total} tensors, missing {len(self.missing)}, "
                f"unexpected {len(self.unexpected)}, mismatched {len(self.mismatched)}")
        details = [f"{kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
                   for kind, names in (("missing", self.missing), ("unexpected", self.unexpected), ("mismatched", self.mismatched)) if names]
        return f"{line} ({'; '.join(details)})" if details else line


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a .pth file: bare, wrapped ('state_dict', 'model') or a Poise checkpoint; 'module.' is stripped.

    Raises DataError when the file is missing, is not a weight file, or needs code to be run to be read.
    """
    content = read_tensors(path, "weight file")
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise DataError(f"{path}: holds no state dict (names and tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def read_tensors(path: str | Path, what: str) -> Any:
    """The content of a file of torch.save: tensors and plain values. `what` goes into the DataError where it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such {what}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_NUMBER):
            warnings.simplefilter("ignore")     # torch warns of what it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # a damaged file makes torch raise many kinds, AssertionError and struct.error among them
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise DataError(f"{path}: holds more than tensors and plain values ({code.group(1)}), and reading it could run a stranger's code; "
                            "save its state dict alone and use that") from None
        raise DataError(f"{path}: not a {what} of PyTorch, or damaged ({type(error).__name__})") from None


def load(model: nn.Module, path: str | Path, *, optional: tuple[str, ...] = (), ignored: tuple[str, ...] = ()) -> LoadReport:
    """Copy the weights of a file into `model` and log the report.

    optional: prefixes of tensors that the file need not have (they keep their values). ignored: prefixes of tensors in the
    file that the network need not know. Counters of batch norm ('num_batches_tracked') may be missing: files from before
    PyTorch 0.4.1 have none. Raises DataError, with the counts, for any other difference; the model is then unchanged.
    """
    file_state, own = read_state_dict(path), model.state_dict()
    report = LoadReport(str(path))
    for name, tensor in own.items():
        if name not in file_state:
            report.missing.append(name)
        elif file_state[name].shape != tensor.shape:
            report.mismatched.append(f"{name} {tuple(file_state[name].shape)} in the file, {tuple(tensor.shape)} in the network")
        else:
            report.loaded.append(name)
    report.unexpected = [name for name in file_state if name not in own]
    bad_missing = [n for n in report.missing if not n.startswith(optional or ("\0",)) and not n.endswith("num_batches_tracked")]
    bad_unexpected = [n for n in report.unexpected if not n.startswith(ignored or ("\0",))]
    if bad_missing or bad_unexpected or report.mismatched:
        raise DataError(f"{report}; these are the weights of another network")
    model.load_state_dict({name: file_state[name] for name in report.loaded}, strict=False)
    log.info("%s", report)
    return report


def load_pretrained(model: nn.Module, path: str, folder: str | Path = "models/pytorch/imagenet") -> LoadReport | None:
    """Initialise `model` from MODEL.PRETRAINED: an ImageNet backbone, or a whole pose network.

    path: a file, an https URL (kept in `folder`), or '' for none, which is said aloud. What belongs to the model's head
    (`model.head_prefixes`) may be missing and a classifier ('fc.') left over; the backbone must fit wholly.
    """
    if not path:
        log.warning("MODEL.PRETRAINED is empty: the network starts from random weights")
        return None
    if download.is_url(path):
        path = str(download.fetch(path, folder))
    if not Path(path).is_file():
        base = _IMAGENET.get(Path(path).stem)
        source = f"; it can be fetched from {base}{Path(path).name}" if base else ""
        raise DataError(f"MODEL.PRETRAINED {path}: no such file{source}; or give MODEL.PRETRAINED '' to start from random weights")
    return load(model, path, optional=getattr(model, "head_prefixes", ()), ignored=("fc.",))
