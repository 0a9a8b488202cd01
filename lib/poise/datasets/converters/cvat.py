"""CVAT for images 1.1, XML (https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/).

A <skeleton> labeled with the category is a person; its <points> are the keypoints: outside="1" is
not labeled, occluded="1" is COCO's flag 1, others 2. Other skeletons and shapes are skipped and
counted. A <box> of any label with the skeleton's group_id (not 0) is its box. So is the only box
without a group_id that is labeled with the category, of the only skeleton without a box. A rotated
box becomes the upright box around it. Without one the box is the one around the keypoints. Areas
are lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from poise.datasets.converters.images import (
    LabeledImage,
    LabeledPerson,
    SkipCounter,
    box_around,
    check_sizes,
    match_boxes,
    numbers,
)
from poise.errors import DataError, escape_name, single_line
from poise.io.archives import find_name_error
from poise.io.files import atomic_write, check_memory, read_bytes
from poise.structures.skeleton import DatasetInfo

PERSON = "a person is a skeleton that is called like the category"
_OTHERS = "skeletons called "
_MAX_FILE_BYTES = 1 << 29
_MAX_DEPTH = 32
_MAX_TAG_BYTES = 1 << 21  # a mask is one attribute
_MAX_ATTRIBUTES = 100  # of an element; CVAT writes about ten
_MAX_NAMES = 1000  # of elements and attributes, which the parser keeps
_MAX_VALUES = 2_000_000  # elements and attributes of one image: 2000 persons of 133 joints
_MAX_IMAGE_BYTES = 1 << 27  # with its masks
_CHUNK_BYTES = 1 << 18
_CHECK_BYTES = 1 << 26
_IMAGE_BYTES, _PERSON_BYTES, _JOINT_BYTES = 500, 600, 24  # in memory, of what is read


class _RefusedError(Exception):
    pass


class _ImageParser:
    """Parse XML into one tree per <image> below the root, without text, and drop the rest.

    Raises _RefusedError for a document type (entities can fetch files and grow without end) and for
    more than CVAT writes. Neither expat nor defusedxml bounds attributes, names or elements.
    """

    def __init__(self) -> None:
        self.root = ""
        self.images: list[ElementTree.Element] = []
        self._depth = self._values = self._fed = self._image_start = 0
        self._builder: ElementTree.TreeBuilder | None = None
        self._names: dict[str, str] = {}
        self._parser = parser = expat.ParserCreate(intern=self._names)
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = self._refuse_doctype
        parser.UnparsedEntityDeclHandler = self._refuse_doctype
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end

    def feed(self, chunk: memoryview, final: bool) -> None:
        self._parser.Parse(chunk, final)
        self._fed += len(chunk)
        # expat holds a tag until it is complete, and makes all its attributes at once
        if not final and self._fed - self._parser.CurrentByteIndex > _MAX_TAG_BYTES:
            raise _RefusedError(f"has a tag of more than {_MAX_TAG_BYTES >> 20} MB")

    def _refuse_doctype(self, *_: object) -> None:
        raise _RefusedError(
            "has a document type (DTD) or entities, which CVAT does not write; do not trust it"
        )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _RefusedError(f"is nested deeper than {_MAX_DEPTH} elements")
        if len(attributes) > _MAX_ATTRIBUTES:
            raise _RefusedError(f"has an element of more than {_MAX_ATTRIBUTES} attributes")
        if len(self._names) > _MAX_NAMES:
            raise _RefusedError(f"has more than {_MAX_NAMES} names of elements and attributes")
        if self._depth == 1:
            self.root = tag
        elif self._depth == 2 and tag == "image":
            self._builder, self._values = ElementTree.TreeBuilder(), 0
            self._image_start = self._parser.CurrentByteIndex
        if self._builder is not None:
            self._values += 1 + len(attributes)
            if self._values > _MAX_VALUES:
                raise _RefusedError(
                    f"has an image of more than {_MAX_VALUES} elements and attributes"
                )
            if self._parser.CurrentByteIndex - self._image_start > _MAX_IMAGE_BYTES:
                raise _RefusedError(f"has an image of more than {_MAX_IMAGE_BYTES >> 20} MB")
            self._builder.start(tag, attributes)

    def _end(self, tag: str) -> None:
        if self._builder is not None:
            self._builder.end(tag)
            if self._depth == 2:
                self.images.append(self._builder.close())
                self._builder = None
        self._depth -= 1


def parse_images(path: Path) -> Iterator[ElementTree.Element]:
    """Yield each <image> of a CVAT file, so that the memory follows one image and not the file.

    Raises DataError for what is not CVAT's XML or stands for too much.
    """
    data = memoryview(read_bytes(path, "CVAT file", _MAX_FILE_BYTES))
    parser, count = _ImageParser(), 0
    for start in range(0, max(len(data), 1), _CHUNK_BYTES):
        chunk = data[start : start + _CHUNK_BYTES]
        try:
            parser.feed(chunk, final=start + len(chunk) == len(data))
        except _RefusedError as fault:
            raise DataError(f"{path}: the CVAT file {fault}") from None
        except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: the encoding
            raise DataError(
                f"{path}: the CVAT file is not valid XML ({single_line(error)[:200]})"
            ) from None
        if parser.root not in ("", "annotations"):
            break
        count += len(parser.images)
        yield from parser.images
        parser.images.clear()
    if not count:
        raise DataError(
            f"{path}: not a file of 'CVAT for images 1.1': it needs <annotations> with <image>;"
            " export the task in that format"
        )


def read(
    path: Path, data: DatasetInfo, images: Path | None = None
) -> tuple[list[LabeledImage], SkipCounter]:
    """Read the images of a file, each listed as <image>, and what is skipped."""
    labeled_images: dict[str, LabeledImage] = {}
    left = SkipCounter()
    needed = checked = 0
    for entry in parse_images(path):
        image = _read_image(entry, path)
        if image.name in labeled_images:
            raise DataError(
                f"{path}: image {escape_name(image.name)} is listed twice; export each task by"
                " itself, "
                "or rename the images"
            )
        labeled_images[image.name] = image
        image.persons += _persons(
            entry, image, data, f"{path}: image {escape_name(image.name)}", left
        )
        needed += _IMAGE_BYTES + len(image.persons) * (
            _PERSON_BYTES + _JOINT_BYTES * data.skeleton.num_keypoints
        )
        if needed - checked > _CHECK_BYTES:
            check_memory(path, "CVAT file", needed)
            checked = needed
    other = [reason.removeprefix(_OTHERS) for reason in left if reason.startswith(_OTHERS)]
    if other and not any(image.persons for image in labeled_images.values()):
        raise DataError(
            f"{path}: no skeleton is called {escape_name(data.category, 40)}, the category of"
            f" {data.path}; there are"
            f" {', '.join(escape_name(name, 40) for name in sorted(other)[:5])}"
        )
    if images is not None:
        check_sizes(path, list(labeled_images.values()), images)
    return list(labeled_images.values()), left


def _read_image(entry: ElementTree.Element, path: Path) -> LabeledImage:
    name = entry.get("name") or ""
    if not name or find_name_error(name):
        raise DataError(
            f"{path}: the image name {escape_name(name)} {find_name_error(name) or 'is empty'}"
        )
    width, height = numbers(
        [entry.get("width", "nothing"), entry.get("height", "nothing")],
        f"{path}: image {escape_name(name)}",
        "width or height",
    )
    if min(width, height) < 1:
        raise DataError(f"{path}: image {escape_name(name)} is {width:g} x {height:g} pixels large")
    return LabeledImage(name, int(width), int(height))


def _persons(
    entry: ElementTree.Element,
    image: LabeledImage,
    data: DatasetInfo,
    where: str,
    left: SkipCounter,
) -> list[LabeledPerson]:
    """Return the persons of an image; left: counts what is left out."""
    for shape in entry:
        if shape.tag not in ("box", "skeleton"):
            left.add(f"shapes of the kind {shape.tag}")
    skeletons = []
    for skeleton in entry.findall("skeleton"):
        label = skeleton.get("label", "")
        # a category given by its id has no name
        if label == data.category or not isinstance(data.category, str):
            skeletons.append((_group(skeleton), _keypoints(skeleton, data, where)))
        else:
            left.add(f"{_OTHERS}{label}")
    groups = [group for group, _ in skeletons]
    boxes = [
        (_group(box), _box(box, where))
        for box in entry.findall("box")
        if (_group(box) is not None and _group(box) in groups) or box.get("label") == data.category
    ]
    persons, used = [], 0
    for (_, keypoints), box in zip(skeletons, match_boxes(where, boxes, groups)):
        if not (keypoints[:, 2] > 0).any():
            left.add("skeletons without a labeled joint")
            continue
        used += box is not None
        if box is None:
            box = box_around(keypoints, image.width, image.height)
        persons.append(LabeledPerson(box, keypoints))
    left.add("boxes without a skeleton", len(entry.findall("box")) - used)
    return persons


def _group(shape: ElementTree.Element) -> str | None:
    group = shape.get("group_id", "0")
    return None if group == "0" else group


def _box(box: ElementTree.Element, where: str) -> np.ndarray:
    """Return the upright box (4,) around a box that is turned by `rotation` degrees."""
    corners = [box.get(key, "nothing") for key in ("xtl", "ytl", "xbr", "ybr")]
    left, top, right, bottom, angle = numbers([*corners, box.get("rotation", 0)], where, "a box")
    sine, cosine = abs(np.sin(np.radians(angle))), abs(np.cos(np.radians(angle)))
    width, height = abs(right - left), abs(bottom - top)  # drawn from any corner
    extent = np.array([width * cosine + height * sine, width * sine + height * cosine])
    return np.concatenate([np.array([left + right, top + bottom]) / 2 - extent / 2, extent])


def _keypoints(skeleton: ElementTree.Element, data: DatasetInfo, where: str) -> np.ndarray:
    keypoints = np.zeros((data.skeleton.num_keypoints, 3))
    done: set[str | None] = set()
    for points in skeleton.findall("points"):
        label = points.get("label")
        if label not in data.skeleton.names:
            raise DataError(
                f"{where}: a point is called {escape_name(label, 40)}, which is none of the joints"
                f" of {data.path}"
            )
        if label in done:
            raise DataError(f"{where}: a skeleton has {escape_name(label, 40)} twice")
        done.add(label)
        values = numbers((points.get("points") or "").split(","), where, f"the point {label}")
        if len(values) != 2:
            raise DataError(
                f"{where}: the point {label} has {len(values)} numbers, expected x and y"
            )
        if points.get("outside", "0") != "1":
            flag = 1.0 if points.get("occluded", "0") == "1" else 2.0
            keypoints[data.skeleton.names.index(label)] = (*values, flag)
    return keypoints


def write(path: Path, data: DatasetInfo, labeled_images: Sequence[LabeledImage]) -> None:
    """Write each person as a box and a skeleton of one group_id."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    label = str(data.category)
    for number, image in enumerate(labeled_images):
        element = ElementTree.SubElement(
            root,
            "image",
            id=str(number),
            name=image.name,
            width=str(image.width),
            height=str(image.height),
        )
        for group, person in enumerate(image.persons, 1):
            x, y, width, height = person.box.tolist()
            corners = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
            both = {"label": label, "source": "manual", "z_order": "0", "group_id": str(group)}
            ElementTree.SubElement(
                element,
                "box",
                both,
                occluded="0",
                **{key: f"{value:.4f}" for key, value in corners.items()},
            )
            skeleton = ElementTree.SubElement(element, "skeleton", both)
            for name, (x, y, flag) in zip(data.skeleton.names, person.keypoints):
                ElementTree.SubElement(
                    skeleton,
                    "points",
                    label=name,
                    source="manual",
                    outside=str(int(flag == 0)),
                    occluded=str(int(flag == 1)),
                    points=f"{x:.4f},{y:.4f}",
                )
    ElementTree.indent(root)
    with atomic_write(path) as part:
        part.write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
