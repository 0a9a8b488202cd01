"""Load crops of persons in worker processes; the result does not depend on their number.

A key of the sampler is (epoch, sample). The random numbers of a sample come from a generator seeded
by (seed, epoch, sample) only. Sample n of N persons is person n; samples n + N, n + 2 N, ... of
persons that occur more than once in an epoch are person n too, each with its own crop.
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
import numpy.random  # noqa: F401  imported before the workers start, so that they share it
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

#: center (2,), scale (2,), rotation, is flipped: see person_crop_matrix
CropParams = tuple[np.ndarray, np.ndarray, float, bool]


class TopDownDataset(Dataset):
    """Crops (H, W, 3) uint8 of the persons of a table, with their keypoints in crop pixels.

    Args:
        table: The persons.
        images: Their images.
        image_size: (width, height) of a crop in pixels.
        rgb: Whether a crop is RGB, or BGR as OpenCV reads.
        seed: Seed of the augmentation.
        augmentation: None crops every person as it is.
        udp: Crop as UDP does: see person_crop_matrix.
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
    ) -> None:
        width, height = image_size
        self.table = table
        self.images = images
        self.image_size = (int(width), int(height))
        self.rgb = rgb
        self.seed = seed
        self.augmentation = augmentation
        self.udp = udp
        self.flip_indices = table.skeleton.flip_indices
        self._cached_image: tuple[int, EncodedImage] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, keys: list[SampleKey]) -> dict[str, torch.Tensor] | DataError:
        """Load a batch.

        Returns:
            images (B, H, W, 3) uint8, joints (B, K, 2) float32 crop pixels, visible (B, K) float32
            (0, 1 or 2), person (B,) int64. An unreadable image returns its error: raised in a
            worker, the error would be wrapped in the worker's traceback.
        """
        width, height = self.image_size
        num_keypoints = self.table.skeleton.num_keypoints
        persons = [sample % len(self) for _, sample in keys]
        images = _empty_shared(len(keys), height, width, 3)
        keypoints = np.zeros((len(keys), num_keypoints, 2), np.float32)
        visibility = np.zeros((len(keys), num_keypoints), np.float32)
        # random numbers before the first image, keypoints after the last: decoding evicts the
        # processor's caches, which makes both several times as slow
        params = [self._sample_params(*key) for key in keys]
        try:
            matrices = self._crop_images(persons, params, images.numpy())
        except DataError as error:
            return error
        if self.table.has_keypoints:
            for row, matrix in matrices.items():
                keypoints[row], visibility[row] = self._crop_keypoints(
                    persons[row], matrix, is_flipped=params[row][3]
                )
        return {
            "images": images,
            "joints": _share(torch.from_numpy(keypoints)),
            "visible": _share(torch.from_numpy(visibility)),
            "person": _share(torch.tensor(persons, dtype=torch.int64)),
        }

    def _sample_params(self, epoch: int, sample: int) -> CropParams:
        table = self.table
        person = sample % len(self)
        center, scale = table.center[person], table.scale[person]
        if self.augmentation is None:
            return center, scale, 0.0, False
        return self.augmentation.sample(
            np.random.default_rng((self.seed, epoch, sample)),
            center,
            scale,
            table.keypoints[person],
            table.visibility[person],
            table.skeleton,
            self.image_size[0] / self.image_size[1],
            table.box_wh[person],
        )

    def _crop_images(
        self, persons: list[int], params: list[CropParams], out: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Fill the crops `out` (B, H, W, 3) and return their matrices (2, 3) by row.

        Each image is decoded once, wherever its persons are in the batch. Raises DataError.
        """
        rows_by_image: dict[int, list[int]] = {}
        for row, person in enumerate(persons):
            rows_by_image.setdefault(int(self.table.image_index[person]), []).append(row)
        matrices: dict[int, np.ndarray] = {}
        for index, rows in rows_by_image.items():
            image = self._open_image(index)
            for row in rows:
                matrix = self._crop(image, params[row], out[row], whole_image=len(rows) > 1)
                if matrix is None:
                    raise self.images.decode_error(self.table.image_names[index])
                matrices[row] = matrix
        return matrices

    def _open_image(self, index: int) -> EncodedImage:
        """Open an image and keep it: in test order the next batch may start with it."""
        if self._cached_image is None or self._cached_image[0] != index:
            self._cached_image = (index, self.images.open(self.table.image_names[index]))
        return self._cached_image[1]

    def _crop(
        self, image: EncodedImage, params: CropParams, out: np.ndarray, *, whole_image: bool
    ) -> np.ndarray | None:
        """Fill the crop `out` (H, W, 3) and return its matrix; None if decoding fails.

        Args:
            whole_image: Decode the whole image, because other persons need it too; otherwise only
                the region of this crop.
        """
        if image.size is None:
            return None
        matrix = person_crop_matrix(image.size[0], *params, self.image_size, self.udp)
        if whole_image:
            pixels = image.pixels
        else:
            pixels = image.with_region(source_roi(matrix, self.image_size, image.size))
        if pixels is None:
            return None
        warp(pixels, matrix, self.image_size, out, self.rgb)
        return matrix

    def _crop_keypoints(
        self, person: int, matrix: np.ndarray, *, is_flipped: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return keypoints (K, 2) in the crop, zeros if not labeled, and visibility (K,)."""
        keypoints = transform_points(self.table.keypoints[person], matrix)
        visibility = self.table.visibility[person]
        if is_flipped:
            keypoints = keypoints[self.flip_indices]
            visibility = visibility[self.flip_indices]
        return keypoints * (visibility > 0)[:, None], visibility


_SECONDS_TO_END = 3.0  # for a worker to finish its batch, before it is killed
_open_loaders: weakref.WeakSet[BatchLoader] = weakref.WeakSet()


class BatchLoader:
    """A DataLoader over TopDownDataset that raises the dataset's own errors.

    Its worker processes live until `close`, which `close_loaders` calls for all loaders.
    """

    def __init__(
        self,
        dataset: TopDownDataset,
        batch_sampler: EpochBatchSampler,
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if not len(dataset):
            raise DataError("no person is left to use; DATASET.SELECT_DATA False drops fewer")
        dataset.images.check()
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        # PyTorch suggests fewer workers than WORKERS at every start; the log has the waiting time
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # batches ahead of each worker take most of a loader's memory; with many workers one is
        # enough
        prefetch_factor = 2 if workers < 4 else 1
        self._loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=workers,
            pin_memory=pin_memory,
            collate_fn=_identity,
            worker_init_fn=_prepare_worker,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch_factor if workers else None,
        )
        if not workers:
            cv2.setNumThreads(0)
        _open_loaders.add(self)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._loader:
            if isinstance(batch, DataError):
                # a new error: this frame refers to `batch`, and the reference cycle would keep the
                # worker processes alive until PyTorch's timeout
                raise DataError(str(batch))
            if isinstance(batch, Exception):  # see _send_error
                raise batch
            yield batch

    def close(self) -> None:
        """End the worker processes within seconds. The next iteration starts new ones."""
        iterator: Any = self._loader._iterator
        self._loader._iterator = None
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

    Workers ignore SIGTERM, with which multiprocessing ends them at exit: it would wait forever.
    """
    for loader in list(_open_loaders):
        loader.close()


atexit.register(close_loaders)  # for programs that end without calling it


def _kill(workers: list) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _identity(batch: Any) -> Any:
    return batch


def _empty_shared(*shape: int) -> torch.Tensor:
    """Return an empty uint8 tensor; in a worker process in shared memory, as PyTorch's collate.

    PyTorch would otherwise copy it there.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _share(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor; in a worker process in shared memory, so that an error is sent."""
    return tensor if get_worker_info() is None else tensor.share_memory_()


def _send_error(queue: Queue, error: Exception, item: tuple[Any, Any]) -> None:
    """Send the error in place of a batch that a queue's thread cannot send.

    This happens without a free file handle. The thread would print a traceback, and the main
    process would wait for the batch forever.

    Args:
        item: Number and content of the batch.
    """
    queue.put((item[0], error))


def _prepare_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # the collector does not visit objects of the main process, which would copy their pages
    gc.freeze()
    # Ctrl-C and other signals of terminals and schedulers reach the whole process group; the main
    # process decides what to do and ends its workers
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # not all on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]
    exit_with_parent()
