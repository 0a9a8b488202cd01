"""labelme's JSON (https://github.com/wkentaro/labelme): one file per image.

A keypoint is a point labeled with its name. A rectangle labeled with the category is the box of a
person, upright around a rotated one. Other rectangles and shapes are skipped and counted. The
shapes of a person share a group_id; only a single rectangle, or a single person, may lack one.
Without any group_id an image has one person, or each point belongs to the smallest rectangle that
contains it. Points with a flag `hidden` or the description 'hidden' get COCO's flag 1, others 2.
Without a rectangle the box is the one around the keypoints. Areas are lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from poise.datasets.converters.images import (
    LabeledImage,
    LabeledPerson,
    SkipCounter,
    box_around,
    check_sizes,
    label_files,
    match_boxes,
    numbers,
)
from poise.errors import DataError, escape_name
from poise.io.archives import find_name_error
from poise.io.files import atomic_write
from poise.io.json_file import read_json
from poise.structures.skeleton import DatasetInfo

_VERSION = "5.5.0"  # of labelme, whose files these are
_HIDDEN = "hidden"
_BOXES = ("rectangle", "oriented_rectangle", "rotation")  # the last is X-AnyLabeling's
PERSON = "a person is points called like the joints, with a rectangle called like the category"


def read(
    folder: Path, data: DatasetInfo, images: Path | None = None
) -> tuple[list[LabeledImage], SkipCounter]:
    """Read the labeled images of all .json files in a folder and below it. An image's name is the
    file's, with the ending of imagePath.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of labelme's JSON files")
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise DataError(f"{folder}: has no JSON files of labelme")
    skipped = SkipCounter()
    labeled_images = [_read_one(path, path.relative_to(folder), data, skipped) for path in files]
    if images is not None:
        check_sizes(folder, labeled_images, images)
    return labeled_images, skipped


def _read_one(path: Path, relative: Path, data: DatasetInfo, skipped: SkipCounter) -> LabeledImage:
    content = read_json(path, "labelme file")
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if (
        not isinstance(shapes, list)
        or not all(isinstance(shape, dict) for shape in shapes)
        or not isinstance(content.get("imagePath"), str)
    ):
        raise DataError(f"{path}: not a file of labelme: it needs `shapes` and `imagePath`")
    width, height = numbers(
        [content.get("imageWidth"), content.get("imageHeight")],
        str(path),
        "imageWidth or imageHeight",
    )
    if min(width, height) < 1:
        raise DataError(f"{path}: the image is {width:g} x {height:g} pixels large")
    name = relative.with_suffix(
        PurePosixPath(content["imagePath"].replace("\\", "/")).suffix
    ).as_posix()
    if find_name_error(name):
        raise DataError(f"{path}: the image name {escape_name(name)} {find_name_error(name)}")
    image = LabeledImage(name, int(width), int(height))
    for box, points in _groups(path, shapes, data, skipped):
        keypoints = np.zeros((data.skeleton.num_keypoints, 3))
        for joint, x, y, flag in points:
            if keypoints[joint, 2]:
                raise DataError(
                    f"{path}: has {data.skeleton.names[joint]} twice for one person; give each"
                    " person's points and box a group_id of their own"
                )
            keypoints[joint] = x, y, flag
        if not points:
            skipped.add("rectangles without a joint", box is not None)
            continue
        if box is None:
            box = box_around(keypoints, width, height)
        image.persons.append(LabeledPerson(box, keypoints))
    return image


