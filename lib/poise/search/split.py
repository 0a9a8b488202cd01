"""Split the training images between the weights and the alphas.

Images are split, not persons: persons in one image share light and camera, and memorizing them
would be rewarded. The authors' lists (train_w1 and train_a1 of MPII) were not released.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.datasets import PersonTable
from poise.errors import DataError
from poise.io.files import atomic_write
from poise.io.json_file import read_json

NAME = "split.json"
_RESTART_HINT = (
    "to start a new search, remove search.pth in the same folder or set AUTO_RESUME False"
)
VERSION = 1


@dataclass(frozen=True)
class Split:
    """Sorted image ids of the two parts, (n,) int64 each, and the settings of the split."""

    weights: np.ndarray
    architecture: np.ndarray
    drawn: dict

    @classmethod
    def draw(cls, cfg: CfgNode, table: PersonTable) -> Split:
        """SEARCH.SUBSET of the images that have persons, in a random order that SEARCH.SEED
        decides; of those SEARCH.W_FRACTION for the weights.

        Raises DataError where a part would be empty.
        """
        s = cfg.SEARCH
        ids = np.unique(table.image_ids[table.image_index])
        used = np.random.default_rng(s.SEED).permutation(ids)[: round(s.SUBSET * len(ids))]
        border = round(s.W_FRACTION * len(used))
        if not 0 < border < len(used):
            raise DataError(
                f"SEARCH.SUBSET {s.SUBSET:g} and SEARCH.W_FRACTION {s.W_FRACTION:g} of {len(ids)}"
                f" images leave {border} for the weights and {len(used) - border} for the"
                " architecture; both need some"
            )
        return cls(np.sort(used[:border]), np.sort(used[border:]), _drawn(cfg))

    @classmethod
    def read(cls, path: Path, cfg: CfgNode, table: PersonTable) -> Split:
        """The split that a run has stored. Raises DataError where it is none, or was drawn for
        other settings or another set.
        """
        content = read_json(path, "split", _RESTART_HINT)
        parts = [
            content.get(name) if isinstance(content, dict) else None
            for name in ("weights", "architecture")
        ]
        if (
            not all(
                isinstance(part, list) and part and all(type(i) is int for i in part)
                for part in parts
            )
            or content.get("version") != VERSION
        ):
            raise DataError(
                f"{path}: not a split of a search of version {VERSION}; {_RESTART_HINT}"
            )
        for name, value in _drawn(cfg).items():
            if content.get(name) != value:
                raise DataError(
                    f"{path}: drawn for {name} {content.get(name)!r}, the search has {value!r};"
                    f" {_RESTART_HINT}"
                )
        weights, architecture = (np.array(part, dtype=np.int64) for part in parts)
        unknown = np.setdiff1d(
            np.concatenate([weights, architecture]), table.image_ids[table.image_index]
        )
        if len(unknown) or len(np.intersect1d(weights, architecture)):
            fault = "an image is in both parts"
            if len(unknown):
                fault = f"{len(unknown)} of its images are not in the set"
            raise DataError(f"{path}: {fault}; {_RESTART_HINT}")
        return cls(weights, architecture, _drawn(cfg))

    def write(self, path: Path) -> None:
        content = {
            "version": VERSION,
            **self.drawn,
            "weights": self.weights.tolist(),
            "architecture": self.architecture.tolist(),
        }
        with atomic_write(path) as part:
            part.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def tables(self, table: PersonTable) -> tuple[PersonTable, PersonTable]:
        """The persons of the two parts of a set."""
        ids = table.image_ids[table.image_index]
        return (
            table.select(np.isin(ids, self.weights), "in images that are not for the weights"),
            table.select(
                np.isin(ids, self.architecture), "in images that are not for the architecture"
            ),
        )


def _drawn(cfg: CfgNode) -> dict:
    return {
        "set": cfg.DATASET.TRAIN_SET,
        "seed": cfg.SEARCH.SEED,
        "subset": cfg.SEARCH.SUBSET,
        "w_fraction": cfg.SEARCH.W_FRACTION,
    }
