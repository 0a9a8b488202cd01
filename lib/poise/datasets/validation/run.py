"""Check the splits of an experiment, one by one and against each other.

`check` reads everything for tools/check_data.py. `quick_check` is the part that costs no time; a
training logs it before it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from poise.datasets import PersonTable, coco
from poise.datasets.coco_files import category_id
from poise.datasets.mixing import ConcatImageFolders
from poise.datasets.validation import detections, images, left_right, persons
from poise.datasets.validation.columns import read_columns
from poise.datasets.validation.findings import NOTE, Finding, Findings, list_first
from poise.datasets.validation.persons import AnnotatedPersons
from poise.datasets.validation.sources import SplitSource
from poise.errors import DataError, PoiseError
from poise.evaluation.evaluators import EVALUATORS, Evaluator
from poise.io.cache import Arrays, cached
from poise.io.image_folder import ImageFolder
from poise.structures.person_table import PackedStrings
from poise.structures.skeleton import DatasetInfo

log = logging.getLogger(__name__)

Split = tuple[PersonTable, ImageFolder | ConcatImageFolders]

#: formats whose annotation files are checked entry by entry; of others the table is checked
COLUMN_READERS: dict[str, Callable[[Path, int, str | int], Arrays]] = {"coco": read_columns}
_QUICK_CHECK_IMAGES = 32  # images whose headers quick_check reads


@dataclass
class CheckedSplit:
    """What the page shows of a split.

    Attributes:
        title: Such as 'train set train2017'.
        folder: Its image folder.
        names: (M,) Names of its images.
        files: What is known of the image files.
        persons: N persons; None if they cannot be read.
        suspicious: (N,) bool, persons to show.
        left_right_order: (N, P) See left_right.order_pairs.
    """

    title: str
    folder: ImageFolder
    names: Sequence[str] = ()
    files: images.ImageFiles | None = None
    persons: AnnotatedPersons | None = None
    suspicious: np.ndarray | None = None
    left_right_order: np.ndarray | None = None


def check(sources: Sequence[SplitSource]) -> tuple[list[Finding], list[CheckedSplit]]:
    """Check training splits and, as the last one, the test split.

    Errors in files are findings and do not raise.
    """
    test_source = sources[-1]
    dataset_findings = Findings("dataset file")
    for remark in test_source.data.remarks:
        dataset_findings.warning(remark)
    items = dataset_findings.items
    splits = []
    for source in sources:
        findings = Findings(source.title)
        splits.append(_check_split(source, findings))
        items += findings.items
    findings = Findings("train and test")
    test = splits[-1]
    for train in splits[:-1]:
        if train.files is not None and test.files is not None:
            images.check_apart(
                findings,
                (train.folder, train.names, train.files),
                (test.folder, test.names, test.files),
            )
    train_order, test_order = splits[0].left_right_order, test.left_right_order
    if train_order is not None and test_order is not None:
        left_right.compare(findings, train_order, test_order)
    return items + findings.items, splits


def _check_split(source: SplitSource, findings: Findings) -> CheckedSplit:
    result = CheckedSplit(source.title, source.images)
    columns = None
    if source.data.format in COLUMN_READERS:
        columns = _read_columns(source, findings)
        if columns is None:
            return result
    table = _read_table(source, findings)
    if columns is not None:
        _check_columns(source, findings, result, columns)
    elif table is not None:
        result.names = list(table.image_names)
        result.files = images.check(findings, result.folder, result.names, None)
        if table.has_keypoints:
            _check_persons(findings, result, AnnotatedPersons.from_table(table))
    if table is not None:
        persons.report_dropped(findings, table)
    return result


def _read_columns(source: SplitSource, findings: Findings) -> Arrays | None:
    """Return the columns of the annotation file; None, with an error, if it cannot be read."""
    if source.annotations is None:
        findings.error(f"annotations: {source.annotations_error}")
        return None
    category = source.data.category
    joints = source.data.skeleton.num_keypoints
    reader = COLUMN_READERS[source.data.format]
    try:
        return cached(
            source.annotations,
            f"check of category {category!r} with {joints} joints",
            partial(reader, source.annotations, joints, category),
            source.cache,
        )
    except PoiseError as error:
        findings.error(f"annotations: {error}")
        return None


def _read_table(source: SplitSource, findings: Findings) -> PersonTable | None:
    """Read the persons as a run does and check that they can be scored."""
    table = None
    try:
        table = source.read_table()
        if not source.is_train:
            evaluator = source.build_evaluator()
            evaluator.check(table)
            check_scorable(evaluator, findings)
    except PoiseError as error:
        findings.error(f"a run would end with: {error}")
    return table


def check_scorable(evaluator: Evaluator, findings: Findings) -> None:
    """Find a test split in which no person counts in the AP. Raises DataError."""
    reason = evaluator.explain_unscorable()
    if reason:
        findings.error(f"scoring: every AP is -1: {reason}")


def _check_columns(
    source: SplitSource, findings: Findings, result: CheckedSplit, columns: Arrays
) -> None:
    """Check a file in COCO's format entry by entry."""
    assert source.annotations is not None
    data, path = source.data, source.annotations
    result.names = list(PackedStrings(columns["name_buffer"], columns["name_ends"]))
    findings.note(
        f"annotations: {path}: {len(result.names)} images, {columns['objects'].sum()} annotations"
    )
    for text, count, example in zip(
        columns["fault_texts"], columns["fault_counts"], columns["fault_examples"]
    ):
        description = _singular(text) if count == 1 else text
        findings.error(f"annotations: {count} {description} ({example})")
    _check_ids(findings, columns, result.names)
    _check_category(findings, columns, data, path, labelled=source.labelled)
    result.files = images.check(findings, result.folder, result.names, columns["image_sizes"])
    annotated, num_keypoints = _annotated_persons(findings, columns, data)
    if len(annotated.ids):
        assert annotated.area is not None
        needs_areas = EVALUATORS[data.metric].needs_areas
        result.suspicious = persons.check_boxes(findings, annotated)
        persons.check_areas(
            findings,
            annotated,
            annotated.area,
            needed=not source.is_train and source.labelled and needs_areas,
        )
        persons.check_duplicates(findings, annotated)
        _check_persons(findings, result, annotated, num_keypoints)
    elif source.labelled:
        findings.error("persons: none with a labeled joint")
    if source.uses_detections:
        _check_detections(source, findings, columns, annotated)


