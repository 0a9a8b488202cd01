"""Put the weights of a file into a network, loudly.

Every load says what the file is and how many tensors were loaded, missing, unexpected and
mismatched, and a file that does not fit is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from poise.errors import DataError, escape_name
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


def _some(names: Sequence[str]) -> str:
    """A few of many names."""
    return (
        f"{', '.join(escape_name(name) for name in names[:3])}{', ...' if len(names) > 3 else ''}"
    )


@dataclass
class LoadReport:
    """What became of each tensor: names in the network (loaded, missing, mismatched, replaced) and
    in the file (unexpected).

    what: the network and the naming that the file was recognised by; '' where it was not. replaced:
    layers for other joints than the network's, which kept their new values. notes: what else was
    done to the weights. joints: their names, where the file tells them. experiment: the file's text
    of weights.experiment, or ''.
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
        counts = [f"{kind} {len(names)}" for kind, names in kinds.items()] + [
            f"replaced {len(self.replaced)}"
        ] * bool(self.replaced)
        line = f"{self.path}: loaded {len(self.loaded)} of {total} tensors, {', '.join(counts)}"
        details = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
        recognised = [f"recognised as {self.what}"] if self.what else []
        return "; ".join(
            [f"{line} ({'; '.join(details)})" if details else line, *recognised, *self.notes]
        )


def load(
    model: nn.Module,
    path: str | Path,
    *,
    optional: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    replace_head: bool = False,
    rgb: bool | None = None,
) -> LoadReport:
    """Copy the weights of a file of any family's format into `model` and log the report.

    optional: prefixes of tensors that the file need not have (they keep their values). ignored:
    prefixes of tensors in the file that the network need not know. replace_head: where the file is
    for another number of joints, the network keeps its own last layers instead of refusing the
    file. rgb: whether the network will see RGB images (DATASET.COLOR_RGB), or BGR; None if that is
    not known: see match_channel_order. Counters of batch norm ('num_batches_tracked') may be
    missing: files from before PyTorch 0.4.1 have none.

    Raises DataError, with the counts, for any other difference; the model is then unchanged.
    """
    return _put(
        model,
        StateDictSource(read_weight_file(path), tensor_shapes(model.state_dict())),
        optional,
        tuple(map(re.escape, ignored)),
        replace_head,
        rgb,
    )


