"""Samples and batches: crops of persons, made in worker processes, the same whatever their number.

A sampler's key is (epoch, sample): it carries all that a worker needs to draw the sample's random
numbers, which come from a generator seeded by (seed, epoch, sample) and from nothing else. Sample n
of N persons is person n; where persons come more than once in an epoch, samples n + N, n + 2 N, ...
are person n too, each cut out in its own way.
"""

from __future__ import annotations

import atexit
import gc
import math
import signal
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.queues import Queue
from typing import Any

import cv2
import numpy as np
import numpy.random  # noqa: F401  NumPy loads it when it is first used: here, so that workers share its memory
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from poise.datasets.augment import Augmentation
from poise.datasets.mixing import ConcatImageFolders
from poise.datasets.sampler import EpochBatchSampler, SampleKey
from poise.datasets.worker_exit import exit_with_parent
from poise.errors import DataError
from poise.io.decoding import EncodedImage
from poise.io.image_folder import ImageFolder
from poise.structures.crops import person_crop_matrix, source_roi, transform_points
from poise.structures.person_table import PersonTable
from poise.structures.warp import warp

#: center (2,), scale (2,), rotation, mirrored: see person_crop_matrix
CropParams = tuple[np.ndarray, np.ndarray, float, bool]


class TopDownDataset(Dataset):
    """Crops (H, W, 3) uint8 of the persons of a table, with their joints in crop pixels.

    Args:
        table: the persons.
        images: where their images are.
        image_size: (width, height) of a crop in pixels.
        rgb: channel order of a crop: RGB, or BGR as OpenCV reads.
        seed: of the augmentation's random numbers.
        augmentation: None cuts out every person as it is.
        udp: crop as UDP does, see person_crop_matrix.
    """

    def __init__(
        self,
        table: PersonTable,
        images: ImageFolder | ConcatImageFolders,
        *,
        image_size: Sequence[int] = (192, 256),
        rgb: bool = True,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        udp: bool = False,
    ):
        self.table = table
        self.images = images
        self.image_size = tuple(int(v) for v in image_size)
        self.rgb = rgb
        self.seed = seed
        self.augmentation = augmentation
        self.udp = udp
        self.flip_indices = table.skeleton.flip_indices
        self._cached_image: tuple[int, EncodedImage] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, keys: list[SampleKey]) -> dict[str, torch.Tensor] | DataError:
        """A batch: images (B, H, W, 3) uint8, joints (B, J, 2) float32 crop pixels, visible (B, J)
        float32 (0, 1 or 2), person (B,) int64.

        An unreadable image comes back as the error itself: raised here, a loader would wrap it in a
        worker's traceback.
        """
        width, height = self.image_size
        count, joints = len(keys), self.table.skeleton.num_keypoints
        images = _empty_shared(count, height, width, 3)
        batch = {
            "images": images.numpy(),
            "joints": np.zeros((count, joints, 2), np.float32),
            "visible": np.zeros((count, joints), np.float32),
            "person": np.array([sample % len(self) for _, sample in keys], np.int64),
        }
        # draws before the first image, joints after the last: decoding drives all else out of the
        # processor's caches, and makes it several times as slow
        places = [
            self._place(*key, joints, visible)
            for key, joints, visible in zip(keys, batch["joints"], batch["visible"])
        ]
        matrices = {}
        # an image is decoded once, wherever its persons stand in the batch
        of_image: dict[int, list[int]] = {}
        for row, person in enumerate(batch["person"]):
            of_image.setdefault(int(self.table.image_index[person]), []).append(row)
        try:
            for index, rows in of_image.items():
                picture = self._picture(index)
                for row in rows:
                    matrices[row] = self._crop(
                        picture, places[row], batch["images"][row], whole=len(rows) > 1
                    )
                    if matrices[row] is None:
                        raise self.images.decode_error(self.table.image_names[index])
        except DataError as error:
            return error
        if self.table.has_keypoints:  # otherwise they are zeros already
            for row, matrix in matrices.items():
                batch["joints"][row], batch["visible"][row] = self._labels(
                    batch["person"][row], matrix, mirrored=places[row][3]
                )
        return {
            key: images if key == "images" else _shared(torch.from_numpy(value))
            for key, value in batch.items()
        }

    def _picture(self, index: int) -> EncodedImage:
        """An image of the table. The last one is kept: in the order of a test the next batch may
        begin with it.
        """
        if self._cached_image is None or self._cached_image[0] != index:
            self._cached_image = (index, self.images.open(self.table.image_names[index]))
        return self._cached_image[1]

    def _place(
        self, epoch: int, sample: int, joints: np.ndarray, visible: np.ndarray
    ) -> CropParams:
        """Centre, scale, rotation and mirror of a sample; joints and visible are those of a
        person without labels.
        """
        table, person = self.table, sample % len(self)
        center, scale = table.center[person], table.scale[person]
        if self.augmentation is None:
            return center, scale, 0.0, False
        if table.has_keypoints:
            joints, visible = table.keypoints[person], table.visibility[person]
        rng, aspect = (
            np.random.default_rng((self.seed, epoch, sample)),
            self.image_size[0] / self.image_size[1],
        )
        return self.augmentation.sample(
            rng, center, scale, joints, visible, table.skeleton, aspect, table.box_wh[person]
        )

    def _crop(
        self, picture: EncodedImage, place: CropParams, out: np.ndarray, whole: bool
    ) -> np.ndarray | None:
        """Cut the crop `out` (H, W, 3) and return its matrix; None where the image cannot be
        decoded.

        whole: decode all of the image, for other persons need it too; otherwise no more than the
        crop needs.
        """
        if picture.size is None:
            return None
        matrix = person_crop_matrix(picture.size[0], *place, self.image_size, self.udp)
        image = (
            picture.pixels
            if whole
            else picture.with_region(source_roi(matrix, self.image_size, picture.size))
        )
        if image is None:
            return None
        warp(image, matrix, self.image_size, out, self.rgb)
        return matrix

    def _labels(
        self, person: int, matrix: np.ndarray, mirrored: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Joints (J, 2) in the crop, zeros where not labelled, and visible (J,)."""
        joints, visible = (
            transform_points(self.table.keypoints[person], matrix),
            self.table.visibility[person],
        )
        if mirrored:
            joints, visible = joints[self.flip_indices], visible[self.flip_indices]
        return joints * (visible > 0)[:, None], visible


_SECONDS_TO_END = 3.0  # for a worker to finish its batch, before it is killed
_open_loaders: weakref.WeakSet[BatchLoader] = weakref.WeakSet()


class BatchLoader:
    """A DataLoader over TopDownDataset whose errors are the dataset's own.

    Its worker processes live until `close`, which `close_loaders` calls for all loaders.
    """

    def __init__(
        self,
        dataset: TopDownDataset,
        batch_sampler: EpochBatchSampler,
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        if not len(dataset):
            raise DataError("no person is left to use; DATASET.SELECT_DATA False drops fewer")
        dataset.images.check()
        # PyTorch's advice to use fewer workers than WORKERS asks for goes to stderr at every start;
        # the log tells the waiting time
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        self._loader = DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=workers,
            pin_memory=pin_memory,
            collate_fn=_unchanged,
            worker_init_fn=_prepare_worker,
            persistent_workers=workers > 0,
            # batches ahead of each worker: with many, one is enough, and they are what a loader's
            # memory goes into
            prefetch_factor=(2 if workers < 4 else 1) if workers else None,
        )
        if not workers:
            cv2.setNumThreads(0)
        _open_loaders.add(self)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._loader:
            if isinstance(batch, DataError):
                # a new error, for this frame holds `batch`: the circle would keep the worker
                # processes until PyTorch loses patience
                raise DataError(str(batch))
            if isinstance(batch, Exception):  # see _send_error
                raise batch
            yield batch

    def close(self) -> None:
        """End the worker processes within seconds, whatever they do. The next iteration starts
        new ones.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is None:
            return
        killer = threading.Timer(_SECONDS_TO_END, _kill, [iterator._workers])
        with suppress(RuntimeError):  # Python 3.12 starts no thread while it exits
            killer.start()
        try:
            iterator._shutdown_workers()
        except RuntimeError:  # PyTorch reports a worker that was killed
            pass
        finally:
            killer.cancel()
            _kill(iterator._workers)


def close_loaders() -> None:
    """End the worker processes of all loaders.

    Workers ignore SIGTERM, by which multiprocessing ends them when the program exits: it would wait
    for them forever.
    """
    for loader in list(_open_loaders):
        loader.close()


atexit.register(close_loaders)  # for programs that end without calling it


def _kill(workers: list) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _unchanged(batch: Any) -> Any:
    return batch


def _empty_shared(*shape: int) -> torch.Tensor:
    """An empty uint8 tensor; in a worker process in the memory that it shares with the main
    process, for PyTorch would copy it there.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    size = math.prod(shape)
    # as PyTorch's own collating does
    return torch.empty(0, dtype=torch.uint8).set_(
        torch.UntypedStorage._new_shared(size, device="cpu"), 0, shape
    )


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; in a worker process moved to shared memory here, where an error reaches the
    main process.
    """
    return tensor if get_worker_info() is None else tensor.share_memory_()


def _send_error(queue: Queue, error: Exception, batch: tuple[Any, Any]) -> None:
    """Send the error in place of a batch that a queue's thread could not send, as without a free
    file handle.

    The thread would print a traceback, and the main process would wait for the batch forever.
    batch: its number and content.
    """
    queue.put((batch[0], error))


def _prepare_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # what came from the main process is never looked through, which would copy its pages
    gc.freeze()
    # Ctrl-C and other signals of terminals and schedulers reach the whole process group; the main
    # process decides what to do and ends its workers
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # not all on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    Queue._on_queue_feeder_error = _send_error
    exit_with_parent()
