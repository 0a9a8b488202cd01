"""Size of a network: its parameters and the operations of one image, layer by layer.

Two rules say what an operation is:
- macs: the multiply-adds of convolutions, transposed convolutions and linear layers, and nothing
  else, as HRNet, PoseNAS and most papers count. A transposed convolution multiplies each of its
  inputs with its whole kernel; HRNet's own summary multiplies each of its outputs instead, which is
  four times as much at stride 2 (lib/utils/utils.py of
  leoxiaobin/deep-high-resolution-net.pytorch).
- mmcv: what the counter of mmcv 1.x counts (mmcv/cnn/utils/flops_counter.py of open-mmlab/mmcv), by
  which MogaNet's and mmpose's tables are made: the same multiply-adds, and biases of convolutions,
  two per input of a norm, one per output of the ReLU family, one per input of a pooling module.
  GELU, SiLU, functional pooling, matrix products and layer scales are 0 there.

Nothing is computed: a network built by `build_on_meta` has shapes and no values (torch's meta
device), so that the largest takes two seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models import build_model
from poise.visualization.tables import align_columns

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRODUCTS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# mmcv looks modules up by their exact type, so nn.SyncBatchNorm and the like are 0 there
MMCV_NORMS = {
    *BATCH_NORMS,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
}
MMCV_RELUS = {nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6}
MMCV_POOLS = {
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
}


@dataclass
class Layer:
    """One module. Parameters and operations include those of the modules inside it, self_operations
    does not.

    output: (C, h, w), or () where there is no one shape.
    """

    name: str
    kind: str
    parameters: int = 0
    operations: int = 0
    self_operations: int = 0
    calls: int = 0
    output: tuple[int, ...] = ()
    layers: list[Layer] = field(default_factory=list)

    def add_up(self) -> None:
        """Give each layer the operations of the layers inside it, which may run without it: a
        ModuleList is never called.
        """
        for layer in self.layers:
            layer.add_up()
        self.operations = self.self_operations + sum(layer.operations for layer in self.layers)

    def runs(self) -> bool:
        """Whether this layer or one inside it was called."""
        return self.calls > 0 or any(layer.runs() for layer in self.layers)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Layer]]:
        """(depth, layer) of this layer and of every one inside it, in the network's order."""
        yield depth, self
        for layer in self.layers:
            yield from layer.walk(depth + 1)


@dataclass
class FlopReport:
    """What `measure` found. `unknown` counts the operations that multiply, but in no layer that
    the rule knows: their sum is missing.
    """

    network: Layer
    rule: str
    image_size: tuple[int, int]
    all_outputs: bool
    unknown: Counter[str]


def macs(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    """Multiply-adds of one call of `module`."""
    if isinstance(module, CONVOLUTIONS):
        return module.weight.numel() * output.shape[0] * math.prod(output.shape[2:])
    if isinstance(module, TRANSPOSED):
        return module.weight.numel() * inputs.shape[0] * math.prod(inputs.shape[2:])
    if isinstance(module, nn.Linear):
        return module.weight.numel() * math.prod(output.shape[:-1])
    return 0


def mmcv_operations(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    """Operations of one call of `module` by the counter of mmcv 1.x.

    One difference: mmcv takes the height twice, not height and width, for the bias of a transposed
    convolution. No published network has one.
    """
    kind = type(module)
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return macs(module, inputs, output) + (0 if module.bias is None else output.numel())
    if isinstance(module, nn.Linear):
        return macs(module, inputs, output)
    if kind in MMCV_NORMS:
        affine = getattr(module, "affine", False) or getattr(module, "elementwise_affine", False)
        return inputs.numel() * (2 if affine else 1)
    if kind in MMCV_RELUS or kind is nn.Upsample:
        return output.numel()
    return inputs.numel() if kind in MMCV_POOLS else 0


RULES: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], int]] = {
    "macs": macs,
    "mmcv": mmcv_operations,
}
RULE_TEXTS = {
    "macs": (
        "multiply-adds of convolutions, transposed convolutions and linear layers; biases, norms,"
        " activations, pooling and resizing are not counted"
    ),
    "mmcv": (
        "as mmcv 1.x: multiply-adds and biases of convolutions, 2 per input of a norm, 1 per output"
        " of a ReLU, 1 per input of a pooling module"
    ),
}