def load_pretrained(
    model: nn.Module,
    path: str,
    folder: str | Path = "models/pytorch/imagenet",
    *,
    replace_head: bool = False,
    rgb: bool | None = None,
) -> LoadReport | None:
    """Initialise `model` from MODEL.PRETRAINED: an ImageNet backbone, or a whole pose network.

    path: a file, an https URL (kept in `folder`), or '' for none, which is said aloud. What an
    ImageNet file cannot hold (`model.head_prefixes`) may be missing and its classifier left over;
    the backbone must fit wholly. A model with `pretrained_layers` (HRNet) takes only the parts of
    those names, or all where the first is '*'; one with `pretrained_stages` (MSPN) takes an
    ImageNet ResNet into the 'first' stage or into 'all'. replace_head, rgb: as for `load`.
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
        optional += tuple(
            f"{name.split('.')[0]}." for name in source.own if name.split(".")[0] not in parts
        )
        source.keep_parts(parts)
    return _put(model, source, optional, source.family.classifier, replace_head, rgb)


class StateDictSource:
    """The weights of a file under Poise's names, for the network that is to take them.

    own: that network's names and shapes; none for whichever network the file is of. family: of that
    network; found: of the file. state: the tensors; joints: their joints' names, where the file
    tells them. order: the order of the image's channels that they were trained on, 'rgb' or ''
    where it is not known. words: the file's network in words; what: the same with its naming.
    notes: what was done, for the report.
    """

    def __init__(self, file: WeightFile, own: Shapes | None = None):
        state, others = strip_wrappers(file.state, own)
        naming = identify_format(state)
        self.path, self.notes, self.order, self.joints = file.path, [], naming.order, file.joints
        self.experiment = file.experiment
        self.state: State = naming.to_poise(state)
        shapes = tensor_shapes(self.state)
        self.own = shapes if own is None else own
        self.family, self.found = identify_family(self.own), identify_family(shapes)
        self.words = describe_network(shapes)
        self.what = (
            f"{self.words} (names of {naming.name})" if self.words and naming.name else self.words
        )
        # a best score and the like, in every checkpoint of HRNet
        unread = [name for name in file.foreign if not name.startswith("numpy.")]
        if unread:
            self.notes.append(f"not read, because that could run code: {_some(unread)}")
        if others:
            self.notes.append(
                f"left out {len(others)} tensors next to the network ({_some(others)})"
            )

    def adapt_imagenet_to_mspn(self, model: nn.Module) -> None:
        """Put an ImageNet ResNet into the ways down of an MSPN."""
        if self.family.name != "mspn":
            return
        stages = model.num_stages if model.pretrained_stages == "all" else 1
        if self.found.name == "resnet":
            self.state, self.order = resnet_to_mspn(self.state, stages), "rgb"
        # the authors' resnet-50_rename.pth
        elif self.found.name == "mspn" and not any(".upsample." in name for name in self.state):
            self.state = copy_to_stages(self.state, stages)
        else:
            return
        self.notes.append(
            f"into {'every stage' if stages == model.num_stages else 'the first stage'}"
            " (MODEL.EXTRA.PRETRAINED_STAGES)"
        )

    def keep_parts(self, parts: tuple[str, ...]) -> None:
        """Leave out what MODEL.EXTRA.PRETRAINED_LAYERS does not name."""
        left = [name for name in self.state if name.split(".")[0] not in parts]
        if left:
            self.notes.append(
                f"left out {len(left)} tensors that MODEL.EXTRA.PRETRAINED_LAYERS does not name"
                f" ({_some(left)})"
            )
            self.state = {
                name: tensor for name, tensor in self.state.items() if name.split(".")[0] in parts
            }


def _put(
    model: nn.Module,
    source: StateDictSource,
    optional: tuple[str, ...],
    ignored: tuple[str, ...],
    replace_head: bool,
    rgb: bool | None,
) -> LoadReport:
    report = LoadReport(
        source.path,
        source.what,
        notes=source.notes,
        joints=source.joints,
        experiment=source.experiment,
    )
    file_shapes = tensor_shapes(source.state)
    head = _other_joints(source.family, file_shapes, source.own)
    state = match_channel_order(source, rgb)
    for name, shape in source.own.items():
        if replace_head and name in head:
            report.replaced.append(name)
        elif name not in state:
            report.missing.append(name)
        elif file_shapes[name] != shape:
            report.mismatched.append(
                f"{name} {file_shapes[name]} in the file, {shape} in the network"
            )
        else:
            report.loaded.append(name)
    report.unexpected = [name for name in state if name not in source.own]
    bad_missing = [
        n
        for n in report.missing
        if not n.startswith(optional or ("\0",)) and not n.endswith("num_batches_tracked")
    ]
    bad_unexpected = [
        n for n in report.unexpected if not any(re.match(pattern, n) for pattern in ignored)
    ]
    if bad_missing or bad_unexpected or report.mismatched:
        head_alone = (
            not bad_missing
            and not bad_unexpected
            and {line.split(" ", 1)[0] for line in report.mismatched} <= set(head)
        )
        report.what = ""  # it is said behind the counts
        raise DataError(
            f"{report};"
            f" {_why(source, file_shapes, head_alone, bool(bad_missing or bad_unexpected))}"
        )
    if report.replaced:
        report.notes.insert(
            0,
            f"its last layers are for {count_keypoints(source.family, file_shapes)} joints, the"
            f" network has {count_keypoints(source.family, source.own)}: they start anew"
            f" ({_some(report.replaced)})",
        )
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    log.info("%s", report)
    return report


def _other_joints(family: Family, file: Shapes, own: Shapes) -> list[str]:
    """The layers that end in one channel per joint, if the file has them all for another number of
    joints and nothing else differs in them.

    The network must have one number of joints in all of them, and the file one other; sizes behind
    the first dimension must be equal.
    """
    names = keypoint_tensors(family, own)
    needed = [name for name in names if not name.endswith("num_batches_tracked")]
    theirs, ours = count_keypoints(family, file), count_keypoints(family, own)
    if not needed or theirs is None or ours is None or theirs == ours:
        return []
    if any(file.get(name) != (theirs, *own[name][1:]) for name in needed):
        return []
    return names


def match_channel_order(source: StateDictSource, rgb: bool | None) -> State:
    """The tensors for the order of channels that the network will see.

    MSPN is fed BGR, with mean and standard deviation in that order too
    (experiments/_base_/mspn.yaml), but mmpose's and torchvision's weights were trained on RGB:
    turning the first convolution's input channels round gives the same network exactly. Other
    families normalise BGR with the figures of RGB, as their repositories do, so turning would only
    be near; for them a warning says what to set. Files whose order is not known are taken as they
    are.
    """
    family, turn = source.family, bool(source.family.first_conv) and not rgb
    if source.order == "rgb" and turn:
        source.notes.append("trained on RGB: the first convolution was turned round for BGR images")
        return swap_channel_order(source.state, family.first_conv)
    if (
        source.order == "rgb"
        and rgb is False
        and any(name in source.state for name in keypoint_tensors(family, source.own))
    ):
        log.warning(
            "%s: trained on RGB images, and DATASET.COLOR_RGB is False: give DATASET.COLOR_RGB"
            " True",
            source.path,
        )
    return source.state


def _why(source: StateDictSource, file: Shapes, head_alone: bool, names_differ: bool) -> str:
    """What is wrong with a refused file, and the mend where one is known. head_alone: nothing
    but the number of joints.
    """
    words, own = source.words, describe_network(source.own)
    if head_alone:
        return (
            f"its last layers are for {count_keypoints(source.family, file)} joints, the network's"
            f" for {count_keypoints(source.family, source.own)}; to train on from it with new last"
            " layers give MODEL.REPLACE_HEAD True"
        )
    if not words or not own:
        return f"these are the weights of {words or 'another network'}"
    if words == own:
        return (
            f"these are the weights of another network, like {words}, but with other"
            f" {'layers' if names_differ else 'sizes'}"
        )
    if source.found.name == source.family.name == "posenas" and se_reduction(file) != se_reduction(
        source.own
    ):
        return (
            f"these are the weights of {source.what}; MODEL.EXTRA.SE_REDUCTION {se_reduction(file)}"
            " builds that network"
        )
    return f"these are the weights of {source.what}, and the network is {own}"
