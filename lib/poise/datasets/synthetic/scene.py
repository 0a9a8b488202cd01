"""One synthetic picture: who stands where, drawn from back to front, and what can be read off
the finished picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from poise.datasets.synthetic.backdrop import draw_backdrop, draw_occluder, draw_stool
from poise.datasets.synthetic.body import View, pose_body, sample_build, sample_pose, sample_view
from poise.datasets.synthetic.look import sample_look
from poise.datasets.synthetic.paint import GRAIN, PART_BITS, Canvas, Light
from poise.datasets.synthetic.person import Person, draw_person, mpii_joints, visible_joints
from poise.structures.boxes import intersection_area

PERSON_COUNTS = (0.24, 0.34, 0.23, 0.12, 0.07)  # of 1 to 5 persons: 2.4 on average
CUT_SHARE, OCCLUDER_SHARE = (0.04, 0.14), (0.12, 0.45)  # in an easy and in a hard set
CROWD_SHARE = 0.045
UNLABELED_SHARE = 0.05
_MIN_PIXELS = 40  # a person with fewer visible pixels is not annotated


@dataclass
class Figure:
    """A person as annotated: COCO joints (17, 3), MPII joints (16, 3), and mask (H, W) bool of
    its visible pixels.
    """

    person: Person
    joints: np.ndarray
    mpii: np.ndarray
    mask: np.ndarray


@dataclass
class Scene:
    """image (H, W, 3) uint8 BGR; crowd: mask (H, W) bool of people too many to label, or None;
    quality: of the JPEG.
    """

    image: np.ndarray
    figures: list[Figure]
    crowd: np.ndarray | None
    quality: int


def sample_scene(rng: np.random.Generator, hardness: float = 1.0) -> Scene:
    """Draw one image and its annotations.

    hardness: 0 (few kinds of pose, mostly from the front, calm places, little hidden) to 1
    (everything).
    """
    width = int(rng.integers(320, 481))
    height = int(np.clip(round(width * rng.choice((0.75, 0.75, 0.67, 0.8))), 240, 360))
    picture, horizon = draw_backdrop(rng, width, height, hardness)
    source = np.array((rng.uniform(-0.75, 0.75), rng.uniform(-0.7, -0.1), rng.uniform(0.6, 1.0)))
    light = Light(tuple((source / np.linalg.norm(source)).tolist()), float(rng.uniform(0.38, 0.6)))
    canvas = Canvas(picture, light)
    crowd_size = _draw_crowd(canvas, rng, horizon) if rng.random() < CROWD_SHARE else 0
    people = _place_people(rng, width, height, horizon, hardness)
    for k, person in enumerate(people):
        _draw_shadow(canvas, person)
        if person.body.pose.name == "sit" and abs(person.body.view.roll) < 30:
            seat = person.points["pelvis"][:2] + (0, 0.055 * person.scale)
            size = person.scale
            draw_stool(
                canvas,
                rng,
                seat,
                max(person.points[f"{s}_heel"][1] for s in ("left", "right")),
                size,
            )
        draw_person(canvas, person, crowd_size + k)
    if rng.random() < _between(OCCLUDER_SHARE, hardness):
        _draw_occluders(canvas, rng, people)
    figures = []
    for k, person in enumerate(people):
        mask = (canvas.owner >> PART_BITS) == crowd_size + k + 1
        area = np.count_nonzero(mask)
        joints = visible_joints(person, crowd_size + k, canvas.owner, rng)
        unlabeled = rng.random() < (UNLABELED_SHARE if area > 700 else 0.25)
        if area >= _MIN_PIXELS:
            if unlabeled:
                joints[:] = 0
            figures.append(
                Figure(person, joints, mpii_joints(person, joints, (height, width)), mask)
            )
    crowd = None
    if crowd_size:
        index = canvas.owner >> PART_BITS
        crowd = (index >= 1) & (index <= crowd_size)
        crowd = crowd if np.count_nonzero(crowd) > 100 else None
    return Scene(
        _photograph(rng, canvas.image, hardness), figures, crowd, int(rng.integers(80, 96))
    )


def _between(ends, hardness):
    return ends[0] + hardness * (ends[1] - ends[0])


def _sample_person(rng, scale, hardness, view=None):
    body = pose_body(
        sample_build(rng), sample_pose(rng, hardness), view or sample_view(rng, hardness)
    )
    return Person(body, sample_look(rng, hardness), scale, np.zeros(2))


def _moved(person, shift):
    return Person(person.body, person.look, person.scale, person.origin + shift)


def _place_people(rng, width, height, horizon, hardness):
    """Choose persons and their places; far (small) ones come first."""
    count = 1 + int(np.searchsorted(np.cumsum(PERSON_COUNTS), rng.random() * sum(PERSON_COUNTS)))
    # many people in one picture stand farther away
    top = (1.10, 1.02, 0.96, 0.90, 0.85)[count - 1]
    near = rng.random(count) < (0.42, 0.40, 0.36, 0.30, 0.24)[count - 1]
    far = np.exp(rng.uniform(np.log(0.36 - 0.11 * hardness), np.log(0.8), count))
    scales = np.sort(np.where(near, rng.uniform(0.75, top, count), far))
    eye = rng.uniform(0.6, 1.15)  # the camera's height above the ground, in persons
    placed = []
    boxes = np.zeros((0, 4))
    for scale in scales * height:
        person = _sample_person(rng, float(scale), hardness)
        box = person.reach_box()
        cut = rng.random() < _between(CUT_SHARE, hardness)
        best = None
        for _ in range(6):
            shift = _sample_place(rng, box, width, height, horizon + eye * scale, cut)
            moved = box + np.concatenate((shift, shift))
            overlap = _largest_overlap(moved, boxes)
            if best is None or overlap < best[0]:
                best = overlap, shift, moved
            if overlap < (0.06 + 0.2 * hardness if rng.random() < 0.7 else 0.5):
                break
        if best[0] > 0.35 + 0.3 * hardness and len(placed):
            continue  # no room: one person fewer rather than two in one place
        placed.append(_moved(person, best[1]))
        boxes = np.concatenate((boxes, best[2][None]))
    return placed


def _sample_place(rng, box, width, height, ground, cut):
    """(2,) shift that brings a box into the image, its lower edge near y = ground; with `cut`,
    over a border.
    """
    size = box[2:] - box[:2]
    room = np.array((width, height)) - size
    margin = rng.uniform(0, 0.06, 2) * np.maximum(room, 0)
    corner = np.array(
        (
            rng.uniform(0, 1) * room[0],
            np.clip(
                ground - size[1] + rng.normal(0, 8), margin[0], max(room[1] - margin[1], margin[0])
            ),
        )
    )
    if room[0] < 0:
        corner[0] = room[0] * rng.uniform(0.3, 0.7)
    if room[1] < 0:
        corner[1] = rng.uniform(0, 0.04) * height  # the head stays in, the feet go
    if cut:
        hidden = rng.uniform(0.12, 0.45)
        side = rng.integers(0, 4)
        if side == 0:
            corner[0] = -hidden * size[0]
        elif side == 1:
            corner[0] = width - (1 - hidden) * size[0]
        else:
            corner[1] = height - (1 - hidden) * size[1]
    return corner - box[:2]


def _largest_overlap(box, boxes):
    """The largest share of the smaller box that `box` (4,) and one of `boxes` (N, 4) have in
    common.
    """
    if not len(boxes):
        return 0.0
    both = intersection_area(box, boxes)
    areas = np.minimum((box[2:] - box[:2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(1))
    return float((both / areas).max())


def _draw_crowd(canvas, rng, horizon):
    """Draw a dense group of small people near the horizon; return how many."""
    width, height = canvas.size
    count = int(rng.integers(8, 15))
    middle = rng.uniform(0.15, 0.85) * width
    spread = rng.uniform(0.05, 0.14) * width
    scales = np.sort(rng.uniform(0.11, 0.20, count)) * height
    for k, scale in enumerate(scales):
        view = View(float(rng.uniform(-180, 180)), 8.0, 0.0)
        person = _sample_person(rng, float(scale), 0.5, view)
        box = person.reach_box()
        foot = np.array((np.clip(rng.normal(middle, spread), 0, width), horizon + 0.75 * scale))
        draw_person(canvas, _moved(person, foot - ((box[0] + box[2]) / 2, box[3])), k)
    return count


def _draw_shadow(canvas, person):
    if abs(person.body.view.roll) > 30:
        return
    feet = [
        person.points[f"{side}_{end}"][:2] for side in ("left", "right") for end in ("heel", "toes")
    ]
    feet = np.array(feet)
    reach = np.array((np.ptp(feet[:, 0]) / 2 + 0.05 * person.scale, 0.028 * person.scale))
    center = np.array(
        ((feet[:, 0].min() + feet[:, 0].max()) / 2, feet[:, 1].max() + 0.012 * person.scale)
    )
    for size, opacity in ((1.25, 0.16), (0.9, 0.22)):
        canvas.ellipse(center, np.diag(reach * size), np.zeros(3, np.float32), None, opacity)


def _draw_occluders(canvas, rng, people):
    for _ in range(1 + (rng.random() < 0.3)):
        near = None
        if rng.random() < 0.65:
            person = people[rng.integers(len(people))]
            box = person.reach_box()
            # rather over legs and flanks than over a whole small person
            near = np.array(
                (
                    rng.uniform(box[0] - 0.1 * person.scale, box[2] + 0.1 * person.scale),
                    box[1] + rng.uniform(0.55, 0.95) * (box[3] - box[1]),
                )
            )
        draw_occluder(canvas, rng, near)


def _photograph(rng, picture, hardness):
    """Brightness, color cast, blur and grain of a camera; returns uint8."""
    height, width = picture.shape[:2]
    gain = rng.uniform(0.92 - 0.1 * hardness, 1.08 + 0.07 * hardness) * (1 + rng.normal(0, 0.03, 3))
    picture = picture * gain.astype(np.float32) + np.float32(rng.uniform(-14, 12))
    if rng.random() < 0.2 + 0.4 * hardness:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.35, 0.75))
    y, x = rng.integers(0, GRAIN.shape[0] - height), rng.integers(0, GRAIN.shape[1] - width)
    picture += GRAIN[y : y + height, x : x + width] * np.float32(
        rng.uniform(0.5, 2.5 + 2.5 * hardness)
    )
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
