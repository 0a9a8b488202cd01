"""COCO's keypoint annotations (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise.datasets.coco import check_order
from poise.datasets.coco_files import read_annotations
from poise.datasets.converters.images import LabeledImage, LabeledPerson, SkipCounter, check_sizes
from poise.io.files import atomic_write
from poise.structures.person_table import PackedStrings
from poise.structures.skeleton import DatasetInfo

AREA_OF_BOX = 0.5  # other formats have no areas
PERSON = "a person is an annotation of the category, with labeled keypoints"


def read(
    path: Path, data: DatasetInfo, images: Path | None = None
) -> tuple[list[LabeledImage], SkipCounter]:
    """Read the images with the persons that a training uses, and what is skipped."""
    file = read_annotations(path, path.stem, data.skeleton.num_keypoints, data.category)
    check_order(file["joint_names"].tolist(), data, path)
    names = PackedStrings(file["name_buffer"], file["name_ends"])
    labeled_images = [
        LabeledImage(name, int(width), int(height))
        for name, (width, height) in zip(names, file["image_sizes"])
    ]
    for index, box, joints, visible in zip(
        file["image_index"], file["boxes"], file["joints"], file["visible"]
    ):
        keypoints = np.column_stack([joints, visible]).astype(np.float64)
        labeled_images[index].persons.append(LabeledPerson(box, keypoints))
    if images is not None:
        check_sizes(path, labeled_images, images)
    skipped = SkipCounter()
    for reason, count in zip(file["reasons"].tolist(), file["counts"].tolist()):
        if reason.startswith(("of ", "without ")):
            reason = f"annotations {reason}"
        skipped[reason] = count
    return labeled_images, skipped


def write(path: Path, data: DatasetInfo, labeled_images: Sequence[LabeledImage]) -> None:
    """Write a file. Ids start at 1; the area is AREA_OF_BOX of the box."""
    import orjson

    category_id = 1 if isinstance(data.category, str) else data.category
    category_name = data.category if isinstance(data.category, str) else "person"
    category = {
        "id": category_id,
        "name": category_name,
        "keypoints": list(data.skeleton.names),
        "skeleton": [[a + 1, b + 1] for a, b in data.skeleton.limbs],
    }
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(labeled_images, 1):
        images.append(
            {
                "id": image_id,
                "file_name": image.name,
                "width": image.width,
                "height": image.height,
            }
        )
        for person in image.persons:
            is_labeled = person.keypoints[:, 2] > 0
            keypoints = np.where(is_labeled[:, None], person.keypoints, 0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "iscrowd": 0,
                    "bbox": np.round(person.box, 4).tolist(),
                    "area": round(float(AREA_OF_BOX * person.box[2:].prod()), 4),
                    "num_keypoints": int(is_labeled.sum()),
                    "keypoints": np.round(keypoints, 4).ravel().tolist(),
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [category]}
    with atomic_write(path) as part:
        part.write_bytes(orjson.dumps(content))
