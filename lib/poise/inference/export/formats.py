"""Write and run exported files. FORMATS maps --format to suffix, writer and reader."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from poise.errors import ConfigError, DataError
from poise.inference.export import metadata
from poise.inference.export.graph import IMAGES, Graph

OPSET = 18  # ONNX version that PyTorch's exporter writes without conversion
_BATCH = "batch"
Run = Callable[[np.ndarray], list[np.ndarray]]


class Format(NamedTuple):
    """An export format.

    Attributes:
        ending: suffix of the file name.
        needs: required packages of the extra 'onnx'.
        write: called with graph, example input, path and metadata.
        read: returns a function that runs the file at a path.
    """

    ending: str
    needs: tuple[str, ...]
    write: Callable[[Graph, torch.Tensor, Path, str], None]
    read: Callable[[Path], Run]


def require_packages(names: tuple[str, ...], use: str) -> None:
    """Raise ConfigError if one of the packages cannot be imported."""
    import importlib

    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{use} needs {name} ({error}); install Poise's extra: pip install 'poise[onnx]'"
            ) from None


def _write_onnx(graph: Graph, example: torch.Tensor, path: Path, text: str) -> None:
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            input_names=[IMAGES],
            output_names=graph.output_names,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim(_BATCH)},),
            verbose=False,
        )
        assert program is not None, "torch.onnx.export without a file returns the program"
        # remove source locations, which contain paths of this machine
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.model.metadata_props[metadata.KEY] = text
        program.save(str(path), external_data=False)


def _read_onnx(path: Path) -> Run:
    session = onnx_session(path, torch.device("cpu"))
    return lambda images: session.run(None, {IMAGES: images})


def onnx_session(path: str | os.PathLike, device: torch.device) -> Any:
    """Return an onnxruntime.InferenceSession. Raises DataError for a file that it cannot run."""
    require_packages(("onnxruntime",), f"{path}: running it")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only; problems of a file are reported below
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ConfigError(
                f"{path}: this onnxruntime cannot use {device}; install onnxruntime-gpu, or set"
                " device cpu"
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's classes have no common base
        raise DataError(
            f"{path}: onnxruntime cannot run this file ({str(error).strip().splitlines()[0][:200]})"
        ) from None


def _write_torchscript(graph: Graph, example: torch.Tensor, path: Path, text: str) -> None:
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(graph, (example,), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={f"{metadata.KEY}.json": text})


def _read_torchscript(path: Path) -> Run:
    with _quiet():
        return _torch_run(torch.jit.load(str(path), map_location="cpu"))


def _write_torch_export(graph: Graph, example: torch.Tensor, path: Path, text: str) -> None:
    with _quiet():
        program = torch.export.export(
            graph, (example,), dynamic_shapes=({0: torch.export.Dim(_BATCH)},)
        )
        for node in program.graph.nodes:  # as in ONNX
            node.meta.pop("stack_trace", None)
        # torch.export.save requires paths that end in .pt2; that of a partial file does not
        with open(path, "wb") as file:
            torch.export.save(program, file, extra_files={f"{metadata.KEY}.json": text})


def _read_torch_export(path: Path) -> Run:
    with _quiet():
        return _torch_run(torch.export.load(io.BytesIO(path.read_bytes())).module())


def _torch_run(module: Any) -> Run:
    @torch.no_grad()
    def run(images: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in module(torch.from_numpy(images))]

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and log lines of the exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
    "torchscript": Format(".torchscript", (), _write_torchscript, _read_torchscript),
    "torch_export": Format(".pt2", (), _write_torch_export, _read_torch_export),
}
