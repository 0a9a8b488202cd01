"""Write the findings as one self-contained HTML page with images of annotated persons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from poise.datasets.validation.findings import Finding, format_verdict, sort_by_kind
from poise.datasets.validation.persons import AnnotatedPersons
from poise.datasets.validation.run import CheckedSplit
from poise.errors import PoiseError, escape_html
from poise.io.files import atomic_write
from poise.visualization import draw
from poise.visualization.html import encode_data_uri, render_document, render_table

_SIDE = 320  # pixels of an image's longer side
NUM_IMAGES = 12  # of each kind and split


def write_page(
    path: str | Path,
    title: str,
    findings: Sequence[Finding],
    splits: Sequence[CheckedSplit],
    *,
    num_images: int = NUM_IMAGES,
    seed: int = 0,
) -> None:
    """Write the page. Raises DataError.

    Args:
        path: The HTML file.
        title: Its heading.
        findings: See run.check.
        splits: See run.check.
        num_images: Images of random persons of each split, and of suspicious ones.
        seed: Seed of the choice.
    """
    rows = [[finding.kind, finding.where, finding.text] for finding in sort_by_kind(findings)]
    parts = [
        f"<h1>{escape_html(title)}</h1>",
        f"<p><b>{escape_html(format_verdict(findings))}</b></p>",
        render_table(["kind", "where", "what"], rows, (0, 1, 2)),
    ]
    for split in splits:
        persons = split.persons
        if persons is None:
            continue
        parts.append(f"<h2>{escape_html(split.title)}</h2>" + _render_joints(persons))
        chosen = np.random.default_rng(seed).permutation(len(persons.ids))
        heading = f"{num_images} random persons"
        parts.append(_render_images(heading, split, persons, chosen, num_images))
        if split.suspicious is not None and split.suspicious.any():
            chosen = np.flatnonzero(split.suspicious)
            parts.append(_render_images("Suspicious persons", split, persons, chosen, num_images))
    with atomic_write(path) as part:
        part.write_text(render_document(title, parts), encoding="utf-8")


def _render_joints(persons: AnnotatedPersons) -> str:
    visibility = persons.visibility
    count = max(len(visibility), 1)
    rows = []
    for name, flags in zip(persons.skeleton.names, visibility.T):
        num_visible, num_hidden = int((flags == 2).sum()), int((flags == 1).sum())
        labelled = f"{100 * (flags > 0).sum() / count:.1f} %"
        rows.append([name, str(num_visible), str(num_hidden), labelled])
    return render_table(["joint", "visible", "hidden", "labeled in"], rows)


def _render_images(
    heading: str, split: CheckedSplit, persons: AnnotatedPersons, chosen: np.ndarray, count: int
) -> str:
    figures: list[str] = []
    for person in chosen.tolist():
        if len(figures) == count:
            break
        image_index = int(persons.image[person])
        if split.files is None or not split.files.there[image_index]:
            continue
        name = split.names[image_index]
        try:
            image = split.folder.read(name)
        except PoiseError as error:
            figures.append(f"<figure><figcaption>{escape_html(str(error))}</figcaption></figure>")
            continue
        caption = escape_html(f"{name}, annotation {persons.ids[person]}")
        figures.append(
            f'<figure><img src="{encode_data_uri(_draw_person(image, persons, person))}"'
            f' alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        )
    heading = f"<h3>{escape_html(heading)}</h3>"
    if not figures:
        return f"{heading}<p>None of their images exists.</p>"
    return f'{heading}<div class="panels">{"".join(figures)}</div>'


def _draw_person(image: np.ndarray, persons: AnnotatedPersons, person: int) -> np.ndarray:
    """Return the scaled region around a person with its box and keypoints.

    The person's left is orange, the right blue.
    """
    height, width = image.shape[:2]
    x, y, box_width, box_height = persons.boxes[person]
    corners = np.array([x, y, x + box_width, y + box_height])
    labelled = persons.visibility[person] > 0
    points = np.concatenate([persons.keypoints[person][labelled], corners.reshape(2, 2)])
    margin = 0.15 * (points.max(axis=0) - points.min(axis=0)) + 4
    low = np.clip(points.min(axis=0) - margin, 0, [width - 1, height - 1]).astype(int)
    high = np.clip(points.max(axis=0) + margin, low + 1, [width, height]).astype(int)
    region = image[low[1] : high[1], low[0] : high[0]]
    zoom = _SIDE / max(region.shape[:2])
    interpolation = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    panel = cv2.resize(region, None, fx=zoom, fy=zoom, interpolation=interpolation)
    draw.draw_box(panel, (corners - np.tile(low, 2)) * zoom)
    points = (persons.keypoints[person] - low + 0.5) * zoom - 0.5
    draw.draw_person(panel, points, persons.skeleton, shown=labelled)
    return panel