def size_overrides(cfg: CfgNode, height: int, width: int) -> list:
    """KEY, VALUE, ... that give an experiment the input size (height, width), and heatmaps in the
    same proportion to it as before.

    Raises ConfigError where that proportion gives no whole heatmap.
    """
    heatmap = []
    for new, image, cells in zip((width, height), cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE):
        if new < 1 or new * cells % image:
            step = image // math.gcd(image, cells)
            raise ConfigError(
                f"--shape {height} {width}: heatmaps of this experiment are {cells}/{image} of the"
                f" input; the sizes must be multiples of {step} above 0"
            )
        heatmap.append(new * cells // image)
    return ["MODEL.IMAGE_SIZE", [width, height], "MODEL.HEATMAP_SIZE", heatmap]


def build_on_meta(cfg: CfgNode) -> nn.Module:
    """The network of MODEL.* with shapes and no values, on torch's meta device."""
    with torch.device("meta"):
        return build_model(cfg)


@torch.no_grad()
def measure(
    model: nn.Module, image_size: tuple[int, int], *, rule: str = "macs", all_outputs: bool = False
) -> FlopReport:
    """Run `model` on one image and count.

    image_size: (width, height) in pixels. rule: a name of RULES. all_outputs: count what training
    computes, every supervised output; else what testing computes. The model may be on any device,
    with or without values, and is left as it was.
    """
    count, paths = RULES[rule], {module: name for name, module in model.named_modules()}
    layers = {
        module: Layer(name.rsplit(".", 1)[-1], type(module).__name__, _parameters(module))
        for module, name in paths.items()
    }
    for module, layer in layers.items():
        # a module in two places belongs to the first, as in named_modules
        layer.layers = [
            layers[child]
            for name, child in module.named_children()
            if paths[child] == f"{paths[module]}.{name}".lstrip(".")
        ]
    running: list[nn.Module] = []

    def begin(module: nn.Module, inputs: tuple) -> None:
        running.append(module)

    def end(module: nn.Module, inputs: tuple, output) -> None:
        running.pop()
        layer = layers[module]
        layer.calls += 1
        if isinstance(output, torch.Tensor):
            layer.output = tuple(output.shape[1:])
            if inputs and isinstance(inputs[0], torch.Tensor):
                layer.self_operations += count(module, inputs[0], output)

    modes = {module: module.training for module in model.modules()}
    handles = [
        handle
        for module in model.modules()
        for handle in (module.register_forward_pre_hook(begin), module.register_forward_hook(end))
    ]
    watch = _Watch(running, paths)
    try:
        model.train(all_outputs)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # one image has no statistics, and the running ones stay as they are
                module.eval()
        parameter = next(model.parameters())
        images = torch.zeros(
            1, 3, image_size[1], image_size[0], device=parameter.device, dtype=parameter.dtype
        )
        with watch:
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    network = layers[model]
    network.add_up()
    network.name, network.output = (
        "network",
        tuple((output if isinstance(output, torch.Tensor) else output[-1]).shape[1:]),
    )
    return FlopReport(network, rule, tuple(image_size), all_outputs, watch.unknown)


class _Watch(TorchDispatchMode):
    """Counts operations that multiply (those that torch's own flop counter knows) outside of the
    layers that the rules know.

    running: the modules being run, innermost last. paths: their names. Attention in a later
    network, or a convolution called as a function, shows up here, where hooks of modules would not
    see it.
    """

    def __init__(self, running: list[nn.Module], paths: dict[nn.Module, str]):
        super().__init__()
        self.running, self.paths, self.unknown = running, paths, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in flop_registry and not any(
            isinstance(module, PRODUCTS) for module in self.running[-1:]
        ):
            self.unknown[
                f"{func._overloadpacket.__name__} in"
                f" {self.paths[self.running[-1]] or 'the network itself'}"
            ] += 1
        return func(*args, **(kwargs or {}))


def _parameters(module: nn.Module) -> int:
    """Trainable numbers in `module`; one that is used twice counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def report(
    tested: FlopReport, trained: FlopReport, *, depth: int | None = None, all_outputs: bool = False
) -> str:
    """The table of a network and its sums, in lines for a terminal.

    tested, trained: its sizes without and with all_outputs; `all_outputs` says which of them the
    table shows. depth: levels of the module tree to show; 0: the sums alone; None: all. Modules
    with neither parameters nor operations are left out.
    """
    shown = trained if all_outputs else tested
    width, height = shown.image_size
    lines = [] if depth == 0 else [*_table(shown.network, depth), ""]
    lines += [
        f"input       3 x {height} x {width} (channels, height, width), one image",
        f"parameters  {_amount(shown.network.parameters, 'M', 6, 20)}",
    ]
    sums = {
        "to predict, as in testing": tested.network.operations,
        "of every supervised output, as in training": trained.network.operations,
    }
    if len(set(sums.values())) == 1:
        sums = {"": tested.network.operations}
    for number, (meaning, operations) in enumerate(sums.items()):
        title, colon = "" if number else "operations", ": " if meaning else ""
        lines.append(f"{title:<12}{_amount(operations, 'G', 9, 30)}{colon}{meaning}")
    lines.append(f"rule        {shown.rule}: {RULE_TEXTS[shown.rule]}")
    for mode, size in (("testing", tested), ("training", trained)):
        again = [
            f"{name} {layer.calls} times"
            for name, layer in _paths(size.network)
            if layer.calls > 1 and layer.self_operations
        ]
        if again:
            lines.append(f"run again   in {mode}: {', '.join(again)}; counted each time")
    unused = [
        (name, layer)
        for name, layer in _paths(shown.network)
        if not layer.calls and layer.parameters and not layer.layers
    ]
    if unused:
        lines.append(
            f"not run     {len(unused)} {'layer' if len(unused) == 1 else 'layers'} with"
            f" {sum(layer.parameters for _, layer in unused):,} of the parameters, {unused[0][0]}"
            " the first"
        )
    for operation, times in shown.unknown.items():
        lines.append(
            f"WARNING     not counted: {operation} ({times} {'time' if times == 1 else 'times'});"
            " the operations are more than this"
        )
    return "\n".join(lines)


def _paths(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    for inner in layer.layers:
        yield f"{prefix}{inner.name}", inner
        yield from _paths(inner, f"{prefix}{inner.name}.")


def _table(network: Layer, depth: int | None) -> list[str]:
    rows = [("layer", "type", "parameters", "share", "operations", "share", "output")]
    for level, layer in network.walk():
        if (depth is not None and level > depth) or not (layer.parameters or layer.operations):
            continue
        output = " x ".join(map(str, layer.output)) if layer.runs() else "not run"
        output += f", {layer.calls} times" if layer.calls > 1 else ""
        rows.append(
            (
                f"{'  ' * level}{layer.name}",
                layer.kind,
                f"{layer.parameters:,}",
                _share(layer.parameters, network.parameters),
                f"{layer.operations:,}",
                _share(layer.operations, network.operations),
                output,
            )
        )
    return align_columns(rows, right=(2, 3, 4, 5)).splitlines()


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _amount(value: int, letter: str, ten: int, two: int) -> str:
    return (
        f"{value:,} = {value / 10**ten:.2f} {letter} (10^{ten}) = {value / 2**two:.2f} {letter}i"
        f" (2^{two})"
    )
