"""Count the parameters and operations of a network for one image, layer by layer.

There are two rules of what an operation is:
- macs: multiply-adds of convolutions, transposed convolutions and linear layers, as HRNet, PoseNAS
  and most papers count. A transposed convolution multiplies each input with its whole kernel.
  HRNet's summary multiplies each output instead, four times as much at stride 2 (lib/utils/utils.py
  of leoxiaobin/deep-high-resolution-net.pytorch).
- mmcv: the counter of mmcv 1.x (mmcv/cnn/utils/flops_counter.py of open-mmlab/mmcv), used for the
  tables of MogaNet and mmpose: the same multiply-adds, biases of convolutions, two per input of a
  norm, one per output of the ReLU family and one per input of a pooling module. GELU, SiLU,
  functional pooling, matrix products and layer scales count 0.

A network of poise.models.build_on_meta has shapes without values, so nothing is computed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from poise.errors import pluralize
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
    """One module of a network.

    Args:
        name: last part of its path in the network.
        kind: name of its class.
        parameters: number of trainable values, including those of its submodules.
        operations: including those of its submodules.
        self_operations: without those of its submodules.
        calls: how often it ran.
        output: (C, h, w), or () if its output is not one tensor.
        layers: its submodules.
    """

    name: str
    kind: str
    parameters: int = 0
    operations: int = 0
    self_operations: int = 0
    calls: int = 0
    output: tuple[int, ...] = ()
    layers: list[Layer] = field(default_factory=list)

    def sum_operations(self) -> None:
        """Set `operations`. Submodules may run without their module, as those of a ModuleList."""
        for layer in self.layers:
            layer.sum_operations()
        self.operations = self.self_operations + sum(layer.operations for layer in self.layers)

    def has_run(self) -> bool:
        """Return whether the module or one of its submodules was called."""
        return self.calls > 0 or any(layer.has_run() for layer in self.layers)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Layer]]:
        """Yield (depth, layer) of the module and all its submodules, in the network's order."""
        yield depth, self
        for layer in self.layers:
            yield from layer.walk(depth + 1)


@dataclass
class FlopReport:
    """The size of a network.

    Args:
        network: the network and its layers.
        rule: name of RULES.
        image_size: (width, height) in pixels.
        all_outputs: whether every supervised output was computed, as in training.
        unknown: products in no layer that the rule counts -> their number. They are not in the
            sums.
    """

    network: Layer
    rule: str
    image_size: tuple[int, int]
    all_outputs: bool
    unknown: Counter[str]


