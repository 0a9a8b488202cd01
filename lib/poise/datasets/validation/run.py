"""The sets of an experiment, checked one after the other and against each other: in full by
tools/check_data.py, in short when a training begins.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.config.datasets import (
    annotation_path,
    dataset_info,
    image_folder,
    require_annotation_path,
    split_info,
)
from poise.datasets import PersonTable, coco, read_table
from poise.datasets.coco_files import category_id
from poise.datasets.mixing import ConcatImageFolders, cfg_for_source
from poise.datasets.validation import detections, images, left_right
from poise.datasets.validation import persons as people
from poise.datasets.validation.columns import read_columns
from poise.datasets.validation.findings import FAULT, NOTE, WARNING, Finding, Findings, some
from poise.datasets.validation.persons import AnnotatedPersons
from poise.errors import DataError, PoiseError
from poise.evaluation.evaluators import EVALUATORS, build_evaluator
from poise.io.cache import Arrays, cached
from poise.io.image_folder import ImageFolder
from poise.structures.person_table import PackedStrings
from poise.structures.skeleton import DatasetInfo

log = logging.getLogger(__name__)

#: formats whose annotation files are checked entry by entry; of others the table is checked
COLUMN_READERS = {"coco": read_columns}
_LOOKED_AT = 32  # images whose headers a training reads before it begins


@dataclass
class CheckedSet:
    """What is left of a set that was checked. title: 'train set train2017'. people: None where
    it could not be read. odd (N,) bool: persons to look at.
    """

    title: str
    folder: ImageFolder
    names: Sequence[str] = ()
    files: images.ImageFiles | None = None
    people: AnnotatedPersons | None = None
    odd: np.ndarray | None = None
    signs: np.ndarray | None = None


def check(cfg: CfgNode) -> tuple[list[Finding], list[CheckedSet]]:
    """Everything, of DATASET.TRAIN_SET, the sets of DATASET.MIX and DATASET.TEST_SET. Nothing
    that is wrong with a file raises.
    """
    file, sets = Findings("dataset file"), []
    # those of DATASET.MIX are not scored, and mirrored as this one says
    for remark in dataset_info(cfg).remarks:
        file.warning(remark)
    found = file.found
    trained = [
        (cfg, f"train set {cfg.DATASET.TRAIN_SET}"),
        *((cfg_for_source(cfg, name), f"DATASET.MIX.{name}") for name in sorted(cfg.DATASET.MIX)),
    ]
    for own, title in [*trained, (cfg, f"test set {cfg.DATASET.TEST_SET}")]:
        findings = Findings(title)
        sets.append(_check_set(own, findings, train=len(sets) < len(trained)))
        found += findings.found
    both = Findings("train and test")
    test = sets[-1]
    for train in sets[:-1]:
        if train.files is not None and test.files is not None:
            images.check_apart(
                both,
                (train.folder, train.names, train.files),
                (test.folder, test.names, test.files),
            )
    if sets[0].signs is not None and test.signs is not None:
        left_right.compare(both, sets[0].signs, test.signs)
    return found + both.found, sets


def _check_set(cfg: CfgNode, found: Findings, *, train: bool) -> CheckedSet:
    split = cfg.DATASET.TRAIN_SET if train else cfg.DATASET.TEST_SET
    data, result = dataset_info(cfg), CheckedSet(found.where, image_folder(cfg, split))
    detected = not train and not cfg.TEST.USE_GT_BBOX
    table = columns = None
    if data.format in COLUMN_READERS:
        columns = _columns(cfg, split, found)
        if columns is None:
            return result
    try:  # what a run would read, whatever else is found
        table = read_table(cfg, train=train)
        if not train:
            build_evaluator(cfg).check(table)
            check_scored(cfg, found)
    except PoiseError as error:
        found.fault(f"a run would end with: {error}")
    if columns is not None:
        _check_coco(
            cfg,
            split,
            found,
            result,
            columns,
            detected=detected,
            scored=not train and split_info(cfg, split).labelled,
        )
    elif table is not None:
        result.names = list(table.image_names)
        result.files = images.check(found, result.folder, result.names, None)
        if table.has_keypoints:
            _check_people(found, result, AnnotatedPersons.of_table(table))
    if table is not None:
        people.dropped(found, table)
    return result


def check_scored(cfg: CfgNode, found: Findings) -> None:
    """Find a test set of which nobody counts in the AP. Raises DataError for its annotations."""
    if reason := build_evaluator(cfg).explain_unscorable():
        found.fault(f"scoring: every AP is -1: {reason}")


def _columns(cfg: CfgNode, split: str, found: Findings) -> Arrays | None:
    data = dataset_info(cfg)
    joints = data.skeleton.num_keypoints
    try:
        path = require_annotation_path(cfg, split)
        return cached(
            path,
            f"check of category {data.category!r} with {joints} joints",
            partial(COLUMN_READERS[data.format], path, joints, data.category),
            cfg.DATASET.CACHE,
        )
    except PoiseError as error:
        found.fault(f"annotations: {error}")
        return None


def _check_coco(
    cfg: CfgNode,
    split: str,
    found: Findings,
    result: CheckedSet,
    columns: Arrays,
    *,
    detected: bool,
    scored: bool,
) -> None:
    data, path = dataset_info(cfg), annotation_path(cfg, split)
    result.names = list(PackedStrings(columns["name_buffer"], columns["name_ends"]))
    found.note(
        f"annotations: {path}: {len(result.names)} images, {columns['objects'].sum()} annotations"
    )
    for text, count, example in zip(
        columns["fault_texts"], columns["fault_counts"], columns["fault_examples"]
    ):
        found.fault(f"annotations: {count} {_singular(text) if count == 1 else text} ({example})")
    _check_ids(found, columns, result.names)
    _check_category(found, columns, data, path, labelled=split_info(cfg, split).labelled)
    result.files = images.check(found, result.folder, result.names, columns["image_sizes"])
    persons, counted = _persons(found, columns, data)
    if len(persons.ids):
        result.odd = people.check_boxes(found, persons)
        people.check_areas(found, persons, needed=scored and EVALUATORS[data.metric].needs_areas)
        people.check_repeats(found, persons)
        _check_people(found, result, persons, counted)
    elif split_info(cfg, split).labelled:
        found.fault("persons: none with a labelled joint")
    if detected and cfg.TEST.COCO_BBOX_FILE:
        try:
            boxes = detections.read(cfg, found)
            if boxes is not None:
                detections.check(
                    found,
                    boxes,
                    persons,
                    columns["image_ids"],
                    category_id(columns, data.category),
                    cfg.TEST.IMAGE_THRE,
                )
        except DataError as error:
            found.fault(f"detections: {error}")
    elif detected:
        found.fault(
            "detections: TEST.COCO_BBOX_FILE is empty and TEST.USE_GT_BBOX False;"
            " tools/make_boxes.py writes a detection file"
        )


def _persons(
    found: Findings, columns: Arrays, data: DatasetInfo
) -> tuple[AnnotatedPersons, np.ndarray]:
    """Persons with a labelled joint in an image that is listed, without crowds, and their
    num_keypoints.
    """
    order = np.argsort(columns["image_ids"], kind="stable")
    sorted_ids = columns["image_ids"][order]
    place = np.minimum(
        np.searchsorted(sorted_ids, columns["image_id"]), max(len(sorted_ids) - 1, 0)
    )
    listed = (
        sorted_ids[place] == columns["image_id"] if len(sorted_ids) else np.zeros(len(place), bool)
    )
    if not listed.all():
        found.fault(
            f"ids: {(~listed).sum()} annotations are of images that the file does not list"
            f" (annotation {some(columns['ids'][~listed])}, image"
            f" {some(columns['image_id'][~listed])})"
        )
    keypoints = columns["keypoints"]
    kept = listed & ~columns["crowd"] & (keypoints[:, :, 2] != 0).any(axis=1)
    bare = listed & ~columns["crowd"] & ~kept & (columns["counted"] > 0)
    if bare.any():
        found.fault(
            f"visibility: {bare.sum()} annotations have num_keypoints above 0 and no labelled joint"
            f" (annotation {some(columns['ids'][bare])}); training leaves them out, the AP counts"
            " them as missed"
        )
    return (
        AnnotatedPersons(
            data.skeleton,
            columns["ids"][kept],
            order[place[kept]],
            keypoints[kept, :, :2],
            keypoints[kept, :, 2],
            columns["boxes"][kept],
            columns["image_sizes"],
            columns["area"][kept],
        ),
        columns["counted"][kept],
    )


def _check_people(
    found: Findings,
    result: CheckedSet,
    persons: AnnotatedPersons,
    counted: np.ndarray | None = None,
) -> None:
    people.check_flags(found, persons, counted)
    odd = people.check_joints(found, persons)
    if result.folder.exif and result.files is not None:
        people.check_turned(found, persons, result.files.orientation)
    result.people, result.odd = persons, odd if result.odd is None else odd | result.odd
    result.signs = left_right.check(found, persons.joints, persons.labelled, persons.skeleton)


def _singular(text: str) -> str:
    for many, one in (
        ("annotations", "annotation"),
        ("images", "image"),
        (" have ", " has "),
        (" are no objects", " is no object"),
    ):
        text = text.replace(many, one, 1)
    return text


def _check_ids(found: Findings, columns: Arrays, names: Sequence[str]) -> None:
    for what, values in (
        ("annotations", columns["all_ids"]),
        ("images", columns["image_ids"]),
        ("categories", columns["category_ids"]),
    ):
        unique, count = np.unique(values, return_counts=True)
        if (count > 1).any():
            found.fault(
                f"ids: {(count > 1).sum()} ids of {what} come more than once:"
                f" {some(unique[count > 1].tolist())}"
            )
    if columns["text_ids"]:
        found.warning(
            f"ids: {columns['text_ids']} entries have an id written as text or with a "
            "decimal point; Poise reads it as a whole number, pycocotools does not"
        )
    if len(set(names)) < len(names):
        unique, count = np.unique(np.array(names), return_counts=True)
        found.fault(
            f"images: {(count > 1).sum()} file names are listed more than once:"
            f" {some(unique[count > 1].tolist())}"
        )


def _check_category(
    found: Findings, columns: Arrays, data: DatasetInfo, path: Path, *, labelled: bool
) -> None:
    of_each = zip(columns["category_ids"], columns["category_names"], columns["objects"])
    listed = ", ".join(
        f"{name or 'unnamed'} ({number}): {count}" for number, name, count in of_each
    )
    if not len(columns["person"]):
        if labelled:
            found.fault(
                f"categories: none is {data.category!r}, which `category` of {data.path} names; the"
                f" file has {listed or 'none'}"
            )
        return
    if len(columns["category_ids"]) > 1:
        person = int(columns["person"][0])
        found.note(
            f"categories: objects of each: {listed}; only {data.category!r} ({person}) is used"
        )
        alike = columns["category_ids"][
            columns["category_names"]
            == columns["category_names"][columns["category_ids"] == person][0]
        ]
        alike = alike[np.sort(np.unique(alike, return_index=True)[1])]  # in the file's order
        if len(alike) > 1:
            found.warning(
                f"categories: {len(alike)} have the name of {data.category!r} (ids"
                f" {some(alike.tolist(), 8)}); {person} is used, the one with annotations"
            )
    theirs, ours = columns["joint_names"].tolist(), list(data.skeleton.names)
    try:
        coco.check_order(theirs, data, path)
    except DataError as error:
        found.fault(f"categories: {error}")
        return
    if theirs and len(theirs) != len(ours):
        found.fault(
            f"categories: the file's category has {len(theirs)} joints ({some(theirs, 6)}),"
            f" `joints` of {data.path} {len(ours)}"
        )
    elif theirs and theirs != ours:
        differ = [f"{a} is {b}" for a, b in zip(theirs, ours) if a != b]
        found.warning(
            f"categories: {len(differ)} joints have another name in {data.path}: {some(differ, 5)};"
            " are they the same joints, in this order?"
        )


def verdict(found: Sequence[Finding]) -> str:
    """One line for all of it."""
    faults, warnings = (sum(finding.kind == kind for finding in found) for kind in (FAULT, WARNING))
    warned = f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
    return (
        f"verdict: {faults} fault{'s' * (faults > 1)} found{warned}; mend before training"
        if faults
        else f"verdict: fine{warned}"
    )


def report(found: Sequence[Finding]) -> str:
    """The findings as lines, faults first, and the verdict."""
    lines = [
        str(finding) for kind in (FAULT, WARNING, NOTE) for finding in found if finding.kind == kind
    ]
    return "\n".join([*lines, verdict(found)])


def quick_check(
    cfg: CfgNode,
    train: tuple[PersonTable, ImageFolder | ConcatImageFolders],
    test: tuple[PersonTable, ImageFolder],
) -> list[Finding]:
    """What a training says before it begins, of tables that it has read: faults and warnings
    that cost no time to find.
    """
    both, kept, signs = Findings("train and test"), [], []
    seen: list[list[tuple[ImageFolder, list[str], images.ImageFiles]]] = []
    for title, split, (table, folder) in (
        ("train set", cfg.DATASET.TRAIN_SET, train),
        ("test set", cfg.DATASET.TEST_SET, test),
    ):
        found = Findings(f"{title} {split}")
        if table.has_keypoints:
            persons = AnnotatedPersons.of_table(table)
            people.check_flags(found, persons)
            people.check_joints(found, persons)
            signs.append(
                left_right.check(found, persons.joints, persons.labelled, persons.skeleton)
            )
        people.dropped(found, table)
        if table is test[0]:
            check_scored(cfg, found)
        seen.append([])
        for name, (own, names, places) in _by_folder(table, folder).items():
            mine = Findings(f"DATASET.MIX.{name}") if name else found
            seen[-1].append(
                (own, names, _look_at_images(mine, table, own, names, places, cfg.SEED))
            )
            kept += [finding for finding in mine.found if finding.kind != NOTE]
    for one, other in product(*seen):
        images.check_apart(both, one, other)
    if len(signs) == 2:
        left_right.compare(both, *signs)
    return kept + both.found


def _by_folder(
    table: PersonTable, folder: ImageFolder | ConcatImageFolders
) -> dict[str, tuple[ImageFolder, list[str], np.ndarray]]:
    """{name in DATASET.MIX, '' for the first set: (its folder, its images with persons, their
    places in the table)}.
    """
    places = np.unique(table.image_index)
    names = [table.image_names[int(place)] for place in places]
    if isinstance(folder, ImageFolder):
        return {"": (folder, names, places)}
    found = {}
    for key, own in folder.folders.items():
        mine = [number for number, name in enumerate(names) if name.startswith(f"{key}/")]
        found[key] = own, [names[number][len(key) + 1 :] for number in mine], places[mine]
    return found


def _look_at_images(
    found: Findings,
    table: PersonTable,
    folder: ImageFolder,
    names: list[str],
    places: np.ndarray,
    seed: int,
) -> images.ImageFiles:
    """Whether the images are there, and of a few, whether the joints lie in them."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(names))[:_LOOKED_AT])
    files = images.check(found, folder, names, None, opened=chosen)
    if table.has_keypoints:
        rows = np.flatnonzero(np.isin(table.image_index, places[files.claimed[:, 0] > 0]))
        sizes = files.claimed[np.searchsorted(places, table.image_index[rows])][:, None]
        outside = (
            (table.keypoints[rows] > sizes + 1) & (table.visibility[rows] > 0)[:, :, None]
        ).any(axis=(1, 2))
        if outside.sum() > 0.1 * len(rows):
            found.fault(
                f"images: {outside.sum()} of {len(rows)} persons looked at have joints beyond their"
                " image: the images have another size than those that were annotated"
            )
    return files


def log_quick_check(cfg: CfgNode, train: tuple, test: tuple) -> None:
    """`quick_check` in the log, each finding a warning; the advice to check in full behind them."""
    try:
        found = quick_check(cfg, train, test)
    except DataError as error:  # an archive that changed while it was looked at
        log.warning("the data could not be looked at: %s", error)
        return
    for finding in found:
        log.warning("%s", finding)
    if found:
        log.warning(
            "tools/check_data.py with the same arguments checks all of it, and shows pictures"
        )
