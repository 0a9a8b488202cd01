"""Load the weights of a file into a network, and report and check what was loaded.

Every load logs the network that the file is of and how many tensors were loaded, missing,
unexpected and mismatched. A file that does not fit raises DataError.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from poise.errors import DataError, escape_name, pluralize
from poise.io import download
from poise.models.weights import zoo
from poise.models.weights.families import (
    Family,
    Shapes,
    count_keypoints,
    describe_network,
    identify_family,
    keypoint_tensors,
    se_reduction,
    tensor_shapes,
)
from poise.models.weights.formats import (
    copy_to_stages,
    identify_format,
    resnet_to_mspn,
    strip_wrappers,
    swap_channel_order,
)
from poise.models.weights.reading import State, WeightFile, read_weight_file

log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """The result of loading a file, as names of tensors.

    Args:
        path: path of the file.
        what: network and naming of the file; '' if unknown.
        loaded: tensors of the network that were loaded.
        missing: tensors of the network that the file does not have.
        unexpected: tensors of the file that the network does not have.
        mismatched: tensors of another shape.
        replaced: layers for another number of keypoints, which keep their initial values.
        notes: what else was done to the weights.
        joints: names of the file's keypoints, if it has them.
        experiment: text of the file's experiment, or ''.
    """

    path: str
    what: str = ""
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    joints: tuple[str, ...] = ()
    experiment: str = ""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched) + len(self.replaced)
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mismatched": self.mismatched,
        }
        counts = [f"{kind} {len(names)}" for kind, names in kinds.items()]
        if self.replaced:
            counts.append(f"replaced {len(self.replaced)}")
        line = f"{self.path}: loaded {len(self.loaded)} of {total} tensors, {', '.join(counts)}"
        details = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
        if details:
            line += f" ({'; '.join(details)})"
        parts = [line, *self.notes]
        if self.what:
            parts.insert(1, f"identified as {self.what}")
        return "; ".join(parts)


def load(
    model: nn.Module,
    path: str | Path,
    *,
    optional: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    replace_head: bool = False,
    rgb: bool | None = None,
) -> LoadReport:
    """Load a weight file of any family's format into `model` and log the report.

    Args:
        model: the network; unchanged if the file does not fit.
        path: the weight file.
        optional: prefixes of tensors that may be missing. Counters of batch norms
            ('num_batches_tracked') always may: files from before PyTorch 0.4.1 have none.
        ignored: prefixes of tensors that may be unexpected.
        replace_head: if the file is for another number of keypoints, keep the network's own last
            layers instead of raising DataError.
        rgb: whether the network's input will be RGB (DATASET.COLOR_RGB) or BGR; None if unknown,
            see match_channel_order.

    Raises DataError with the counts for any other difference.
    """
    source = StateDictSource(read_weight_file(path), tensor_shapes(model.state_dict()))
    return _load_into(
        model,
        source,
        optional=optional,
        ignored=tuple(map(re.escape, ignored)),
        replace_head=replace_head,
        rgb=rgb,
    )


def load_pretrained(
    model: nn.Module,
    path: str,
    folder: str | Path = "models/pytorch/imagenet",
    *,
    replace_head: bool = False,
    rgb: bool | None = None,
) -> LoadReport | None:
    """Initialize `model` from MODEL.PRETRAINED: an ImageNet backbone or a whole pose network.

    What an ImageNet file does not have (`model.head_prefixes`) may be missing, and its classifier
    may be unexpected; the backbone must fit. If `model` has `pretrained_layers` (HRNet), only the
    parts of these names are loaded, or all if the first is '*'. If it has `pretrained_stages`
    (MSPN), an ImageNet ResNet is loaded into the 'first' stage or into 'all'.

    Args:
        model: the network.
        path: a file, an https URL, or '' to log that the network starts from random weights.
        folder: where a URL is downloaded to.
        replace_head: as for load.
        rgb: as for load.
    """
    if not path:
        log.warning("MODEL.PRETRAINED is empty: the network starts from random weights")
        return None
    if download.is_url(path):
        path = str(download.download_file(path, folder))
    if not Path(path).is_file():
        raise DataError(
            f"MODEL.PRETRAINED {path}: no such file{zoo.download_hint(path)};"
            " or give MODEL.PRETRAINED '' to start from random weights"
        )
    source = StateDictSource(read_weight_file(path), tensor_shapes(model.state_dict()))
    source.adapt_imagenet_to_mspn(model)
    optional = tuple(getattr(model, "head_prefixes", ()))
    parts = tuple(getattr(model, "pretrained_layers", ("*",)))
    if parts and parts[0] != "*":
        names = {name.split(".")[0] for name in source.network_shapes}
        optional += tuple(f"{name}." for name in names.difference(parts))
        source.select_parts(parts)
    return _load_into(
        model,
        source,
        optional=optional,
        ignored=source.family.classifier,
        replace_head=replace_head,
        rgb=rgb,
    )


class StateDictSource:
    """The weights of a file under Poise's names, for the network that will load them.

    Args:
        file: the file.
        network_shapes: names and shapes of the network; None: those of the file.

    Attributes:
        family: of the network.
        file_family: of the file.
        state: the tensors.
        joints: names of the file's keypoints, if it has them.
        order: channel order that the weights were trained with: 'rgb', or '' if unknown.
        description: type and size of the file's network.
        what: the same with its naming.
        notes: what was done to the weights, for the report.
    """

    def __init__(self, file: WeightFile, network_shapes: Shapes | None = None):
        state, others = strip_wrappers(file.state, network_shapes)
        naming = identify_format(state)
        self.path = file.path
        self.joints = file.joints
        self.experiment = file.experiment
        self.order = naming.order
        self.state: State = naming.to_poise(state)
        shapes = tensor_shapes(self.state)
        self.network_shapes = shapes if network_shapes is None else network_shapes
        self.family = identify_family(self.network_shapes)
        self.file_family = identify_family(shapes)
        self.description = self.what = describe_network(shapes)
        if self.description and naming.name:
            self.what = f"{self.description} (names of {naming.name})"
        self.notes: list[str] = []
        # a best score and the like, in every checkpoint of HRNet
        unread = [name for name in file.foreign if not name.startswith("numpy.")]
        if unread:
            self.notes.append(f"not read, because that could run code: {_some(unread)}")
        if others:
            self.notes.append(
                f"skipped {pluralize(len(others), 'tensor')} outside of the network"
                f" ({_some(others)})"
            )

    def adapt_imagenet_to_mspn(self, model: nn.Module) -> None:
        """Rename an ImageNet ResNet to the downsampling paths of an MSPN."""
        if self.family.name != "mspn":
            return
        num_stages = getattr(model, "num_stages", 1)
        stages = num_stages if getattr(model, "pretrained_stages", "first") == "all" else 1
        if self.file_family.name == "resnet":
            self.state = resnet_to_mspn(self.state, stages)
            self.order = "rgb"
        # the authors' resnet-50_rename.pth
        elif self.file_family.name == "mspn" and not any(
            ".upsample." in name for name in self.state
        ):
            self.state = copy_to_stages(self.state, stages)
        else:
            return
        where = "every stage" if stages == num_stages else "the first stage"
        self.notes.append(f"loaded into {where} (MODEL.EXTRA.PRETRAINED_STAGES)")

    def select_parts(self, parts: Iterable[str]) -> None:
        """Remove the tensors that MODEL.EXTRA.PRETRAINED_LAYERS does not name."""
        skipped = [name for name in self.state if name.split(".")[0] not in parts]
        if skipped:
            self.notes.append(
                f"skipped {pluralize(len(skipped), 'tensor')} that"
                f" MODEL.EXTRA.PRETRAINED_LAYERS does not name ({_some(skipped)})"
            )
        for name in skipped:
            del self.state[name]


def match_channel_order(source: StateDictSource, rgb: bool | None) -> State:
    """Return the tensors for the channel order of the network's input.

    MSPN is trained on BGR images with mean and standard deviation in that order
    (experiments/_base_/mspn.yaml). The weights of mmpose and torchvision were trained on RGB: with
    the input channels of the first convolution reversed the network is exactly the same. Other
    families normalize BGR images with the values of RGB, as their repositories do, so reversing
    would not be exact; a warning says what to set. If the order of a file is unknown, its tensors
    are returned unchanged.
    """
    if source.order != "rgb":
        return source.state
    if source.family.first_conv and not rgb:
        source.notes.append(
            "trained on RGB: input channels of the first convolution reversed for BGR images"
        )
        return swap_channel_order(source.state, source.family.first_conv)
    has_head = any(
        name in source.state for name in keypoint_tensors(source.family, source.network_shapes)
    )
    if rgb is False and has_head:
        log.warning(
            "%s: trained on RGB images, but DATASET.COLOR_RGB is False; set DATASET.COLOR_RGB True",
            source.path,
        )
    return source.state


def _load_into(
    model: nn.Module,
    source: StateDictSource,
    *,
    optional: tuple[str, ...],
    ignored: tuple[str, ...],
    replace_head: bool,
    rgb: bool | None,
) -> LoadReport:
    """Load `source` into `model`. optional: prefixes; ignored: patterns, see load."""
    file_shapes = tensor_shapes(source.state)
    head = _head_of_other_keypoints(source.family, file_shapes, source.network_shapes)
    state = match_channel_order(source, rgb)
    report = _compare(source, file_shapes, replaced=head if replace_head else ())
    missing = [
        name
        for name in report.missing
        if not name.startswith(optional) and not name.endswith("num_batches_tracked")
    ]
    unexpected = [
        name
        for name in report.unexpected
        if not any(re.match(pattern, name) for pattern in ignored)
    ]
    if missing or unexpected or report.mismatched:
        names_differ = bool(missing or unexpected)
        mismatched = {line.split(" ", 1)[0] for line in report.mismatched}
        only_head_differs = not names_differ and mismatched <= set(head)
        report.what = ""  # the reason contains it
        reason = _mismatch_reason(source, file_shapes, only_head_differs, names_differ)
        raise DataError(f"{report}; {reason}")
    if report.replaced:
        num_file = count_keypoints(source.family, file_shapes)
        num_network = count_keypoints(source.family, source.network_shapes)
        note = (
            f"its head is for {num_file} keypoints, the network has {num_network}: the head keeps"
            f" its initial values ({_some(report.replaced)})"
        )
        report.notes.insert(0, note)
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    log.info("%s", report)
    return report


def _compare(
    source: StateDictSource, file_shapes: Shapes, replaced: Sequence[str] = ()
) -> LoadReport:
    """Return the report of a file, before anything is loaded."""
    report = LoadReport(
        source.path,
        source.what,
        notes=source.notes,
        joints=source.joints,
        experiment=source.experiment,
    )
    for name, shape in source.network_shapes.items():
        if name in replaced:
            report.replaced.append(name)
        elif name not in file_shapes:
            report.missing.append(name)
        elif file_shapes[name] != shape:
            report.mismatched.append(
                f"{name} {file_shapes[name]} in the file, {shape} in the network"
            )
        else:
            report.loaded.append(name)
    report.unexpected = [name for name in file_shapes if name not in source.network_shapes]
    return report


def _head_of_other_keypoints(family: Family, file: Shapes, network: Shapes) -> list[str]:
    """Return the network's layers with one channel per keypoint if only their number differs.

    All of these layers must be for one number of keypoints in the network and for another in the
    file, and be equal in all other dimensions. Else the list is empty.
    """
    names = keypoint_tensors(family, network)
    required = [name for name in names if not name.endswith("num_batches_tracked")]
    num_file = count_keypoints(family, file)
    num_network = count_keypoints(family, network)
    if not required or num_file is None or num_network is None or num_file == num_network:
        return []
    if any(file.get(name) != (num_file, *network[name][1:]) for name in required):
        return []
    return names


def _mismatch_reason(
    source: StateDictSource, file: Shapes, only_head_differs: bool, names_differ: bool
) -> str:
    """Return why a file does not fit, and what to do if it is known."""
    network = describe_network(source.network_shapes)
    if only_head_differs:
        num_file = count_keypoints(source.family, file)
        num_network = count_keypoints(source.family, source.network_shapes)
        return (
            f"its head is for {num_file} keypoints, the network's for {num_network}; to fine-tune"
            " it with a new head set MODEL.REPLACE_HEAD True"
        )
    if not source.description or not network:
        return f"it has the weights of {source.description or 'another network'}"
    if source.description == network:
        difference = "layers" if names_differ else "sizes"
        return f"it has the weights of a network like {network}, but with other {difference}"
    reduction = se_reduction(file)
    is_posenas = source.file_family.name == source.family.name == "posenas"
    if is_posenas and reduction != se_reduction(source.network_shapes):
        return (
            f"it has the weights of {source.what}; set MODEL.EXTRA.SE_REDUCTION {reduction} to"
            " build that network"
        )
    return f"it has the weights of {source.what}, but the network is {network}"


def _some(names: Sequence[str]) -> str:
    """Return the first three names."""
    text = ", ".join(map(escape_name, names[:3]))
    return f"{text}, ..." if len(names) > 3 else text
