"""Search state, and how it is saved and restored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from poise.config import experiment_name
from poise.datasets.sampler import EpochBatchSampler
from poise.engine import checkpoint
from poise.engine.resuming import IN_SEARCH, accept_checkpoint
from poise.engine.state import Progress, checkpoint_errors, load_network
from poise.errors import DataError, PoiseError
from poise.models.posenas.genotypes import Genotype
from poise.search.bilevel import BilevelOptimizer
from poise.search.space import Space

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

    @property
    def samples(self) -> float:
        return self.sums["weights_samples"]

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

    def epoch_metrics(self) -> dict[str, float]:
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


@dataclass
class SearchState:
    """What a checkpoint of a search stores.

    Attributes:
        bilevel: the network and the optimizers of its weights and architecture values.
        space: what is searched.
    """

    bilevel: BilevelOptimizer
    space: Space
    progress: SearchProgress

    def load_state_dict(self, saved: dict, batches: EpochBatchSampler) -> None:
        """Continue from a checkpoint; batches: those of the weights.

        Raises PoiseError where it was written by a search of another space or network.
        """
        if saved["space"] != _plain(self.space):
            raise PoiseError(
                f"{saved['path']}: the checkpoint of a search in another space (SEARCH.MODE,"
                " SEARCH.GENOTYPE or the operations are others); remove it to start a new run"
            )
        turns, progress = self.bilevel, self.progress
        with checkpoint_errors(saved):
            values = {_PREFIX + kind: table for kind, table in saved["architecture"].items()}
            state = {**saved["state_dict"], **values}
            load_network({**saved, "state_dict": state}, turns.network, turns.weight_optimizer)
            progress.load_state_dict(saved)
            progress.log_resumed()
            turns.load_alpha_optimizer(saved["architecture_optimizer"])
            progress.genotype = Genotype(**saved["genotype"]) if saved["genotype"] else None
        progress.restart_epoch_of_other_batches(batches, "batch size or training set")

    def write_checkpoint(self, folder: Path, cfg: CfgNode, cfg_path: str) -> Path:
        """Write the checkpoint, the architecture values under a key of their own."""
        turns, progress = self.bilevel, self.progress
        state = turns.network.state_dict()
        content = {
            **checkpoint.run_metadata(cfg, cfg_path, cfg.SEARCH.SEED),
            **progress.state_dict(),
            "genotype": progress.genotype and progress.genotype.plain_cells(),
            "space": _plain(self.space),
            "state_dict": {
                name: value for name, value in state.items() if not name.startswith(_PREFIX)
            },
            "architecture": {
                name.removeprefix(_PREFIX): value
                for name, value in state.items()
                if name.startswith(_PREFIX)
            },
            "optimizer": turns.weight_optimizer.state_dict(),
            "architecture_optimizer": turns.alpha_optimizer.state_dict(),
        }
        checkpoint.save(folder / NAME, content)
        return folder / NAME


def find_checkpoint(cfg: CfgNode, cfg_path: str, folder: Path) -> dict | None:
    """Return the run folder's checkpoint of a search with AUTO_RESUME, or None.

    Raises ConfigError for one of other settings.
    """
    path = folder / NAME
    if not cfg.AUTO_RESUME or not path.exists():
        return None
    saved = checkpoint.load(path, experiment_name(cfg_path))
    if not {"architecture", "architecture_optimizer", "space", "genotype"} <= saved.keys():
        raise DataError(f"{path}: not the checkpoint of a search; remove it to start a new run")
    return accept_checkpoint(saved, cfg, IN_SEARCH)


def _plain(space: Space) -> dict[str, list]:
    """Candidates of the kinds that are searched, edges of those that are given."""
    return {
        **space.given.plain_cells(),
        **{kind: list(candidates) for kind, candidates in space.operations.items()},
    }
