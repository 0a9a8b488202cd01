"""Export networks as ONNX, TorchScript and torch.export files, verified against the network.

graph     the exported module: fused network, optional normalization, flip test and decoding
formats   write and run the files
metadata  what a file says about itself
parity    compare the outputs of a file with those of the network
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from poise.codecs import build_codec
from poise.engine.trained_weights import load_trained_weights
from poise.errors import ConfigError, DataError
from poise.inference.export import metadata, parity
from poise.inference.export.formats import FORMATS, require_packages
from poise.inference.export.graph import ExportOptions, Graph
from poise.io.files import atomic_write
from poise.models import build_model

log = logging.getLogger(__name__)


def export(
    cfg: CfgNode,
    file: str | Path,
    out: str | Path,
    format: str = "onnx",
    options: ExportOptions | None = None,
    *,
    images: Sequence[str | Path] = (),
) -> list[parity.Parity]:
    """Export the network of an experiment, for any batch size, and verify the file.

    Args:
        cfg: the experiment.
        file: its weights.
        out: file to write. It is replaced only if the exported file is equal to the network.
        format: a key of FORMATS.
        options: what the graph contains besides the network.
        images: images to verify the file on besides noise; without images, synthetic persons.

    Returns: the results of the comparisons.

    Raises DataError if outputs differ by more than parity.OUTPUT_TOLERANCE or KEYPOINT_TOLERANCE.
    """
    options = options or ExportOptions()
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: unsupported; supported: {', '.join(FORMATS)}")
    _, packages, write, read = FORMATS[format]
    require_packages(packages, f"exporting to {format}")
    model = build_model(cfg).eval()
    codec = build_codec(cfg)
    load_trained_weights(cfg, model, file)
    crops_by_kind = {"noise": parity.make_noise_crops(cfg)}
    if images:
        crops_by_kind["images"] = parity.crop_full_images(cfg, codec, images)
    else:
        crops_by_kind["synthetic persons"] = parity.make_synthetic_crops(cfg, codec)
    graph = Graph(cfg, codec, model, options)
    with atomic_write(out) as part:
        write(graph, graph.example(cfg), part, metadata.as_text(cfg, codec, options))
        run = read(part)
        results = [
            parity.compare(cfg, codec, model, options, run, crops, kind)
            for kind, crops in crops_by_kind.items()
        ]
        different = [str(result) for result in results if not result.equal]
        if different:
            raise DataError(
                f"{out}: the exported file differs from the network and is not kept"
                f" ({'; '.join(different)}; at most {parity.OUTPUT_TOLERANCE:g} and"
                f" {parity.KEYPOINT_TOLERANCE:g} px are accepted)"
            )
    return results
