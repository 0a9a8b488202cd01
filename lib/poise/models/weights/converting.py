"""Convert weight files between formats, for tools/convert_weights.py."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from poise.errors import ConfigError, DataError, single_line
from poise.models.weights.families import UNKNOWN, count_keypoints, tensor_shapes
from poise.models.weights.formats import TARGETS, OutputFormat
from poise.models.weights.loading import StateDictSource, load, match_channel_order
from poise.models.weights.reading import (
    State,
    add_experiment,
    add_keypoint_names,
    read_weight_file,
    save,
)


@dataclass
class ConversionReport:
    """What was read and written.

    Args:
        source: path of the file that was read.
        target: path of the file that was written.
        what: description of the network.
        to: format that was written.
        tensors: number of tensors in `source`.
        renamed: number of tensors with another name in `target`.
        added: number of tensors only in `target`.
        dropped: number of tensors only in `source`.
        notes: what else was done.
    """

    source: str
    target: str
    what: str
    to: str
    tensors: int
    renamed: int
    added: int
    dropped: int
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        line = (
            f"{self.source}: {self.what}: {self.tensors} tensors, renamed {self.renamed}, added"
            f" {self.added}, dropped {self.dropped}"
        )
        return "; ".join([line, *self.notes, f"written as {self.to} to {self.target}"])


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    model: nn.Module | None = None,
    force: bool = False,
    experiment: str = "",
) -> ConversionReport:
    """Convert the weights of a pose network to another format.

    MSPN is written for BGR images, as in its repository, and as mmpose's MSPN for RGB.

    Args:
        source: weight file of any format that can be loaded.
        target: file to write, completely or not at all.
        to: format to write, a key of formats.TARGETS.
        model: network that the weights must fit exactly; None: that of their names.
        force: whether to replace an existing file.
        experiment: text of an experiment for files under Poise's names, if `source` has none.

    Raises DataError if the file is not of a pose network or `to` has no names for its family.
    """
    if to not in TARGETS:
        raise ConfigError(
            f"{to!r} is not a format to convert to; the formats are {', '.join(TARGETS)}"
        )
    target = Path(target)
    if target.exists() and not force:
        raise DataError(f"{target}: file exists; give --force to replace it")
    file = read_weight_file(source)
    weights = StateDictSource(file)
    state = match_channel_order(weights, None)
    if model is not None:
        weights.notes = load(model, source).notes
        state = dict(model.state_dict())
    else:
        _check_pose_network(weights, state)
    output = _output_format(to, weights)
    written = _rename(output, state, weights)
    content: Any = output.wrap(written)
    experiment = file.experiment or experiment
    if to == "poise" and experiment:
        content = OrderedDict(content)
        content._metadata = OrderedDict()
        content = add_experiment(add_keypoint_names(content, file.joints), experiment)
    save(target, content)
    num_added = max(len(written) - len(file.state), 0)
    return ConversionReport(
        str(source),
        str(target),
        weights.what or "another network",
        to,
        tensors=len(file.state),
        renamed=len(written) - len(written.keys() & file.state.keys()) - num_added,
        added=num_added,
        dropped=max(len(file.state) - len(written), 0),
        notes=weights.notes,
    )


def _check_pose_network(weights: StateDictSource, state: State) -> None:
    if weights.family is UNKNOWN:
        raise DataError(f"{weights.path}: unsupported, its network is unknown")
    if count_keypoints(weights.family, tensor_shapes(state)) is None:
        raise DataError(
            f"{weights.path}: has the weights of {weights.description}; such files are not"
            " converted, use them as MODEL.PRETRAINED"
        )


def _rename(output: OutputFormat, state: State, weights: StateDictSource) -> State:
    """Return `state` under the names of a format. Raises DataError if it is not complete."""
    try:
        return output.rename(state, weights.family)
    except (LookupError, RuntimeError, ValueError) as error:
        network = weights.description or "the network"
        raise DataError(
            f"{weights.path}: corrupt, tensors of {network} are missing or have other sizes"
            f" ({single_line(error)[:200]})"
        ) from None


def _output_format(to: str, weights: StateDictSource) -> OutputFormat:
    """Return the format `to`. Raises DataError if it has no names for the network."""
    name = weights.family.name
    if name not in TARGETS[to].families:
        supported = [other for other, output in TARGETS.items() if name in output.families]
        network = weights.description or "another network"
        raise DataError(
            f"{weights.path}: has the weights of {network}, which {to} has no names for; convert it"
            f" to {', '.join(supported)}"
        )
    return TARGETS[to]
