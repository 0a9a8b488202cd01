"""Metadata of an exported file: JSON that replaces the experiment for cropping and decoding.

It is parsed as plain JSON. Unknown keys, wrong types and values out of range are errors, as in an
experiment file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from yacs.config import CfgNode

from poise import config
from poise.codecs import CODECS, codec_class
from poise.codecs.codec import Codec
from poise.config.dataset_yaml import register_joints
from poise.config.datasets import dataset_info
from poise.errors import DataError, PoiseError
from poise.inference.export.graph import ExportOptions
from poise.structures.skeleton import describe_joints

KEY = "poise"  # name of the metadata entry in a file
VERSION = 2
_MAX_CHARACTERS = 1 << 18
# keys that the predictions depend on, besides the weights; a graph is specific to the values of
# NETWORK_KEYS and INPUT_KEYS
NETWORK_KEYS = (
    "MODEL.NAME",
    "MODEL.NUM_JOINTS",
    "MODEL.TARGET_TYPE",
    "MODEL.IMAGE_SIZE",
)
INPUT_KEYS = ("MODEL.MEAN", "MODEL.STD", "DATASET.DATASET", "DATASET.COLOR_RGB")
OTHER_KEYS = ("TEST.BOX_MARGIN", "TEST.IN_VIS_THRE")
WARNED_KEYS = ("TEST.BOX_MARGIN",)  # affect the predictions but not the graph


def network_keys(codec: type[Codec]) -> tuple[str, ...]:
    """Return the keys whose values the graph is specific to."""
    return *NETWORK_KEYS, *codec.config_keys, *INPUT_KEYS


def _all_keys(codec: type[Codec]) -> tuple[str, ...]:
    decoding = *codec.decode_keys, "TEST.FLIP_TEST", *codec.flip_keys
    return *network_keys(codec), *decoding, *OTHER_KEYS


def loss_keys() -> tuple[str, ...]:
    """Return the keys of the loss; files of earlier versions do not have them."""
    return tuple(f"LOSS.{name}" for name in config.default_config().LOSS)


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of 'GROUP.KEY', tuples as lists as in JSON."""
    group, name = key.split(".")
    value = cfg[group][name]
    return list(value) if isinstance(value, tuple) else value


def as_text(cfg: CfgNode, codec: Codec, options: ExportOptions) -> str:
    """Return the metadata of an experiment's network exported with these options."""
    if options.normalize:
        input_text = "images (B, H, W, 3) uint8 RGB"
    else:
        order = "RGB" if cfg.DATASET.COLOR_RGB else "BGR"
        input_text = f"images (B, 3, H, W) float32 {order}, less MODEL.MEAN and over MODEL.STD"
    return json.dumps(
        {
            "version": VERSION,
            "parts": asdict(options),
            "config": {key: value_of(cfg, key) for key in (*_all_keys(type(codec)), *loss_keys())},
            "input": input_text,
            "outputs": options.output_names(codec),
            "dataset": describe_joints(dataset_info(cfg).skeleton),
        }
    )


def from_text(text: str, source: str) -> tuple[CfgNode, ExportOptions]:
    """Parse metadata of as_text.

    Returns: the configuration, all other keys at their defaults, and the options.

    Raises DataError that names `source` for an invalid text.
    """
    try:
        if len(text) > _MAX_CHARACTERS:
            raise ValueError("too long")
        content = json.loads(text)
        if content["version"] != VERSION:
            raise DataError(
                f"{source}: unsupported metadata version {content['version']!r}, expected"
                f" {VERSION}; export it again"
            )
        values = content["config"]
        required = set(_all_keys(codec_class(values["MODEL.TARGET_TYPE"])))
        if (
            not required <= set(values) <= {*required, *loss_keys()}
            or set(content["parts"]) != {field.name for field in fields(ExportOptions)}
            or not all(isinstance(part, bool) for part in content["parts"].values())
        ):
            raise ValueError("unexpected keys")
        defaults = config.default_config()
        # unlike in overrides, strings are not parsed as literals
        if any(
            isinstance(value, str) != isinstance(value_of(defaults, key), str)
            for key, value in values.items()
        ):
            raise ValueError("strings instead of numbers")
        values.setdefault("LOSS.TYPE", CODECS[values["MODEL.TARGET_TYPE"]].losses[0])
        # the keypoints come with the file, so that no dataset file is needed
        name = f"{source}: its joints"
        register_joints(name, content["dataset"])
        return (
            config.override(
                defaults,
                [
                    *(word for pair in values.items() for word in pair),
                    *("DATASET.FILE", name),
                ],
                f"{source}: its metadata",
            ),
            ExportOptions(**content["parts"]),
        )
    except PoiseError as error:
        raise DataError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise DataError(
            f"{source}: invalid metadata ({reason}); only files of tools/export.py are supported"
        ) from None