def _check_detections(
    source: SplitSource, findings: Findings, columns: Arrays, annotated: AnnotatedPersons
) -> None:
    if source.detections is None:
        findings.error(
            "detections: TEST.COCO_BBOX_FILE is empty and TEST.USE_GT_BBOX False;"
            " tools/make_boxes.py writes a detection file"
        )
        return
    try:
        boxes = detections.read(source.detections, findings)
        if boxes is not None:
            detections.check(
                findings,
                boxes,
                annotated,
                columns["image_ids"],
                category_id(columns, source.data.category),
                source.min_score,
            )
    except DataError as error:
        findings.error(f"detections: {error}")


def _annotated_persons(
    findings: Findings, columns: Arrays, data: DatasetInfo
) -> tuple[AnnotatedPersons, np.ndarray]:
    """Return the persons that a training uses and their num_keypoints.

    They have a labeled keypoint, are in a listed image and are no crowd regions.
    """
    image_index, is_listed = _image_positions(columns)
    if not is_listed.all():
        findings.error(
            f"ids: {(~is_listed).sum()} annotations are of images that the file does not list"
            f" (annotation {list_first(columns['ids'][~is_listed])}, image"
            f" {list_first(columns['image_id'][~is_listed])})"
        )
    keypoints = columns["keypoints"]
    is_person = is_listed & ~columns["crowd"]
    is_used = is_person & (keypoints[:, :, 2] != 0).any(axis=1)
    is_unlabelled = is_person & ~is_used & (columns["counted"] > 0)
    if is_unlabelled.any():
        findings.error(
            f"visibility: {is_unlabelled.sum()} annotations have num_keypoints above 0 and no"
            f" labeled joint (annotation {list_first(columns['ids'][is_unlabelled])}); training"
            " leaves them out, the AP counts them as missed"
        )
    annotated = AnnotatedPersons(
        data.skeleton,
        columns["ids"][is_used],
        image_index[is_used],
        keypoints[is_used, :, :2],
        keypoints[is_used, :, 2],
        columns["boxes"][is_used],
        columns["image_sizes"],
        columns["area"][is_used],
    )
    return annotated, columns["counted"][is_used]


