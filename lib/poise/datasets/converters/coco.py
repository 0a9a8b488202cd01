"""COCO's keypoint annotations (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poise.datasets.coco import check_order
from poise.datasets.coco_files import read_annotations
from poise.datasets.converters.images import LabeledImage, LabeledPerson, SkipCounter, check_sizes
from poise.io.files import atomic_write
from poise.structures.person_table import PackedStrings
from poise.structures.skeleton import DatasetInfo

AREA_OF_BOX = 0.5  # no other format has areas
PERSON = "a person is an annotation of the category, with labelled keypoints"


def read(
    path: Path, data: DatasetInfo, images: Path | None = None
) -> tuple[list[LabeledImage], SkipCounter]:
    """Pictures with the persons that a training would use, and what is left out."""
    found = read_annotations(path, path.stem, data.skeleton.num_keypoints, data.category)
    check_order(found["joint_names"].tolist(), data, path)
    names = PackedStrings(found["name_buffer"], found["name_ends"])
    pictures = [
        LabeledImage(name, int(width), int(height))
        for name, (width, height) in zip(names, found["image_sizes"])
    ]
    for place, box, joints, visible in zip(
        found["image_index"], found["boxes"], found["joints"], found["visible"]
    ):
        pictures[place].persons.append(
            LabeledPerson(box, np.column_stack([joints, visible]).astype(np.float64))
        )
    if images is not None:
        check_sizes(path, pictures, images)
    reasons = (
        f"annotations {reason}" if reason.startswith(("of ", "without ")) else reason
        for reason in found["reasons"].tolist()
    )
    return pictures, SkipCounter(dict(zip(reasons, found["counts"].tolist())))


def write(path: Path, data: DatasetInfo, pictures: Sequence[LabeledImage]) -> None:
    """Ids count from 1. The area is AREA_OF_BOX of the box."""
    import orjson

    skeleton = data.skeleton
    named = isinstance(data.category, str)
    content = {
        "images": [
            {
                "id": number,
                "file_name": picture.name,
                "width": picture.width,
                "height": picture.height,
            }
            for number, picture in enumerate(pictures, 1)
        ],
        "annotations": [],
        "categories": [
            {
                "id": 1 if named else data.category,
                "name": data.category if named else "person",
                "keypoints": list(skeleton.names),
                "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs],
            }
        ],
    }
    for number, picture in enumerate(pictures, 1):
        for person in picture.persons:
            labelled = person.keypoints[:, 2] > 0
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": content["categories"][0]["id"],
                    "iscrowd": 0,
                    "bbox": np.round(person.box, 4).tolist(),
                    "area": round(float(AREA_OF_BOX * person.box[2:].prod()), 4),
                    "num_keypoints": int(labelled.sum()),
                    "keypoints": (
                        np.round(np.where(labelled[:, None], person.keypoints, 0), 4)
                        .ravel()
                        .tolist()
                    ),
                }
            )
    with atomic_write(path) as part:
        part.write_bytes(orjson.dumps(content))