def _groups(
    path: Path, shapes: list[dict], data: DatasetInfo, skipped: SkipCounter
) -> list[tuple[np.ndarray | None, list[tuple]]]:
    """Return (box or None, [(joint, x, y, flag)]) of each person."""
    boxes: list[tuple[Any, np.ndarray]] = []
    points: list[tuple[Any, tuple]] = []
    for number, shape in enumerate(shapes):
        where = f"{path}: shape {number}"
        label = shape.get("label")
        kind = shape.get("shape_type", "point")
        # a category given by its id has no name
        if kind in _BOXES and label != data.category and isinstance(data.category, str):
            skipped.add(f"rectangles called {label}")
        elif kind in _BOXES:
            corners = _corners(shape, where, (2, 4))
            box = np.concatenate([corners.min(axis=0), np.ptp(corners, axis=0)])
            boxes.append((_group(shape, where), box))
        elif kind == "point":
            ((x, y),) = _corners(shape, where, (1,)).tolist()
            if label not in data.skeleton.names:
                raise DataError(
                    f"{where}: the point is called {escape_name(label, 40)}, which is none of the"
                    f" joints of {data.path}"
                )
            flags = shape.get("flags")
            is_flagged = isinstance(flags, dict) and bool(flags.get(_HIDDEN))
            description = str(shape.get("description") or "").strip().lower()
            hidden = is_flagged or description == _HIDDEN
            point = (data.skeleton.names.index(label), x, y, 1.0 if hidden else 2.0)
            points.append((_group(shape, where), point))
        else:
            skipped.add(f"shapes of the kind {kind}")
    if all(group is None for group, _ in [*points, *boxes]):
        return _without_groups(path, [box for _, box in boxes], [point for _, point in points])
    return _by_group(path, boxes, points, skipped)


def _group(shape: dict, where: str) -> int | None:
    group = shape.get("group_id")
    if group is not None and type(group) is not int:
        raise DataError(f"{where}: group_id {escape_name(group, 40)} is no whole number")
    return group


def _corners(shape: dict, where: str, counts: tuple[int, ...]) -> np.ndarray:
    """Return the points (N, 2) of a shape, whose number must be one of `counts`."""
    points = shape.get("points")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 for point in points
    ):
        raise DataError(f"{where} has no points")
    if len(points) not in counts:
        kind, expected = escape_name(shape.get("shape_type"), 40), " or ".join(map(str, counts))
        raise DataError(f"{where}: the {kind} has {len(points)} points, expected {expected}")
    values = numbers([value for point in points for value in point], where, "a point")
    return np.array(values).reshape(-1, 2)


def _by_group(
    path: Path, boxes: list[tuple[Any, np.ndarray]], points: list[tuple], skipped: SkipCounter
) -> list[tuple[np.ndarray | None, list[tuple]]]:
    groups: dict[Any, list[tuple]] = {}
    for group, point in points:
        groups.setdefault(group, []).append(point)
    matched = match_boxes(str(path), boxes, list(groups))
    for group, box in zip(groups, matched):
        if group is None and box is None and len(groups) > 1:
            raise DataError(
                f"{path}: {len(groups[None])} points have no group_id and others have one; "
                "give each person's points and box a group_id of their own"
            )
    skipped.add("rectangles without a joint", len(boxes) - sum(box is not None for box in matched))
    return list(zip(matched, groups.values()))


def _without_groups(
    path: Path, boxes: list[np.ndarray], points: list[tuple]
) -> list[tuple[np.ndarray | None, list[tuple]]]:
    if len(boxes) <= 1:
        return [(boxes[0] if boxes else None, points)]
    groups: list[tuple[np.ndarray, list[tuple]]] = [(box, []) for box in boxes]
    for point in points:
        holding = [
            group
            for group in groups
            if (group[0][:2] <= point[1:3]).all()
            and (point[1:3] <= group[0][:2] + group[0][2:]).all()
        ]
        if not holding:
            raise DataError(
                f"{path}: the point at {point[1]:g}, {point[2]:g} lies in no rectangle; give each"
                " person's points and box a group_id"
            )
        min(holding, key=lambda group: group[0][2:].prod())[1].append(point)
    return [(box, members) for box, members in groups]


def write(folder: Path, data: DatasetInfo, labeled_images: Sequence[LabeledImage]) -> None:
    """A file for each image, without the image's bytes."""
    import orjson

    files = label_files((image.name for image in labeled_images), ".json")
    for file, image in zip(files, labeled_images):
        shapes = []
        for group, person in enumerate(image.persons, 1):
            x, y, width, height = person.box.tolist()
            shapes.append(
                _shape(str(data.category), [[x, y], [x + width, y + height]], group, "rectangle")
            )
            shapes += [
                _shape(name, [[float(x), float(y)]], group, "point", _HIDDEN if flag == 1 else "")
                for name, (x, y, flag) in zip(data.skeleton.names, person.keypoints)
                if flag > 0
            ]
        content: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": PurePosixPath(image.name).name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        with atomic_write(folder / file) as part:
            part.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _shape(label: str, points: list, group: int, kind: str, description: str = "") -> dict:
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": description,
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }
