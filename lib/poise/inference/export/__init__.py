"""Networks for other programs: ONNX, TorchScript and torch.export files, each held against the
network before it is put in place.

    graph     what is exported: the folded network, and normalising, flip test and decoding where
              they are asked for
    formats   writing and running the files
    metadata  what a file says about itself
    parity    whether a file finds what the network finds
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from poise.codecs import build_codec
from poise.errors import ConfigError, DataError
from poise.inference.export import metadata, parity
from poise.inference.export.formats import FORMATS, require_packages
from poise.inference.export.graph import ExportOptions, Graph
from poise.io.files import atomic_write
from poise.models import build_model
from poise.models.weights.origin import load_trained_weights

log = logging.getLogger(__name__)


def export(
    cfg: CfgNode,
    file: str | Path,
    out: str | Path,
    format: str = "onnx",
    parts: ExportOptions | None = None,
    *,
    images: Sequence[str | Path] = (),
) -> list[parity.Parity]:
    """Write the network of `cfg` with the weights of `file` to `out`, a key of FORMATS; any number
    of crops may go through it at once.

    images: pictures that it is checked on, whole, besides noise; made persons where there are none.
    Returns what the checks found. A file that differs by more than parity.OUTPUT_TOLERANCE or
    KEYPOINT_TOLERANCE is not left behind, and what was at `out` before stays: DataError.
    """
    parts = parts or ExportOptions()
    if format not in FORMATS:
        raise ConfigError(
            f"{format!r} is not a format to export to; the formats are {', '.join(FORMATS)}"
        )
    _, needs, write, read = FORMATS[format]
    require_packages(needs, f"exporting to {format}")
    model, codec = build_model(cfg).eval(), build_codec(cfg)
    load_trained_weights(cfg, model, file)
    kinds = {
        "noise": parity.make_noise_crops(cfg),
        "pictures" if images else "made persons": (
            parity.crop_full_images(cfg, codec, images)
            if images
            else parity.make_synthetic_crops(cfg, codec)
        ),
    }
    graph = Graph(cfg, codec, model, parts)
    with atomic_write(out) as part:
        write(graph, graph.example(cfg), part, metadata.as_text(cfg, codec, parts))
        run = read(part)
        found = [
            parity.compare(cfg, codec, model, parts, run, crops, kind)
            for kind, crops in kinds.items()
        ]
        different = [str(one) for one in found if not one.equal]
        if different:
            raise DataError(
                f"{out}: the exported file differs from the network and is not kept"
                f" ({'; '.join(different)}; at most {parity.OUTPUT_TOLERANCE:g} and"
                f" {parity.KEYPOINT_TOLERANCE:g} px are accepted)"
            )
    return found
