"""What an exported file says about itself, as one JSON text: enough to crop, normalise, decode and
name the joints without the experiment.

It is read as plain JSON and nothing else: unknown keys, wrong types and values out of range are
refused as in an experiment file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from yacs.config import CfgNode

from poise import config
from poise.codecs import CODECS, codec_class
from poise.codecs.codec import Codec
from poise.config.datasets import dataset_info, register_joints
from poise.errors import DataError, PoiseError
from poise.inference.export.graph import ExportOptions
from poise.structures.skeleton import describe_joints

KEY = "poise"  # the name under which the text stands in a file
VERSION = 2
_MOST_BYTES = 1 << 18
# what the joints found depend on, besides the weights; of MODEL and DATASET the graph itself is
# made for these values
NETWORK_KEYS = (
    "MODEL.NAME",
    "MODEL.NUM_JOINTS",
    "MODEL.TARGET_TYPE",
    "MODEL.IMAGE_SIZE",
)
INPUT_KEYS = ("MODEL.MEAN", "MODEL.STD", "DATASET.DATASET", "DATASET.COLOR_RGB")
OTHER_KEYS = ("TEST.BOX_MARGIN", "TEST.IN_VIS_THRE")
WARNED_KEYS = ("TEST.BOX_MARGIN",)  # the graph does not depend on them, the joints found do


def network_keys(codec: type[Codec]) -> tuple[str, ...]:
    """Return the keys whose values the graph itself is made for."""
    return *NETWORK_KEYS, *codec.config_keys, *INPUT_KEYS


def _all_keys(codec: type[Codec]) -> tuple[str, ...]:
    decoding = *codec.decode_keys, "TEST.FLIP_TEST", *codec.flip_keys
    return *network_keys(codec), *decoding, *OTHER_KEYS


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of 'GROUP.KEY'; tuples as lists, as JSON has them."""
    group, name = key.split(".")
    value = cfg[group][name]
    return list(value) if isinstance(value, tuple) else value


def as_text(cfg: CfgNode, codec: Codec, parts: ExportOptions) -> str:
    """The text for a file of this experiment's network with these parts."""
    return json.dumps(
        {
            "version": VERSION,
            "parts": asdict(parts),
            "config": {key: value_of(cfg, key) for key in _all_keys(type(codec))},
            "input": (
                "images (B, H, W, 3) uint8 RGB"
                if parts.normalize
                else (
                    f"images (B, 3, H, W) float32 {'RGB' if cfg.DATASET.COLOR_RGB else 'BGR'}, less"
                    " MODEL.MEAN and over MODEL.STD"
                )
            ),
            "outputs": parts.output_names(codec),
            "dataset": describe_joints(dataset_info(cfg).skeleton),
        }
    )


def from_text(text: str, source: str) -> tuple[CfgNode, ExportOptions]:
    """The configuration, all other keys at their defaults, and the parts. Raises DataError,
    naming `source`, for what as_text does not write.
    """
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError("too long")
        content = json.loads(text)
        if content["version"] != VERSION:
            raise DataError(
                f"{source}: its metadata is of version {content['version']!r}, and {VERSION} is"
                " read; export it anew"
            )
        values, wanted = content["config"], {field.name for field in fields(ExportOptions)}
        if (
            set(values) != set(_all_keys(codec_class(values["MODEL.TARGET_TYPE"])))
            or set(content["parts"]) != wanted
            or not all(isinstance(part, bool) for part in content["parts"].values())
        ):
            raise ValueError("other keys than an export writes")
        defaults = config.default_config()
        # texts are not read as literals here
        if any(
            isinstance(value, str) != isinstance(value_of(defaults, key), str)
            for key, value in values.items()
        ):
            raise ValueError("texts where numbers are needed")
        parts = ExportOptions(**content["parts"])
        # the joints come with the file, so that it needs no dataset file where it is used
        name = f"{source}: its joints"
        register_joints(name, content["dataset"])
        return (
            config.override(
                defaults,
                [
                    *(word for pair in values.items() for word in pair),
                    *("DATASET.FILE", name),
                    # predicting needs no loss, but it has to fit the codec
                    *("LOSS.TYPE", CODECS[values["MODEL.TARGET_TYPE"]].losses[0]),
                ],
                f"{source}: its metadata",
            ),
            parts,
        )
    except PoiseError as error:
        raise DataError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise DataError(
            f"{source}: its metadata is not Poise's ({reason}); only files of tools/export.py are"
            " read"
        ) from None
