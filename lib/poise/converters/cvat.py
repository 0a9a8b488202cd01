"""CVAT for images 1.1, XML (https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/): skeletons, and boxes of the same group_id.

A <skeleton> with the category as its label is a person; its <points> are the joints: outside="1" is not labelled, occluded="1" COCO's flag 1, others 2. Other
skeletons and shapes are left out and counted. A <box> of any label with the skeleton's group_id (not 0) is its box; without one the box is that around the
joints. Areas are not kept.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from poise.archives import name_fault
from poise.bounded_reading import check_memory, read_bytes
from poise.converters.pictures import LabelledPerson, LabelledPicture, box_around, numbers, tell_left_out
from poise.errors import DataError, one_line, shown
from poise.skeleton import DatasetFile
from poise.writing import replacing

_MOST_BYTES = 1 << 29
_DEEPEST = 32
_BYTES_OF_ELEMENT = 200     # in memory, of the smallest


class _Refused(Exception):
    pass


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. One with a document type is refused, for entities can fetch files and grow without end; so is one that is nested too deep."""
    data = read_bytes(path, "CVAT file", _MOST_BYTES)
    check_memory(path, "CVAT file", _BYTES_OF_ELEMENT * data.count(b"<"))
    depth = 0

    def refuse(*_):
        raise _Refused("has a document type (DTD) or entities, which CVAT does not write; do not trust it")

    def begin(*_):
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise _Refused(f"is nested deeper than {_DEEPEST} elements")

    def end(*_):
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.UnparsedEntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except _Refused as fault:
        raise DataError(f"{path}: the CVAT file {fault}") from None
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:      # LookupError: an encoding that nobody knows
        raise DataError(f"{path}: the CVAT file is not valid XML ({one_line(error)[:200]})") from None


def read(path: Path, data: DatasetFile, images: Path | None = None) -> list[LabelledPicture]:
    """The pictures of a file in which each is listed as <image>."""
    root = parse_xml(path)
    entries = root.findall("image")
    if root.tag != "annotations" or not entries:
        raise DataError(f"{path}: not a file of 'CVAT for images 1.1': it needs <annotations> with <image>; export the task in that format")
    pictures = []
    lost: Counter[str] = Counter()
    other: set[str] = set()
    for entry in entries:
        name = entry.get("name") or ""
        if not name or name_fault(name):
            raise DataError(f"{path}: the image name {shown(name)} {name_fault(name) or 'is empty'}")
        width, height = numbers([entry.get("width"), entry.get("height")], f"{path}: image {shown(name)}", "width or height")
        if min(width, height) < 1:
            raise DataError(f"{path}: image {shown(name)} is {width:g} x {height:g} pixels large")
        picture, used = LabelledPicture(name, int(width), int(height)), 0
        where, boxes = f"{path}: image {shown(name)}", {}
        for box in entry.findall("box"):
            left, top, right, bottom = numbers([box.get(key) for key in ("xtl", "ytl", "xbr", "ybr")], where, "a box")
            if box.get("group_id", "0") != "0":
                boxes[box.get("group_id")] = np.array([left, top, right - left, bottom - top])
        lost.update(f"shapes of the kind {shape.tag}" for shape in entry if shape.tag not in ("box", "skeleton"))
        for skeleton in entry.findall("skeleton"):
            label = skeleton.get("label", "")
            if label != data.category and isinstance(data.category, str):      # of a category by its id the name is not known
                lost[f"skeletons called {label}"] += 1
                other.add(label)
                continue
            keypoints = _keypoints(skeleton, data, where)
            if not (keypoints[:, 2] > 0).any():
                lost["skeletons without a labelled joint"] += 1
            else:
                box = boxes.get(skeleton.get("group_id", "0"))
                used += box is not None
                picture.persons.append(LabelledPerson(box if box is not None else box_around(keypoints, width, height), keypoints))
        lost["boxes without a skeleton"] += len(entry.findall("box")) - used
        pictures.append(picture)
    if other and not any(picture.persons for picture in pictures):
        raise DataError(f"{path}: no skeleton is called {shown(data.category, 40)}, the category of {data.path}; there are "
                        f"{', '.join(shown(name, 40) for name in sorted(other)[:5])}")
    tell_left_out(path, lost)
    return pictures


def _keypoints(skeleton: ElementTree.Element, data: DatasetFile, where: str) -> np.ndarray:
    keypoints, done = np.zeros((data.skeleton.num_joints, 3)), set()
    for points in skeleton.findall("points"):
        label = points.get("label")
        if label not in data.skeleton.names:
            raise DataError(f"{where}: a point is called {shown(label, 40)}, which is none of the joints of {data.path}")
        if label in done:
            raise DataError(f"{where}: a skeleton has {shown(label, 40)} twice")
        done.add(label)
        values = numbers((points.get("points") or "").split(","), where, f"the point {label}")
        if len(values) != 2:
            raise DataError(f"{where}: the point {label} has {len(values)} numbers, expected x and y")
        if points.get("outside", "0") != "1":
            keypoints[data.skeleton.names.index(label)] = *values, 1.0 if points.get("occluded", "0") == "1" else 2.0
    return keypoints


def write(path: Path, data: DatasetFile, pictures: Sequence[LabelledPicture]) -> None:
    """Each person as a box and a skeleton of one group_id."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    label = str(data.category)
    for number, picture in enumerate(pictures):
        image = ElementTree.SubElement(root, "image", id=str(number), name=picture.name, width=str(picture.width), height=str(picture.height))
        for group, person in enumerate(picture.persons, 1):
            x, y, width, height = person.box.tolist()
            corners = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
            both = {"label": label, "source": "manual", "z_order": "0", "group_id": str(group)}
            ElementTree.SubElement(image, "box", both, occluded="0", **{key: f"{value:.4f}" for key, value in corners.items()})
            skeleton = ElementTree.SubElement(image, "skeleton", both)
            for name, (x, y, flag) in zip(data.skeleton.names, person.keypoints):
                ElementTree.SubElement(skeleton, "points", label=name, source="manual", outside=str(int(flag == 0)), occluded=str(int(flag == 1)),
                                       points=f"{x:.4f},{y:.4f}")
    ElementTree.indent(root)
    with replacing(path) as part:
        part.write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
