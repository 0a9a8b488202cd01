"""Log a run: log file, config.yaml, metrics.jsonl, TensorBoard and debug images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from poise.codecs.codec import Codec
from poise.datasets import PersonTable
from poise.datasets.loader import BatchLoader
from poise.engine import checkpoint, logger
from poise.engine.debug_images import DebugImages
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext
from poise.engine.evaluate import format_score
from poise.engine.predict import Predictions
from poise.engine.state import TrainState
from poise.errors import PoiseError
from poise.io.files import atomic_write
from poise.models.posenas.genotypes import write_genotype

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)


@dataclass
class TestResult:
    """Result of an evaluation after an epoch.

    Attributes:
        predictions: complete on rank 0.
        metrics: {name: value}.
        score: selects the best weights, the higher the better.
    """

    predictions: Predictions
    metrics: dict[str, float]
    score: float

    @property
    def values(self) -> dict[str, float | None]:
        """The metrics and, if the test set has labels, the validation loss and accuracy."""
        if self.predictions.loss is None:
            return dict(self.metrics)
        loss, accuracy = self.predictions.loss, self.predictions.accuracy
        return {"valid_loss": loss, "valid_acc": accuracy, **self.metrics}


class RunLogger:
    """Write the files of a run on rank 0; does nothing in other processes.

    Attributes:
        error: the first error of optional output, which the run does not need to resume. It makes
            the run stop with a checkpoint.
        metrics, tb_writer: from `open` on.
    """

    metrics: logger.MetricsFile
    tb_writer: logger.TensorBoard
    log_name = ""
    metrics_name = ""
    removed_text = ""  # warning after the run folder was removed

    def __init__(self, cfg: CfgNode, cfg_path: str, processes: DistributedContext = SINGLE_PROCESS):
        self.cfg = cfg
        self.cfg_path = cfg_path
        self.is_main = processes.is_main_process
        self.folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
        self.error: PoiseError | None = None

    def open(self, begin_epoch: int) -> None:
        """Open metrics.jsonl and TensorBoard; drop the metrics of `begin_epoch` and later."""
        self.metrics = logger.MetricsFile(self.folder / self.metrics_name, begin_epoch)
        self.tb_writer = logger.TensorBoard(self.cfg, self.cfg_path)

    def close(self) -> None:
        if self.is_main:
            self.tb_writer.close()

    def write_origin(self) -> None:
        """Write what the weights in the run folder are made from."""
        with atomic_write(self.folder / "config.yaml") as part:
            part.write_text(self.cfg.dump(), encoding="utf-8")

    def restore_folder(self) -> None:
        """Write config.yaml again if the run folder was removed during the run."""
        if not self.is_main or (self.folder / "config.yaml").exists():
            return
        self.write_origin()
        logger.add_file(self.folder / self.log_name)
        log.warning("%s: %s", self.folder, self.removed_text)


class TrainLogger(RunLogger):
    """Write the files of a training.

    Attributes:
        reported_reasons: reasons for metrics of 0 or -1 that are in the log, each once in a run.
    """

    log_name = "train.log"
    metrics_name = "metrics.jsonl"
    removed_text = (
        "the run folder was removed during the run; config.yaml is written again, earlier log"
        " lines and metrics are lost"
    )

    def __init__(
        self,
        cfg: CfgNode,
        cfg_path: str,
        state: TrainState,
        loader: BatchLoader,
        codec: Codec,
        processes: DistributedContext = SINGLE_PROCESS,
    ):
        super().__init__(cfg, cfg_path, processes)
        self._state = state
        self._loader = loader
        self._codec = codec
        self._debug_images: DebugImages | None = None
        self.reported_reasons: set[str] = set()

    def start(self, command: list[str]) -> None:
        """Log what is trained, write config.yaml and open the files of the epochs."""
        if not self.is_main:
            return
        cfg, state, progress = self.cfg, self._state, self._state.progress
        checkpoint.cleanup_stale(self.folder, progress.last_checkpoint, progress.damaged)
        logger.log_environment(cfg, command)
        log.info(
            "%s: %.2f million parameters; %d samples a step%s, epochs %d to %d",
            cfg.MODEL.NAME,
            sum(p.numel() for p in state.model.parameters()) / 1e6,
            self._loader.batch_sampler.batch_size,
            f" in {cfg.TRAIN.ACCUMULATE} parts" if cfg.TRAIN.ACCUMULATE > 1 else "",
            progress.epoch,
            state.schedule.epochs - 1,
        )
        log.info("schedule: %s", state.schedule)
        # if only the final weights are missing, nothing is trained with the current settings
        if state.has_epochs_left(cfg.TRAIN.PATIENCE) or not (self.folder / "config.yaml").exists():
            self.write_origin()
        self.open(progress.epoch)
        if cfg.DEBUG.DEBUG:
            skeleton = self._loader.dataset.table.skeleton
            self._debug_images = DebugImages(cfg, self._codec, skeleton)

    def close(self) -> None:
        if self._debug_images is not None:
            self._debug_images.close()
        super().close()

    def write_origin(self) -> None:
        super().write_origin()
        # the next search may write the file that MODEL.GENOTYPE names again
        if (genotype := getattr(self._state.network, "genotype", None)) is not None:
            write_genotype(self.folder / "genotype.json", genotype)

    @contextmanager
    def optional_output(self) -> Iterator[None]:
        """Store an error of output that the run does not need to resume; see `error`."""
        try:
            yield
        except PoiseError as error:
            self.error = self.error or error

    def progress_bar(self) -> tqdm:
        """Create the progress bar of the epoch."""
        schedule, progress = self._state.schedule, self._state.progress
        return logger.progress_bar(
            f"epoch {progress.epoch}/{schedule.epochs}",
            schedule.num_steps(progress.epoch),
            progress.step,
            self.is_main,
        )

    def log_step(
        self, bar: tqdm, seconds: float, data_seconds: float, samples: int, debug_batch: tuple
    ) -> None:
        """Log the last step, every PRINT_FREQ steps and at the end of the epoch.

        Args:
            bar: the epoch's progress bar.
            seconds: time of the step, of which `data_seconds` were spent waiting for data.
            samples: samples of the step over all processes.
            debug_batch: what `DebugImages.add` draws.
        """
        state, progress = self._state, self._state.progress
        steps = state.schedule.num_steps(progress.epoch)
        if not self.is_main or progress.step % self.cfg.PRINT_FREQ and progress.step != steps:
            return
        mean, lr = progress.epoch_metrics(), state.schedule.lr_at(state.global_step - 1)
        bar.set_postfix(
            loss=f"{mean['train_loss']:.5f}",
            acc=f"{mean['train_acc']:.3f}",
            lr=f"{lr:g}",
            refresh=False,
        )
        logger.log_step(
            "epoch %d/%d [%d/%d]  %.3f s/step (%.3f waiting for data)  %.1f images/s  loss %.6f "
            " accuracy %.3f  lr %g",
            progress.epoch,
            state.schedule.epochs,
            progress.step,
            steps,
            seconds,
            data_seconds,
            samples / seconds,
            mean["train_loss"],
            mean["train_acc"],
            lr,
        )
        scalars = {
            "train_loss": mean["train_loss"],
            "train_acc": mean["train_acc"],
            "learning_rate": lr,
            "images_per_second": samples / seconds,
            "data_waiting_seconds": data_seconds,
        }
        with self.optional_output():
            self.tb_writer.add_scalars(scalars, state.global_step)
        if self._debug_images:
            prefix = self.folder / "debug" / f"train_{progress.epoch}_{progress.step}"
            with self.optional_output():
                self._debug_images.add(prefix, *debug_batch)

    def log_epoch(self) -> dict[str, Any]:
        """Log the last epoch; return its metrics."""
        state, progress, epoch = self._state, self._state.progress, self._state.progress.epoch
        values: dict[str, Any] = {
            "epoch": epoch,
            "lr": state.schedule.lr_at(state.global_step - 1),
            **progress.epoch_metrics(),
        }
        log.info(
            "epoch %d/%d: train loss %.6f, accuracy %.3f, %.1f images/s, %.0f %% of the time"
            " waiting for data",
            epoch,
            state.schedule.epochs,
            values["train_loss"],
            values["train_acc"],
            values["images_per_second"],
            100 * values["data_time_share"],
        )
        if state.scaler.is_enabled:
            values |= {
                "overflows": int(progress.sums["overflows"]),
                "loss_scale": state.scaler.value,
            }
            log.info(
                "epoch %d/%d: %d steps skipped because of overflowing gradients, loss scale %g",
                epoch,
                state.schedule.epochs,
                values["overflows"],
                values["loss_scale"],
            )
        return values

    def add_tests(
        self, values: dict[str, Any], tests: dict[str, TestResult], table: PersonTable
    ) -> None:
        """Add the metrics of the evaluations to `values` and to TensorBoard."""
        for name, test in tests.items():
            values |= {
                f"{name}_{key}" if name else key: value for key, value in test.values.items()
            }
            if self.is_main and not name:
                with self.optional_output():
                    self._show_test(values, test.predictions, table)

    def _show_test(self, values: dict[str, Any], found: Predictions, table: PersonTable) -> None:
        """Write the metrics and the first batch of an evaluation to TensorBoard."""
        self.tb_writer.add_scalars(_test_scalars(values), values["epoch"])
        self.tb_writer.add_batch(found.first_batch, table.skeleton, values["epoch"])

    def log_best(self, name: str, file: str) -> None:
        """Log that the weights ("") or their average ("ema") are the best so far."""
        progress = self._state.progress
        score = progress.ema_score if name else progress.best_score
        log.info(
            "best score so far%s: %s; %s written",
            " of the average" if name else "",
            format_score(score),
            file,
        )

    def write_epoch(self, values: dict[str, Any]) -> None:
        """Write the line of an epoch to metrics.jsonl."""
        if self.is_main:
            self.metrics.write(**values)

    def log_end(self) -> None:
        """Log the scores of the whole run."""
        progress, average = self._state.progress, ""
        if self._state.ema:
            score = format_score(progress.ema_score)
            average = f", of the average {score} at epoch {progress.ema_epoch}"
        log.info(
            "done: best score %s at epoch %d%s; weights in %s",
            format_score(progress.best_score),
            progress.best_epoch,
            average,
            self.folder,
        )


def _test_scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of a test by their TensorBoard tags."""
    of_training = (
        "epoch",
        "lr",
        "train_loss",
        "train_acc",
        "images_per_second",
        "data_time_share",
    )
    return {
        name if name.startswith("valid") else f"test/{name}": value
        for name, value in values.items()
        if name not in of_training
    }
