"""Translate experiment files of SimpleBaseline.

They (microsoft/human-pose-estimation.pytorch lib/core/config.py) differ from those of HRNet in a
few points: three codec keys are in MODEL.EXTRA, the batch size per GPU has another name, and some
defaults differ.
"""

from __future__ import annotations

import copy
from typing import Any

_MOVED_TO_MODEL = ("TARGET_TYPE", "HEATMAP_SIZE", "SIGMA")
# defaults that HRNet has changed
_DEFAULTS = {"POST_PROCESS": True, "SHIFT_HEATMAP": True, "IMAGE_THRE": 0.0, "NMS_THRE": 1.0}


def translate_simple_baseline(values: dict) -> dict:
    """Return nested `values` with the keys of SimpleBaseline renamed; other files are unchanged.

    A file of SimpleBaseline has TRAIN.BATCH_SIZE, TEST.BATCH_SIZE or a codec key in MODEL.EXTRA.
    """
    groups = {name: values.get(name) for name in ("MODEL", "TRAIN", "TEST")}
    model, train, test = (group if isinstance(group, dict) else {} for group in groups.values())
    extra = _group(model, "EXTRA")
    if (
        "BATCH_SIZE" not in train
        and "BATCH_SIZE" not in test
        and not any(key in extra for key in _MOVED_TO_MODEL)
    ):
        return values
    if not all(group is None or isinstance(group, dict) for group in groups.values()):
        return values  # loading raises the error
    values = copy.deepcopy(values)
    model, train, test = (values.get(name) or {} for name in groups)
    values.update(MODEL=model, TRAIN=train, TEST=test)
    extra = _group(model, "EXTRA")
    for key in _MOVED_TO_MODEL:
        if key in extra:
            model.setdefault(key, extra.pop(key))
    for group in (train, test):
        if "BATCH_SIZE" in group:
            group.setdefault("BATCH_SIZE_PER_GPU", group.pop("BATCH_SIZE"))
    for key, value in _DEFAULTS.items():
        test.setdefault(key, value)
    return values


def _group(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a group of a configuration; {} if it is missing."""
    group = values.get(key)
    return group if isinstance(group, dict) else {}