def macs(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    """Return the multiply-adds of one call of `module`."""
    if isinstance(module, CONVOLUTIONS):
        return module.weight.numel() * output.shape[0] * math.prod(output.shape[2:])
    if isinstance(module, TRANSPOSED):
        return module.weight.numel() * inputs.shape[0] * math.prod(inputs.shape[2:])
    if isinstance(module, nn.Linear):
        return module.weight.numel() * math.prod(output.shape[:-1])
    return 0


def mmcv_operations(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    """Return the operations of one call of `module` by the rule of mmcv 1.x.

    One difference: for the bias of a transposed convolution mmcv takes the height twice instead of
    height and width. No published network has one.
    """
    if isinstance(module, PRODUCTS):
        operations = macs(module, inputs, output)
        if module.bias is not None and not isinstance(module, nn.Linear):
            operations += output.numel()
        return operations
    kind = type(module)
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


@torch.no_grad()
def measure(
    model: nn.Module,
    image_size: Sequence[int],
    *,
    rule: str = "macs",
    all_outputs: bool = False,
) -> FlopReport:
    """Run a network on one image and count its operations.

    Args:
        model: on any device, with or without values. It is left unchanged.
        image_size: (width, height) in pixels.
        rule: name of RULES.
        all_outputs: count every supervised output, as in training, else the prediction only.
    """
    layers = _build_layers(model)
    watch = _ProductWatch({module: name for name, module in model.named_modules()})
    count = RULES[rule]

    def record(module: nn.Module, inputs: tuple, output: Any) -> None:
        layer = layers[module]
        layer.calls += 1
        if isinstance(output, torch.Tensor):
            layer.output = tuple(output.shape[1:])
            if inputs and isinstance(inputs[0], torch.Tensor):
                layer.self_operations += count(module, inputs[0], output)

    width, height = image_size
    parameter = next(model.parameters())
    images = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    with _hooks(model, watch, record), _mode(model, all_outputs), watch:
        output = model(images)
    prediction = output if isinstance(output, torch.Tensor) else output[-1]
    network = layers[model]
    network.sum_operations()
    network.name = "network"
    network.output = tuple(prediction.shape[1:])
    return FlopReport(network, rule, (width, height), all_outputs, watch.unknown)


class _ProductWatch(TorchDispatchMode):
    """Counts products (operations of torch's flop counter) outside of the layers of PRODUCTS.

    Attention or a convolution that is called as a function is found here, where hooks of modules
    do not see it.

    Args:
        paths: the network's modules -> their names.
    """

    def __init__(self, paths: dict[nn.Module, str]):
        super().__init__()
        self.running: list[nn.Module] = []  # innermost last
        self.paths = paths
        self.unknown: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operation = func._overloadpacket
        if operation in flop_registry and not isinstance(self.running[-1], PRODUCTS):
            path = self.paths[self.running[-1]] or "the network itself"
            self.unknown[f"{operation.__name__} in {path}"] += 1
        return func(*args, **(kwargs or {}))


def _build_layers(model: nn.Module) -> dict[nn.Module, Layer]:
    """Return the Layer of each module. A module in two places belongs to the first."""
    paths = {module: name for name, module in model.named_modules()}
    layers = {}
    for module, path in paths.items():
        # a parameter that is used twice counts once
        trainable = [p.numel() for p in module.parameters() if p.requires_grad]
        name = path.rsplit(".", 1)[-1]
        layers[module] = Layer(name, type(module).__name__, sum(trainable))
    for module, layer in layers.items():
        layer.layers = [
            layers[child]
            for name, child in module.named_children()
            if paths[child] == f"{paths[module]}.{name}".lstrip(".")
        ]
    return layers


@contextmanager
def _hooks(
    model: nn.Module, watch: _ProductWatch, record: Callable[[nn.Module, tuple, Any], None]
) -> Iterator[None]:
    """Call `record` after each module of the network, and keep the list of running modules."""

    def enter(module: nn.Module, inputs: tuple) -> None:
        watch.running.append(module)

    def leave(module: nn.Module, inputs: tuple, output: Any) -> None:
        watch.running.pop()
        record(module, inputs, output)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _mode(model: nn.Module, all_outputs: bool) -> Iterator[None]:
    """Set train mode for all outputs, else eval mode, and restore the modes afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.train(all_outputs)
    for module in modes:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # one image has no statistics, and the running ones must not change
            module.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def report(
    tested: FlopReport,
    trained: FlopReport,
    *,
    depth: int | None = None,
    all_outputs: bool = False,
) -> str:
    """Return the table of a network and its sums as lines for a terminal.

    Args:
        tested: size without all_outputs.
        trained: size with all_outputs.
        depth: levels of the module tree in the table; 0: no table; None: all. Modules without
            parameters and operations are left out.
        all_outputs: whether the table shows `trained`, else `tested`.
    """
    size = trained if all_outputs else tested
    width, height = size.image_size
    lines = [] if depth == 0 else [*_table(size.network, depth), ""]
    lines += [
        f"input       3 x {height} x {width} (channels, height, width), one image",
        f"parameters  {_amount(size.network.parameters, 'M', 6, 20)}",
    ]
    num_tested, num_trained = tested.network.operations, trained.network.operations
    if num_tested == num_trained:
        lines.append(f"operations  {_amount(num_tested, 'G', 9, 30)}")
    else:
        lines.append(f"operations  {_amount(num_tested, 'G', 9, 30)}: to predict, as in testing")
        lines.append(
            f"            {_amount(num_trained, 'G', 9, 30)}: of every supervised output, as in"
            " training"
        )
    lines.append(f"rule        {size.rule}: {RULE_TEXTS[size.rule]}")
    for mode, counted in (("testing", tested), ("training", trained)):
        repeated = [
            f"{name} {layer.calls} times"
            for name, layer in _paths(counted.network)
            if layer.calls > 1 and layer.self_operations
        ]
        if repeated:
            lines.append(f"run again   in {mode}: {', '.join(repeated)}; counted each time")
    unused = {
        name: layer.parameters
        for name, layer in _paths(size.network)
        if not layer.calls and layer.parameters and not layer.layers
    }
    if unused:
        lines.append(
            f"not run     {pluralize(len(unused), 'layer')} with {sum(unused.values()):,} of the"
            f" parameters, {next(iter(unused))} the first"
        )
    for operation, times in size.unknown.items():
        lines.append(
            f"WARNING     not counted: {operation} ({pluralize(times, 'time')});"
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
        output = "not run"
        if layer.has_run():
            output = " x ".join(map(str, layer.output))
        if layer.calls > 1:
            output += f", {layer.calls} times"
        rows.append(
            (
                f"{'  ' * level}{layer.name}",
                layer.kind,
                f"{layer.parameters:,}",
                _percentage(layer.parameters, network.parameters),
                f"{layer.operations:,}",
                _percentage(layer.operations, network.operations),
                output,
            )
        )
    return align_columns(rows, right=(2, 3, 4, 5)).splitlines()


def _percentage(part: int, total: int) -> str:
    return f"{100 * part / total:.2f} %" if total else "-"


def _amount(value: int, letter: str, ten: int, two: int) -> str:
    return (
        f"{value:,} = {value / 10**ten:.2f} {letter} (10^{ten}) = {value / 2**two:.2f} {letter}i"
        f" (2^{two})"
    )
