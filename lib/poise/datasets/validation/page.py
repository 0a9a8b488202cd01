"""The findings as one HTML page that needs nothing else, with pictures of persons as they are
annotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from poise.datasets.validation.findings import FAULT, NOTE, WARNING, Finding
from poise.datasets.validation.run import CheckedSet, verdict
from poise.errors import PoiseError, escape_html
from poise.io.files import atomic_write
from poise.visualization import draw
from poise.visualization.html import encode_data_uri, render_document, render_table

_SIDE = 320  # pixels of a picture's longer side
PICTURES = 12  # of each kind and set


def write(
    path: str | Path,
    title: str,
    found: Sequence[Finding],
    sets: Sequence[CheckedSet],
    *,
    pictures: int = PICTURES,
    seed: int = 0,
) -> None:
    """Write the page. pictures: so many drawn at random of each set, and as many of the persons
    that stand out. Raises DataError where it cannot be written.
    """
    parts = [
        f"<h1>{escape_html(title)}</h1>",
        f"<p><b>{escape_html(verdict(found))}</b></p>",
        render_table(
            ["kind", "where", "what"],
            [
                [one.kind, one.where, one.text]
                for kind in (FAULT, WARNING, NOTE)
                for one in found
                if one.kind == kind
            ],
            (0, 1, 2),
        ),
    ]
    for one in sets:
        if one.people is None:
            continue
        parts.append(f"<h2>{escape_html(one.title)}</h2>" + _joints(one))
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(one.people.ids))
        parts.append(_pictures(f"{pictures} persons drawn at random", one, chosen, pictures))
        if one.odd is not None and one.odd.any():
            parts.append(_pictures("Persons who stand out", one, np.flatnonzero(one.odd), pictures))
    with atomic_write(path) as part:
        part.write_text(render_document(title, parts), encoding="utf-8")


def _joints(one: CheckedSet) -> str:
    visible, names = one.people.visible, one.people.skeleton.names
    count = max(len(visible), 1)
    rows = [
        [
            name,
            *(str(int((visible[:, j] == flag).sum())) for flag in (2, 1)),
            f"{100 * (visible[:, j] > 0).sum() / count:.1f} %",
        ]
        for j, name in enumerate(names)
    ]
    return render_table(["joint", "seen", "hidden", "labelled in"], rows)


def _pictures(title: str, one: CheckedSet, persons: np.ndarray, most: int) -> str:
    figures = []
    for person in persons.tolist():
        if len(figures) == most:
            break
        place = int(one.people.image[person])
        if one.files is None or not one.files.there[place]:
            continue
        try:
            image = one.folder.read(one.names[place])
        except PoiseError as error:
            figures.append(f"<figure><figcaption>{escape_html(str(error))}</figcaption></figure>")
            continue
        caption = escape_html(f"{one.names[place]}, annotation {one.people.ids[person]}")
        figures.append(
            f'<figure><img src="{encode_data_uri(_drawn(image, one, person))}"'
            f' alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        )
    return (
        f'<h3>{escape_html(title)}</h3><div class="panels">{"".join(figures)}</div>'
        if figures
        else f"<h3>{escape_html(title)}</h3><p>No image of them is there.</p>"
    )


def _drawn(image: np.ndarray, one: CheckedSet, person: int) -> np.ndarray:
    """The person's surroundings, enlarged or made smaller, with box and joints: the person's
    left is orange, the right blue.
    """
    people, height, width = one.people, image.shape[0], image.shape[1]
    box, labelled = people.boxes[person], people.visible[person] > 0
    points = np.concatenate(
        [people.joints[person][labelled], box[None, :2], box[None, :2] + box[None, 2:]]
    )
    margin = 0.15 * (points.max(axis=0) - points.min(axis=0)) + 4
    low = np.clip(points.min(axis=0) - margin, 0, [width - 1, height - 1]).astype(int)
    high = np.clip(points.max(axis=0) + margin, low + 1, [width, height]).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    zoom = _SIDE / max(part.shape[:2])
    panel = cv2.resize(
        part, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    )
    corners = np.concatenate([box[:2], box[:2] + box[2:]])
    draw.draw_box(panel, (corners - np.tile(low, 2)) * zoom)
    draw.draw_person(
        panel, (people.joints[person] - low + 0.5) * zoom - 0.5, people.skeleton, shown=labelled
    )
    return panel