def _image_positions(columns: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return the position (N,) of each annotation's image, and whether it is listed (N,)."""
    image_ids = columns["image_ids"]
    if not len(image_ids):
        count = len(columns["image_id"])
        return np.zeros(count, np.int64), np.zeros(count, bool)
    order = np.argsort(image_ids, kind="stable")
    place = np.searchsorted(image_ids[order], columns["image_id"])
    position = order[np.minimum(place, len(image_ids) - 1)]
    return position, image_ids[position] == columns["image_id"]


def _check_persons(
    findings: Findings,
    result: CheckedSplit,
    annotated: AnnotatedPersons,
    num_keypoints: np.ndarray | None = None,
) -> None:
    persons.check_flags(findings, annotated, num_keypoints)
    suspicious = persons.check_joints(findings, annotated)
    if result.folder.exif and result.files is not None:
        persons.check_turned(findings, annotated, result.files.orientation)
    result.persons = annotated
    result.suspicious = suspicious if result.suspicious is None else suspicious | result.suspicious
    result.left_right_order = left_right.check(
        findings, annotated.keypoints, annotated.labelled, annotated.skeleton
    )


def _singular(text: str) -> str:
    for many, one in (
        ("annotations", "annotation"),
        ("images", "image"),
        (" have ", " has "),
        (" are no objects", " is no object"),
    ):
        text = text.replace(many, one, 1)
    return text


def _check_ids(findings: Findings, columns: Arrays, names: Sequence[str]) -> None:
    for what, values in (
        ("annotations", columns["all_ids"]),
        ("images", columns["image_ids"]),
        ("categories", columns["category_ids"]),
    ):
        unique, count = np.unique(values, return_counts=True)
        if (count > 1).any():
            findings.error(
                f"ids: {(count > 1).sum()} ids of {what} come more than once:"
                f" {list_first(unique[count > 1].tolist())}"
            )
    if columns["text_ids"]:
        findings.warning(
            f"ids: {columns['text_ids']} entries have an id written as text or with a "
            "decimal point; Poise reads it as a whole number, pycocotools does not"
        )
    if len(set(names)) < len(names):
        unique, count = np.unique(np.array(names), return_counts=True)
        findings.error(
            f"images: {(count > 1).sum()} file names are listed more than once:"
            f" {list_first(unique[count > 1].tolist())}"
        )


def _check_category(
    findings: Findings, columns: Arrays, data: DatasetInfo, path: Path, *, labelled: bool
) -> None:
    each = zip(columns["category_ids"], columns["category_names"], columns["objects"])
    listed = ", ".join(f"{name or 'unnamed'} ({number}): {count}" for number, name, count in each)
    if len(columns["person"]):
        _check_category_names(findings, columns, data, listed)
        _check_joint_names(findings, columns["joint_names"].tolist(), data, path)
    elif labelled:
        findings.error(
            f"categories: none is {data.category!r}, which `category` of {data.path} names; the"
            f" file has {listed or 'none'}"
        )


def _check_category_names(
    findings: Findings, columns: Arrays, data: DatasetInfo, listed: str
) -> None:
    """Find several categories, and several of the same name."""
    ids, names = columns["category_ids"], columns["category_names"]
    if len(ids) < 2:
        return
    person = int(columns["person"][0])
    findings.note(
        f"categories: objects of each: {listed}; only {data.category!r} ({person}) is used"
    )
    same_name = ids[names == names[ids == person][0]]
    same_name = same_name[np.sort(np.unique(same_name, return_index=True)[1])]  # in file order
    if len(same_name) > 1:
        findings.warning(
            f"categories: {len(same_name)} have the name of {data.category!r} (ids"
            f" {list_first(same_name.tolist(), 8)}); {person} is used, the one with annotations"
        )


def _check_joint_names(findings: Findings, names: list[str], data: DatasetInfo, path: Path) -> None:
    """Compare the keypoint names of the annotation file with those of the dataset file."""
    expected = list(data.skeleton.names)
    try:
        coco.check_order(names, data, path)
    except DataError as error:
        findings.error(f"categories: {error}")
        return
    if names and len(names) != len(expected):
        findings.error(
            f"categories: the file's category has {len(names)} joints ({list_first(names, 6)}),"
            f" `joints` of {data.path} {len(expected)}"
        )
    elif names and names != expected:
        differ = [f"{a} is {b}" for a, b in zip(names, expected) if a != b]
        findings.warning(
            f"categories: {len(differ)} joints have another name in {data.path}:"
            f" {list_first(differ, 5)}; are they the same joints, in this order?"
        )


def quick_check(
    train: Split, test: Split, *, names: tuple[str, str], evaluator: Evaluator, seed: int
) -> list[Finding]:
    """Find errors and warnings that cost no time in tables that a run has read.

    Args:
        train: Table and images of the training split.
        test: Table and images of the test split.
        names: Their names, for the titles.
        evaluator: The evaluator of the test split.
        seed: Seed of the choice of images.
    """
    items: list[Finding] = []
    orders: list[np.ndarray] = []
    files: list[list[tuple[ImageFolder, list[str], images.ImageFiles]]] = []
    for kind, name, (table, folder) in zip(("train", "test"), names, (train, test)):
        findings = Findings(f"{kind} set {name}")
        if table.has_keypoints:
            annotated = AnnotatedPersons.from_table(table)
            persons.check_flags(findings, annotated)
            persons.check_joints(findings, annotated)
            orders.append(
                left_right.check(
                    findings, annotated.keypoints, annotated.labelled, annotated.skeleton
                )
            )
        persons.report_dropped(findings, table)
        if kind == "test":
            check_scorable(evaluator, findings)
        files.append([])
        for source, (source_folder, image_names, places) in _by_folder(table, folder).items():
            source_findings = Findings(f"DATASET.MIX.{source}") if source else findings
            checked = _check_some_images(
                source_findings, table, source_folder, image_names, places, seed
            )
            files[-1].append((source_folder, image_names, checked))
            items += [finding for finding in source_findings.items if finding.kind != NOTE]
    findings = Findings("train and test")
    for train_files, test_files in product(*files):
        images.check_apart(findings, train_files, test_files)
    if len(orders) == 2:
        left_right.compare(findings, *orders)
    return items + findings.items


def log_quick_check(
    train: Split, test: Split, *, names: tuple[str, str], evaluator: Evaluator, seed: int
) -> None:
    """Log each finding of `quick_check` as a warning."""
    try:
        findings = quick_check(train, test, names=names, evaluator=evaluator, seed=seed)
    except DataError as error:  # an archive that changed meanwhile
        log.warning("the data could not be checked: %s", error)
        return
    for finding in findings:
        log.warning("%s", finding)
    if findings:
        log.warning(
            "tools/check_data.py with the same arguments checks all of it, and shows pictures"
        )


def _by_folder(
    table: PersonTable, folder: ImageFolder | ConcatImageFolders
) -> dict[str, tuple[ImageFolder, list[str], np.ndarray]]:
    """Group the images with persons by source.

    Returns:
        {name in DATASET.MIX, '' for the first: (folder, image names, their places in the table)}
    """
    places = np.unique(table.image_index)
    names = [table.image_names[int(place)] for place in places]
    if isinstance(folder, ImageFolder):
        return {"": (folder, names, places)}
    parts = {}
    for key, source_folder in folder.folders.items():
        rows = [row for row, name in enumerate(names) if name.startswith(f"{key}/")]
        own_names = [names[row].removeprefix(f"{key}/") for row in rows]
        parts[key] = source_folder, own_names, places[rows]
    return parts


def _check_some_images(
    findings: Findings,
    table: PersonTable,
    folder: ImageFolder,
    names: list[str],
    places: np.ndarray,
    seed: int,
) -> images.ImageFiles:
    """Check that the images exist, and for some of them that the keypoints are inside."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(names))[:_QUICK_CHECK_IMAGES])
    files = images.check(findings, folder, names, None, opened=chosen)
    if table.has_keypoints:
        rows = np.flatnonzero(np.isin(table.image_index, places[files.claimed[:, 0] > 0]))
        sizes = files.claimed[np.searchsorted(places, table.image_index[rows])][:, None]
        outside = (
            (table.keypoints[rows] > sizes + 1) & (table.visibility[rows] > 0)[:, :, None]
        ).any(axis=(1, 2))
        if outside.sum() > 0.1 * len(rows):
            findings.error(
                f"images: {outside.sum()} of {len(rows)} persons have joints beyond their"
                " image: the images have another size than those that were annotated"
            )
    return files
