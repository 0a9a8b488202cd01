"""Where a search is, and its way to the disk and back."""

from __future__ import annotations

import logging
from pathlib import Path

from yacs.config import CfgNode

from poise.config import experiment_name
from poise.engine import checkpoint
from poise.engine.resuming import IN_SEARCH, check_settings
from poise.engine.state import Progress, fitting
from poise.errors import DataError, PoiseError
from poise.models.posenas.genotypes import Genotype
from poise.search.alternation import Alternation
from poise.search.space import Space

log = logging.getLogger(__name__)

NAME = "search.pth"
_PREFIX = "architecture."


class SearchProgress(Progress):
    """A training's progress with the sums of both kinds of steps. genotype: of the last whole
    epoch; None before there is one.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.sums = {
            f"{kind}_{figure}": 0.0
            for kind in ("weights", "architecture")
            for figure in ("loss", "right", "counted", "samples")
        }
        self.sums |= {"seconds": 0.0, "data_seconds": 0.0}
        self.genotype: Genotype | None = None

    def add(self, kind: str, figures: tuple[float, float, float], samples: int) -> None:
        """Take in (mean loss, right joints, counted joints) of a step of `samples` persons."""
        loss, right, counted = figures
        for name, value in (
            ("loss", loss * samples),
            ("right", right),
            ("counted", counted),
            ("samples", samples),
        ):
            self.sums[f"{kind}_{name}"] += value

    def averages(self) -> dict[str, float]:
        """The figures of the epoch so far; those of the architecture only where it has had a
        step.
        """
        sums, found = self.sums, {}
        for kind in ("weights", "architecture"):
            if sums[f"{kind}_samples"]:
                found[f"{kind}_loss"] = sums[f"{kind}_loss"] / sums[f"{kind}_samples"]
                found[f"{kind}_acc"] = sums[f"{kind}_right"] / max(sums[f"{kind}_counted"], 1)
        seconds = max(sums["seconds"], 1e-9)
        images = sums["weights_samples"] + sums["architecture_samples"]
        return {
            **found,
            "images_per_second": images / seconds,
            "data_time_share": sums["data_seconds"] / seconds,
        }

    def take_over(self, saved: dict, alternation: Alternation, space: Space) -> None:
        """Go on from what `keep` wrote. Raises PoiseError where it was written by a search of
        another space or network.
        """
        if saved["space"] != _plain(space):
            raise PoiseError(
                f"{saved['path']}: the checkpoint of a search in another space (SEARCH.MODE,"
                " SEARCH.GENOTYPE or the operations are others); remove it to begin anew"
            )
        with fitting(saved):
            state = {
                **saved["state_dict"],
                **{_PREFIX + kind: table for kind, table in saved["architecture"].items()},
            }
            self.restore(
                {**saved, "state_dict": state, "genotype": None},
                alternation.network,
                alternation.weight_optimizer,
            )
            alternation.take_value_optimizer(saved["architecture_optimizer"])
            self.genotype = Genotype(**saved["genotype"]) if saved["genotype"] else None

    def keep(
        self, path: Path, cfg: CfgNode, cfg_path: str, alternation: Alternation, space: Space
    ) -> None:
        """Write a checkpoint with everything that the search needs to go on, the architecture
        values under a key of their own.
        """
        state = alternation.network.state_dict()
        genotype = self.genotype and self.genotype.plain_cells()
        checkpoint.save(
            path,
            {
                **checkpoint.origin(cfg, cfg_path, cfg.SEARCH.SEED),
                **self.position(),
                "genotype": genotype,
                "space": _plain(space),
                "state_dict": {
                    name: value for name, value in state.items() if not name.startswith(_PREFIX)
                },
                "architecture": {
                    name.removeprefix(_PREFIX): value
                    for name, value in state.items()
                    if name.startswith(_PREFIX)
                },
                "optimizer": alternation.weight_optimizer.state_dict(),
                "architecture_optimizer": alternation.value_optimizer.state_dict(),
            },
        )
        self.kept = path


def find_kept(cfg: CfgNode, cfg_path: str, folder: Path) -> dict | None:
    """The run folder's checkpoint of a search, with AUTO_RESUME; or None. Raises ConfigError for
    one of other settings.
    """
    path = folder / NAME
    if not cfg.AUTO_RESUME or not path.exists():
        return None
    saved = checkpoint.load(path, experiment_name(cfg_path))
    if not {"architecture", "architecture_optimizer", "space", "genotype"} <= saved.keys():
        raise DataError(f"{path}: not the checkpoint of a search; remove it to begin anew")
    saved["changed"] = check_settings(saved, cfg, IN_SEARCH)
    log.info("going on from %s", path)
    return saved


def _plain(space: Space) -> dict[str, list]:
    """Candidates of the kinds that are searched, edges of those that are given."""
    return {
        **space.given.plain_cells(),
        **{kind: list(candidates) for kind, candidates in space.operations.items()},
    }
