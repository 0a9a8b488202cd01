"""What a search leaves to be looked at: tables and figures of its probabilities, the genotype,
its picture.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from yacs.config import CfgNode

from poise.config import experiment_name
from poise.engine import logger
from poise.engine.logger import package_version
from poise.engine.run_logger import RunLogger
from poise.models.posenas.genotypes import EDGES_PER_NODE, INPUTS, NODES, Genotype, write_genotype
from poise.search import split
from poise.search.architecture import Probabilities, derive_cells, entropy
from poise.search.drawing import write_drawing
from poise.search.space import EDGES, Space
from poise.search.state import SearchState
from poise.visualization.tables import align_columns

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)

EDGE_NAMES = tuple(f"{source} to {node}" for node, source in EDGES)
LAST, BEST, PICTURE = "genotype.json", "genotype_best.json", "cells.svg"


def derive_genotype(
    cfg: CfgNode, cfg_path: str, space: Space, found: Probabilities, figures: Mapping[str, Any]
) -> Genotype:
    """The derived genotype. Its meta: the epoch's figures, how probable its operations were, and
    the configuration that made it.
    """
    cells = derive_cells(space, found)
    return space.genotype(
        cells,
        {
            "source": f"search {experiment_name(cfg_path)} of Poise {package_version()}",
            "figures": dict(figures),
            "probabilities": {
                kind: [round(value, 6) for value in _strengths(space, kind, edges, found)]
                for kind, edges in cells.items()
            },
            "config": plain_config(cfg),
        },
    )


def plain_config(node: Any) -> Any:
    """A configuration as dictionaries and lists."""
    if isinstance(node, dict):
        return {key: plain_config(value) for key, value in node.items()}
    return list(node) if isinstance(node, tuple) else node


def changed_edges(genotype: Genotype, before: Genotype | None, space: Space) -> int | None:
    """How many of the searched edges of `genotype` were not in the one before; their order
    within a node does not count. None where there was none.
    """
    if before is None:
        return None
    pairs = [(genotype.cells()[kind], before.cells()[kind]) for kind in space.operations]
    nodes = [
        slice(first, first + EDGES_PER_NODE)
        for first in range(0, NODES * EDGES_PER_NODE, EDGES_PER_NODE)
    ]
    return sum(len(set(now[node]) - set(then[node])) for now, then in pairs for node in nodes)


class SearchLogger(RunLogger):
    """The records of a search: its files in the run folder, and its TensorBoard page."""

    log_name = "search.log"
    metrics_name = "search.jsonl"
    removed_text = (
        f"the run folder was removed during the search; config.yaml and {split.NAME} are written"
        " again, the rest is lost"
    )

    def __init__(self, cfg: CfgNode, cfg_path: str, state: SearchState, halves: split.Split):
        super().__init__(cfg, cfg_path)
        self._state, self._halves, self.space = state, halves, state.space

    def start(self) -> None:
        """Write config.yaml and open the files that epochs are written to."""
        self.write_origin()
        self.open(self._state.progress.epoch)

    def write_origin(self) -> None:
        """Write what the search is resumed with, besides its checkpoint."""
        self._halves.write(self.folder / split.NAME)
        super().write_origin()

    def progress_bar(self, steps: int) -> tqdm:
        """Return the progress bar of the epoch."""
        progress = self._state.progress
        description = f"epoch {progress.epoch}/{self.cfg.SEARCH.EPOCHS}"
        return logger.progress_bar(description, steps, progress.step)

    def log_step(self, steps: int, seconds: float, data_seconds: float) -> None:
        """Log the step that was just done, every PRINT_FREQ steps and after the last one.

        Args:
            steps: steps of the epoch.
            seconds: time of the step, of which `data_seconds` were spent waiting for data.
        """
        progress = self._state.progress
        if progress.step % self.cfg.PRINT_FREQ and progress.step != steps:
            return
        logger.log_step(
            "epoch %d/%d [%d/%d]  %.3f s/step (%.3f waiting for data)  %s",
            progress.epoch,
            self.cfg.SEARCH.EPOCHS,
            progress.step,
            steps,
            seconds,
            data_seconds,
            _losses(progress.epoch_metrics()),
        )

    def log_epoch(self) -> dict[str, Any]:
        """Log the epoch that was just searched; return its metrics."""
        progress = self._state.progress
        values = {
            "epoch": progress.epoch,
            "lr": self._state.bilevel.lr_at(progress.epoch),
            **progress.epoch_metrics(),
        }
        log.info(
            "epoch %d/%d: %s, %.1f images/s, %.0f %% of the time waiting for data",
            progress.epoch,
            self.cfg.SEARCH.EPOCHS,
            _losses(values),
            values["images_per_second"],
            100 * values["data_time_share"],
        )
        return values

    def write_warm_up(self, figures: dict[str, Any]) -> None:
        """Write the records of an epoch that trained the weights alone.

        All candidates are still alike and there is no genotype.
        """
        self.tb_writer.add_scalars(_scalars(figures), figures["epoch"])
        self.metrics.write(**figures)

    def write_epoch(self, figures: dict[str, Any], found: Probabilities, is_best: bool) -> Genotype:
        """Write the records of an epoch; return its genotype.

        It is also `genotype_best.json` where it is the best so far.
        """
        epoch, before = figures["epoch"], self._state.progress.genotype
        genotype = derive_genotype(self.cfg, self.cfg_path, self.space, found, figures)
        undecided = {kind: entropy(table) for kind, table in found.items()}
        changed = changed_edges(genotype, before, self.space)
        for kind, table in found.items():
            log.info(
                "epoch %d, %s: probabilities in per cent, and how undecided the edge is; * for the"
                " genotype's edges\n%s",
                epoch,
                kind,
                probability_table(self.space, kind, table, genotype),
                extra=logger.FILE_ONLY,
            )
        log.info(
            "undecided: %s%s",
            ", ".join(f"{kind} {100 * values.mean():.2f} %" for kind, values in undecided.items()),
            (
                ""
                if changed is None
                else f"; {changed} of {8 * len(found)} edges differ from the last epoch"
            ),
        )
        for kind in found:
            log.info(
                "  %-9s %s",
                kind,
                "  ".join(f"{operation}:{source}" for operation, source in genotype.cells()[kind]),
            )
        self._show(epoch, figures, found, undecided, changed, genotype)
        write_genotype(self.folder / LAST, genotype)
        if is_best:
            write_genotype(self.folder / BEST, genotype)
        elif before is None:
            (self.folder / BEST).unlink(missing_ok=True)  # of an earlier search
        write_drawing(
            self.folder / PICTURE,
            genotype,
            f"{experiment_name(self.cfg_path)}, epoch {epoch}",
            genotype.meta["probabilities"],
        )
        self.metrics.write(
            **figures,
            changed_edges=changed,
            entropy={kind: values.tolist() for kind, values in undecided.items()},
            probabilities={kind: table.tolist() for kind, table in found.items()},
            genotype={kind: genotype.plain_cells()[kind] for kind in found},
        )
        return genotype

    def _show(
        self,
        epoch: int,
        figures: dict,
        found: Probabilities,
        undecided: dict[str, np.ndarray],
        changed: int | None,
        genotype: Genotype,
    ) -> None:
        scalars = {**_scalars(figures), **({} if changed is None else {"changed_edges": changed})}
        for kind, table in found.items():
            scalars[f"entropy/{kind}"] = undecided[kind].mean()
            for row, edge in enumerate(EDGE_NAMES):
                tag = edge.replace(" ", "_")
                scalars[f"entropy_{kind}/{tag}"] = undecided[kind][row]
                scalars |= {
                    f"{kind}/{tag}/{name}": table[row, column]
                    for column, name in enumerate(self.space.operations[kind])
                }
            self.tb_writer.add_image(
                f"probabilities/{kind}",
                probability_picture(self.space, kind, table, genotype),
                epoch,
            )
        self.tb_writer.add_scalars(scalars, epoch)


def _losses(figures: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{kind} loss {figures[f'{kind}_loss']:.6f}, accuracy {figures[f'{kind}_acc']:.3f}"
        for kind in ("weights", "architecture")
        if f"{kind}_loss" in figures
    )


def probability_table(space: Space, kind: str, table: np.ndarray, genotype: Genotype) -> str:
    """A line per edge: (E, O) probabilities in per cent, a star at the genotype's operations,
    and the edge's entropy.
    """
    chosen = _places(space, kind, genotype)
    rows = [("edge", *space.operations[kind], "undecided")]
    for row, (edge, share) in enumerate(zip(EDGE_NAMES, entropy(table))):
        cells = (
            f"{'*' if (row, column) in chosen else ''}{100 * value:.2f}"
            for column, value in enumerate(table[row])
        )
        rows.append((edge, *cells, f"{100 * share:.2f} %"))
    return align_columns(rows, right=range(1, len(rows[0]))).rstrip("\n")


def probability_picture(
    space: Space, kind: str, table: np.ndarray, genotype: Genotype
) -> np.ndarray:
    """The same as a picture (H, W, 3) uint8 BGR: the darker a field the more probable, from even
    odds up; framed where the genotype has it.
    """
    chosen, names = _places(space, kind, genotype), space.operations[kind]
    left, top, width, height = 70, 26, 120, 26
    image = np.full(
        (top + len(EDGES) * height + 6, left + len(names) * width + 6, 3), 255, np.uint8
    )

    def write(text: str, x: int, y: int, ink: int = 40) -> None:
        cv2.putText(
            image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (ink, ink, ink), 1, cv2.LINE_AA
        )

    for column, name in enumerate(names):
        write(name, left + column * width + 4, 17)
    even = 1 / len(names)
    for row, edge in enumerate(EDGE_NAMES):
        write(edge, 6, top + row * height + 17)
        for column, value in enumerate(table[row]):
            corner = (left + column * width, top + row * height)
            # the root: early differences are small
            depth = min(max((value - even) / max(1 - even, 1e-9), 0), 1) ** 0.5
            cv2.rectangle(
                image,
                corner,
                (corner[0] + width - 3, corner[1] + height - 3),
                tuple(int(255 - depth * fade) for fade in (60, 140, 225)),
                -1,
            )
            if (row, column) in chosen:
                cv2.rectangle(
                    image, corner, (corner[0] + width - 3, corner[1] + height - 3), (40, 40, 40), 2
                )
            write(
                f"{100 * value:.2f} %", corner[0] + 34, corner[1] + 16, 40 if depth < 0.75 else 255
            )
    return image


def _scalars(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name != "epoch"}


def _places(space: Space, kind: str, genotype: Genotype) -> list[tuple[int, int]]:
    """(row, column) in the probabilities of each edge of a cell of the genotype."""
    edges = genotype.cells()[kind]
    return [
        (
            EDGES.index((INPUTS + number // EDGES_PER_NODE, source)),
            space.operations[kind].index(operation),
        )
        for number, (operation, source) in enumerate(edges)
    ]


def _strengths(space: Space, kind: str, edges, found: Probabilities) -> list[float]:
    genotype = space.genotype({kind: edges}, {})
    return [float(found[kind][place]) for place in _places(space, kind, genotype)]
