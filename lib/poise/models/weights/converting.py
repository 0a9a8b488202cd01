"""Whole weight files of one format in another: what tools/convert_weights.py does."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from poise.errors import ConfigError, DataError, single_line
from poise.models.weights.families import UNKNOWN, count_keypoints, tensor_shapes
from poise.models.weights.formats import TARGETS
from poise.models.weights.loading import StateDictSource, load, match_channel_order
from poise.models.weights.reading import add_experiment, add_keypoint_names, read_weight_file, save


@dataclass
class ConversionReport:
    """What was read and written. renamed: tensors whose names differ; added, dropped: those that
    one side has and the other has not.
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
    """Write the pose weights of `source`, of any format that can be loaded, to `target` in the
    format `to`, a key of formats.TARGETS.

    model: the network that the weights must fit exactly; without it they are taken for what their
    names say. experiment: a text of weights.experiment for files under Poise's names, where
    `source` has none. The file appears whole or not at all, and an old one is replaced only with
    `force`. Weights of MSPN are written for BGR images, as its repository has them, and as mmpose's
    for RGB. Raises DataError for a file that is no pose network or whose family `to` has no names
    for.
    """
    if to not in TARGETS:
        raise ConfigError(
            f"{to!r} is not a format to convert to; the formats are {', '.join(TARGETS)}"
        )
    target = Path(target)
    if target.exists() and not force:
        raise DataError(f"{target}: is there already; give --force to replace it")
    file = read_weight_file(source)
    found = StateDictSource(file)
    state = match_channel_order(found, None)
    family = found.family
    if model is not None:
        found.notes = load(model, source).notes
        state = dict(model.state_dict())
    elif family is UNKNOWN:
        raise DataError(f"{source}: these are the weights of no network that Poise knows")
    elif count_keypoints(family, tensor_shapes(state)) is None:
        raise DataError(
            f"{source}: these are the weights of {found.words}; such weights are not converted,"
            " they load as MODEL.PRETRAINED"
        )
    format_ = TARGETS[to]
    if family.name not in format_.families:
        able = [name for name, other in TARGETS.items() if family.name in other.families]
        raise DataError(
            f"{source}: these are the weights of {found.words or 'another network'}, for which {to}"
            f" has no names; they can be converted to {', '.join(able)}"
        )
    try:
        written = format_.rename(state, family)
    except (LookupError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{source}: these are the weights of {found.words or 'another network'}, but not all of"
            f" them, or of other sizes than such a network has ({single_line(error)[:200]})"
        ) from None
    content = format_.wrap(written)
    if to == "poise" and (file.experiment or experiment):
        content = OrderedDict(content)
        content._metadata = OrderedDict()
        content = add_experiment(
            add_keypoint_names(content, file.joints), file.experiment or experiment
        )
    save(target, content)
    kept = len(written.keys() & file.state.keys())
    fewer, more = max(len(file.state) - len(written), 0), max(len(written) - len(file.state), 0)
    return ConversionReport(
        str(source),
        str(target),
        found.what or "another network",
        to,
        tensors=len(file.state),
        renamed=len(written) - kept - more,
        added=more,
        dropped=fewer,
        notes=found.notes,
    )
