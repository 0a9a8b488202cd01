"""Test the data loader's parts built from keyword arguments, without a config."""

import json

import numpy as np
from PIL import Image
from poise.config.dataset_yaml import load_dataset_info
from poise.datasets import coco, mpii
from poise.datasets.augment import Augmentation
from poise.datasets.loader import BatchLoader, TopDownDataset, close_loaders
from poise.datasets.sampler import EpochBatchSampler
from poise.io.image_folder import ImageFolder


def annotations(folder, persons=3):
    """A COCO file of one image, with persons of 17 labeled keypoints, and a detection file."""
    Image.new("RGB", (96, 80), (30, 60, 90)).save(folder / "a.png")
    boxes = [[10 + n, 10, 40, 60] for n in range(persons)]
    names = list(load_dataset_info("coco").skeleton.names)
    (folder / "persons.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 80}],
                "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}],
                "annotations": [
                    {
                        "id": n,
                        "image_id": 1,
                        "category_id": 1,
                        "bbox": box,
                        "area": 2400,
                        "iscrowd": 0,
                        "num_keypoints": 17,
                        "keypoints": [20 + n, 30, 2] * 17,
                    }
                    for n, box in enumerate(boxes, 1)
                ],
            }
        )
    )
    (folder / "detections.json").write_text(
        json.dumps(
            [
                {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - 0.5 * (n == 1)}
                for n, box in enumerate(boxes)
            ]
        )
    )


def test_batch_loader_keywords_give_augmented_crops(tmp_path):
    annotations(tmp_path)
    table = coco.read_annotated(tmp_path / "persons.json", load_dataset_info("coco"))
    crops = TopDownDataset(table, ImageFolder(tmp_path), augmentation=Augmentation())
    loader = BatchLoader(crops, EpochBatchSampler(len(table), 2, shuffle=True, seed=0))
    try:
        batches = list(loader)
    finally:
        close_loaders()
    assert [tuple(batch["images"].shape) for batch in batches] == [
        (2, 256, 192, 3),
        (1, 256, 192, 3),
    ]
    assert sorted(n for batch in batches for n in batch["person"].tolist()) == [0, 1, 2]
    assert all((batch["visible"] == 2).all() for batch in batches)


def test_read_detected_keywords_drop_low_scores(tmp_path):
    annotations(tmp_path)
    paths = tmp_path / "persons.json", load_dataset_info("coco"), tmp_path / "detections.json"
    assert len(coco.read_detected(*paths)) == 3
    table = coco.read_detected(*paths, min_score=0.5, aspect=1.0)
    assert table.score.tolist() == [0.9, 0.9] and not table.has_keypoints
    assert np.allclose(table.scale[:, 0], table.scale[:, 1])


def test_read_persons_keywords_read_mpii(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps(
            [
                {
                    "image": "a.jpg",
                    "center": [50.0, 40.0],
                    "scale": 0.5,
                    "joints": [[20.0, 30.0]] * 16,
                    "joints_vis": [1] * 16,
                }
            ]
        )
    )
    table = mpii.read_persons(path, load_dataset_info("mpii").skeleton)
    assert len(table) == 1 and table.keypoints.shape == (1, 16, 2)
    assert table.keypoints[0, 0].tolist() == [19.0, 29.0]
