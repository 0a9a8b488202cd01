"""Draw a synthetic person part by part, farthest first, and label the keypoints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise.config.dataset_yaml import COCO, MPII
from poise.datasets.synthetic.body import Body
from poise.datasets.synthetic.head import (
    EARS,
    EYES,
    NOSE,
    draw_head,
    face_turn,
    head_radii,
    on_head,
    silhouette,
)
from poise.datasets.synthetic.look import Look
from poise.datasets.synthetic.paint import PART_BITS, Canvas, label

PARTS = (
    "torso",
    "neck",
    "head",
    "mane",
    "brim",
    "skirt",
    "backpack",
    "left_upper_arm",
    "right_upper_arm",
    "left_forearm",
    "right_forearm",
    "left_thigh",
    "right_thigh",
    "left_shin",
    "right_shin",
)
PART = {name: index for index, name in enumerate(PARTS)}
# a keypoint is visible if one of these parts is in front (clothes do not hide it); the names are
# without left_ and right_
_SHOWS = {
    "shoulder": ("torso", "upper_arm"),
    "elbow": ("upper_arm", "forearm"),
    "wrist": ("forearm",),
    "hip": ("torso", "thigh", "skirt"),
    "knee": ("thigh", "shin", "skirt"),
    "ankle": ("shin",),
}


@dataclass
class Person:
    """A person placed in an image: pixels per standing height, the image position (2,) of the
    pelvis, body and look.
    """

    body: Body
    look: Look
    scale: float
    origin: np.ndarray

    def __post_init__(self):
        offset = np.array((*self.origin, 0.0))
        self.points = {
            name: offset + self.scale * point for name, point in self.body.points.items()
        }
        self.radii = head_radii(self.body.build.head) * self.scale
        head = self.points["head"]
        frame = self.body.frames["head"]
        self.points["nose"] = on_head(NOSE, head, frame, self.radii)
        for k, side in enumerate(("left", "right")):
            self.points[f"{side}_eye"] = on_head(EYES[k], head, frame, self.radii)
            self.points[f"{side}_ear"] = on_head(EARS[k], head, frame, self.radii)

    def head_box(self) -> np.ndarray:
        """(4,) x1, y1, x2, y2 around the head, hair apart."""
        reach = np.linalg.norm(silhouette(self.body.frames["head"], self.radii), axis=1)
        return np.concatenate((self.points["head"][:2] - reach, self.points["head"][:2] + reach))

    def reach_box(self) -> np.ndarray:
        """(4,) x1, y1, x2, y2 around the whole person, hidden and cut parts included (a few
        percent generous).
        """
        points = np.array([point[:2] for name, point in self.points.items() if name != "pelvis"])
        margin = 0.032 * self.scale
        return np.concatenate((points.min(0) - margin, points.max(0) + margin))


def draw_person(canvas: Canvas, person: Person, index: int):
    """Draw `person` and label its pixels with number `index`."""
    painter = _Painter(canvas, person, index)
    for _, draw, arguments in sorted(painter.parts(), key=lambda part: part[0]):
        draw(*arguments)


class _Painter:
    """The parts of one person; lengths are standing heights until they meet `self.unit`
    (pixels).
    """

    def __init__(self, canvas, person, index):
        self.canvas, self.person, self.look = canvas, person, person.look
        self.body, self.build, self.unit = person.body, person.body.build, person.scale
        self.at = {name: point[:2] for name, point in person.points.items()}
        self.depth = {name: point[2] / person.scale for name, point in person.points.items()}
        self.owner = {name: label(index, part) for name, part in PART.items()}
        loose = {"tee": 1.22, "shirt": 1.2, "jacket": 1.36, "hoodie": 1.42, "vest": 1.1}[
            self.look.top_kind
        ]
        self.sleeve_fit = loose
        sitting = max(leg[0] for leg in self.body.pose.legs) > 50
        self.skirt = self.look.bottom_kind == "skirt" and not sitting

    def parts(self):
        """Yield (depth, function, arguments) of every part; a larger depth is nearer to the
        viewer.
        """
        depth = self.depth
        torso = self.body.frames["torso"]
        head = self.body.frames["head"]
        trunk = (depth["pelvis"] + depth["thorax"]) / 2
        # at equal depth a shirt is over trousers, an arm over a shirt and a head over both
        yield trunk, self.draw_torso, ()
        yield trunk - 0.002, self.draw_neck, ()
        yield max(trunk + 0.004, depth["head"]), self.draw_head, ()
        if self.look.haircut == "long" or self.look.top_kind == "hoodie":
            yield (
                (
                    max(trunk + 0.005, depth["head"] + 0.001)
                    if head[2, 2] < 0
                    else trunk - 0.13 * head[2, 2] - 0.01
                ),
                self.draw_mane,
                (),
            )
        if self.look.backpack is not None:
            yield trunk - 0.12 * torso[2, 2] - 0.001, self.draw_backpack, ()
        thighs = []
        for side in ("left", "right"):
            thigh = (depth[f"{side}_hip"] + depth[f"{side}_knee"]) / 2 - 0.06
            shin = (depth[f"{side}_knee"] + depth[f"{side}_ankle"]) / 2 - 0.061
            thighs.append(thigh)
            yield thigh, self.draw_thigh, (side,)
            yield shin, self.draw_shin, (side,)
            yield (
                (depth[f"{side}_shoulder"] + depth[f"{side}_elbow"]) / 2 + 0.012,
                self.draw_upper_arm,
                (side,),
            )
            yield (
                (depth[f"{side}_elbow"] + depth[f"{side}_wrist"]) / 2 + 0.014,
                self.draw_forearm,
                (side,),
            )
        if self.skirt:
            yield max(min(max(thighs) + 0.001, trunk - 0.001), trunk - 0.03), self.draw_skirt, ()

    def tube(self, part, start, end, widths, paint, caps=(1.0, 1.0), outline=None):
        self.canvas.tube(
            start, end, [w * self.unit for w in widths], paint, self.owner[part], caps, outline
        )

    def cloth(self, fabric, length):
        """A paint that wraps `fabric` round a limb `length` long."""
        if fabric.pattern == "plain" and self.unit < 120:
            return fabric.base  # its grain would not be seen
        return lambda s, u: fabric(s * np.float32(length), u * np.float32(0.05))

    def draw_torso(self):
        build = self.build
        low, high = self.at["pelvis"], self.at["thorax"]
        along = high - low
        # 1 upright, 0 seen along the spine
        flat = float(np.hypot(*along)) / (build.torso * self.unit)
        along = along / max(np.hypot(*along), 1e-6)
        across = np.array((-along[1], along[0]))

        def facing(frame):
            return frame[:2, 0] @ across, frame[:2, 2] @ across

        hips = facing(self.body.frames["pelvis"])
        chest = facing(self.body.frames["torso"])
        girth = build.girth
        fit = 1.0 + 0.25 * (self.sleeve_fit - 1.1)
        profile = (  # fraction of the spine, half width, half depth, 1 for the chest's frame
            (-0.20, 0.42 * build.hip, 0.040, 0),
            (-0.13, build.hip + 0.022 * girth, 0.062, 0),
            (0.0, build.hip + 0.034 * girth, 0.072, 0),
            (0.18, build.hip + 0.026 * girth, 0.068, 0),
            (0.42, (0.5 * build.shoulder + 0.022 * girth) * fit, 0.060 * fit, 1),
            (0.70, (0.80 * build.shoulder + 0.010 * girth) * fit, 0.070 * fit, 1),
            (0.88, 0.98 * build.shoulder + 0.008, 0.066, 1),
            (0.965, 0.95 * build.shoulder + 0.004, 0.050, 1),
            (1.03, 0.62 * build.shoulder, 0.036, 1),
            (1.065, 0.034, 0.030, 1),
        )
        deep = 0.06 * np.sqrt(max(0.0, 1 - flat * flat))  # a trunk seen end on shows its ends
        left, right = [], []
        for share, a, b, upper in profile:
            cx, cz = chest if upper else hips
            b *= 0.5 + 0.5 * girth
            width = np.hypot(a * cx, b * cz) * self.unit
            lengthwise = share * build.torso * flat + (deep * (share - 0.43) * 1.6)
            center = low + lengthwise * self.unit * along
            left.append(center + width * across)
            right.append(center - width * across)
        outline = np.array(left + right[::-1])
        a, b = 0.85 * build.shoulder, 0.068
        turn = np.arctan2(b * chest[1], a * chest[0])
        mean = np.hypot(a * chest[0], b * chest[1])
        hip_width = np.hypot((build.hip + 0.034) * hips[0], 0.072 * hips[1])
        self.tube(
            "torso",
            low,
            high,
            (hip_width, mean * 0.93, mean * 1.12),
            self.torso_paint(turn),
            outline=outline,
        )

    def torso_paint(self, turn):
        look = self.look
        build = self.build
        fine = self.unit > 90

        def paint(s, u):
            # the angle round the body: 0 in front, +-pi at the back
            t = np.arcsin(u) - np.float32(turn)
            t = (t + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)
            round_front = np.abs(t)
            color = look.top(s * np.float32(build.torso), t * np.float32(0.085))
            _paint_front(color, look, s, t, fine)
            # the neckline is cut deeper in front than behind
            depth = {"jacket": 0.05, "hoodie": 0.05, "vest": 0.20}.get(look.top_kind, 0.13)
            color[s > 1.03 - depth * np.maximum(1 - (t / 0.55) ** 2, 0)] = look.skin
            if look.top_kind == "vest":
                color[(s > 0.74) & (np.abs(np.sin(t)) > 0.80)] = look.skin
            if look.backpack is not None:
                color[(round_front > 0.42) & (round_front < 0.66) & (s > 0.35)] = (
                    look.backpack.base * 0.7
                )
            below = s < look.hem
            if below.any():
                cloth = look.bottom(
                    s[below][None] * np.float32(build.torso), u[below][None] * np.float32(0.05)
                )
                color[below] = cloth[0]
                _paint_waist(color, look, s, round_front, fine)
            return color

        return paint

    def draw_neck(self):
        low = 0.92 * self.at["thorax"] + 0.08 * self.at["pelvis"]
        width = 0.030 * (0.6 + 0.4 * self.build.girth)
        self.tube(
            "neck",
            low,
            0.35 * self.at["neck"] + 0.65 * self.at["head"],
            (1.15 * width, width, width),
            self.look.skin * 0.86,
            caps=(0.4, 0.3),
        )

    def draw_head(self):
        draw_head(
            self.canvas,
            self.person.points["head"],
            self.body.frames["head"],
            self.person.radii,
            self.look,
            self.owner["head"],
            self.owner["brim"],
        )

    def draw_mane(self):
        """Draw long hair down the back, or a hood."""
        look = self.look
        torso = self.body.frames["torso"]
        head = self.body.frames["head"]
        if look.top_kind == "hoodie":
            hood = self.person.points["thorax"] + torso @ np.array((0, 0.012, -0.055)) * self.unit
            axes = silhouette(torso, np.array((0.078, 0.048, 0.045)) * self.unit)
            shade = self.canvas.light.ambient + 0.75 * (1 - self.canvas.light.ambient)
            self.canvas.ellipse(hood[:2], axes, look.trim * shade, self.owner["mane"])
        if look.haircut == "long":
            radii = self.person.radii
            crown = on_head(np.array((0, 0.2, -0.42)), self.person.points["head"], head, radii)
            fall = look.hair_length * radii[1] * 1.35
            tip = (
                crown
                + fall * (0.75 * -torso[:, 1] + 0.25 * -head[:, 1])
                - 0.05 * self.unit * torso[:, 2]
            )
            width = np.hypot(
                radii[0] * 1.08 * np.hypot(*head[:2, 0]), radii[2] * 0.62 * np.hypot(*head[:2, 2])
            )
            width /= self.unit
            hair = look.hair
            self.tube(
                "mane",
                crown[:2],
                tip[:2],
                (width, width * 1.02, width * 0.72),
                lambda s, u: hair * (0.94 + 0.16 * np.sin(u * 15 + s * 3))[..., None],
                caps=(1, 0.45),
            )

    def draw_backpack(self):
        torso = self.body.frames["torso"]
        base = self.person.points["pelvis"]
        top = self.person.points["thorax"]
        behind = -torso[:, 2] * 0.088 * self.unit
        low, high = 0.78 * base + 0.22 * top + behind, 0.10 * base + 0.90 * top + behind
        axis = high[:2] - low[:2]
        across = np.array((-axis[1], axis[0])) / max(np.hypot(*axis), 1e-6)
        width = np.hypot(0.074 * (torso[:2, 0] @ across), 0.046 * (torso[:2, 2] @ across))
        fabric = self.look.backpack

        def paint(s, u):
            color = fabric(s * np.float32(0.2), u * np.float32(0.07))
            color[(s > 0.12) & (s < 0.48) & (np.abs(u) < 0.62)] *= 0.75
            return color

        self.tube(
            "backpack",
            low[:2],
            high[:2],
            (width, width * 1.03, width * 0.86),
            paint,
            caps=(0.3, 0.5),
        )

    def draw_skirt(self):
        look = self.look
        share = self.look.leg / 0.52
        low = [
            (1 - share) * self.at[f"{side}_hip"] + share * self.at[f"{side}_knee"]
            for side in ("left", "right")
        ]
        hem = (low[0] + low[1]) / 2
        axis = hem - self.at["pelvis"]
        across = np.array((-axis[1], axis[0])) / max(np.hypot(*axis), 1e-6)
        spread = abs((low[0] - low[1]) @ across) / 2 / self.unit
        hips = self.body.frames["pelvis"]
        waist = np.hypot(
            (self.build.hip + 0.036) * np.hypot(*hips[:2, 0]), 0.074 * np.hypot(*hips[:2, 2])
        )
        edge = max(spread + 0.052, waist * 1.12)
        fabric = look.bottom
        length = share * self.build.thigh

        def paint(s, u):
            pleats = (0.93 + 0.12 * np.sin(np.arcsin(u) * 9))[..., None]
            return fabric(s * np.float32(length), u * np.float32(0.08)) * pleats

        self.tube(
            "skirt",
            self.at["pelvis"],
            hem,
            (waist, (waist + edge) / 2, edge),
            paint,
            caps=(0.35, 0.12),
        )

    def draw_upper_arm(self, side):
        look = self.look
        part = f"{side}_upper_arm"
        start, end = self.at[f"{side}_shoulder"], self.at[f"{side}_elbow"]
        girth = 0.5 + 0.5 * self.build.girth
        sleeve = min(look.sleeve / 0.53, 1.0)
        if sleeve < 1:
            self.tube(part, start, end, (0.033 * girth, 0.029 * girth, 0.0235 * girth), look.skin)
        if sleeve > 0:
            fit = self.sleeve_fit
            wide = girth * fit
            self.tube(
                part,
                start,
                start + sleeve * (end - start),
                (0.034 * wide, 0.031 * wide, (0.028 if sleeve < 1 else 0.026) * wide),
                self.cloth(look.top, self.build.upper_arm * sleeve),
                caps=(1, 1 if sleeve >= 1 else 0.25),
            )

    def draw_forearm(self, side):
        look = self.look
        part = f"{side}_forearm"
        start = self.at[f"{side}_elbow"]
        end = self.at[f"{side}_wrist"]
        tip = self.at[f"{side}_fingers"]
        girth = 0.5 + 0.5 * self.build.girth
        self.tube(part, end, tip, (0.0175, 0.0235, 0.013), look.skin * 0.95)
        sleeve = np.clip((look.sleeve - 0.53) / 0.47, 0, 1) * 0.95
        if sleeve < 0.9:
            self.tube(part, start, end, (0.0235 * girth, 0.025 * girth, 0.0165 * girth), look.skin)
        if sleeve > 0:
            fit = self.sleeve_fit
            self.tube(
                part,
                start,
                start + sleeve * (end - start),
                (0.0255 * girth * fit, 0.026 * girth * fit, 0.0205 * girth * fit),
                self.cloth(look.top, self.build.forearm * sleeve),
                caps=(1, 0.25),
            )

    def draw_thigh(self, side):
        look = self.look
        part = f"{side}_thigh"
        start, end = self.at[f"{side}_hip"], self.at[f"{side}_knee"]
        girth = 0.4 + 0.6 * self.build.girth
        if look.bottom_kind == "trousers":
            cover = 1.0
        elif self.skirt:
            cover = 0.0
        else:
            cover = min(look.leg / 0.51, 0.97)
        if cover < 1:
            self.tube(part, start, end, (0.052 * girth, 0.048 * girth, 0.034 * girth), look.skin)
        if cover > 0:
            full = cover == 1
            self.tube(
                part,
                start,
                start + cover * (end - start),
                (0.056 * girth, 0.053 * girth, 0.040 * girth if full else 0.054 * girth),
                self.cloth(look.bottom, self.build.thigh * cover),
                caps=(1, 1 if full else 0.22),
            )

    def draw_shin(self, side):
        look = self.look
        part = f"{side}_shin"
        start, end = self.at[f"{side}_knee"], self.at[f"{side}_ankle"]
        girth = 0.5 + 0.5 * self.build.girth
        heel, toes = self.at[f"{side}_heel"], self.at[f"{side}_toes"]
        down = -self.body.frames[f"{side}_foot"][:2, 1] * 0.009 * self.unit
        self.tube(part, heel + down, toes + down, (0.023, 0.026, 0.019), look.sole)
        self.tube(part, heel, toes, (0.023, 0.026, 0.019), look.shoes)
        cover = np.clip((look.leg - 0.51) / 0.49, 0, 1) if look.bottom_kind == "trousers" else 0.0
        if cover < 0.9:
            self.tube(part, start, end, (0.034 * girth, 0.036 * girth, 0.0195 * girth), look.skin)
            self.tube(
                part,
                start + 0.82 * (end - start),
                end,
                (0.023 * girth, 0.021 * girth, 0.021 * girth),
                look.socks,
            )
        if cover > 0:
            self.tube(
                part,
                start,
                start + 0.98 * cover * (end - start),
                (0.0395 * girth, 0.039 * girth, 0.032 * girth),
                self.cloth(look.bottom, self.build.shin * cover),
                caps=(1, 0.25),
            )


def _paint_front(color, look, s, t, fine):
    """Paint what is on the front of the top: its opening, trims and print.

    s: height on the torso, 0 to 1. t: angle around the body, 0 in front. fine: with small details.
    """
    round_front = np.abs(t)
    if look.top_kind == "jacket":
        color[round_front < 0.16 + 0.30 * np.clip(s, 0, 1)] = look.inner
        edge = round_front - (0.16 + 0.30 * np.clip(s, 0, 1))
        color[(edge > 0) & (edge < 0.10)] = look.trim
    elif look.top_kind == "shirt":
        color[round_front < 0.05] = look.trim
        color[(s > 0.95) & (round_front > 0.25)] = look.trim
        if fine:
            color[(round_front < 0.10) & (s * 7 % 1 < 0.22)] = look.trim * 0.55 + 90
    elif look.top_kind == "hoodie":
        pocket = (round_front < 0.62) & (s > 0.10) & (s < 0.34) & (round_front + s > 0.28)
        color[pocket] = look.trim
    if look.printed:
        color[(round_front < 0.42) & (s > 0.52) & (s < 0.76)] = look.inner
        if fine:
            stripes = (round_front < 0.26) & (s > 0.58) & (s < 0.70) & (t * 6 % 1 < 0.6)
            color[stripes] = look.trim


def _paint_waist(color, look, s, round_front, fine):
    """Paint belt, back pockets and fly below the hem of the top."""
    below = s < look.hem
    if look.belt is not None:
        color[below & (s > look.hem - 0.055)] = look.belt
    if fine:
        behind = np.abs(round_front - 2.55)
        color[below & (behind < 0.28) & (s < look.hem - 0.08) & (s > -0.17)] *= 0.78
        color[below & (round_front < 0.05)] *= 0.7


def visible_joints(
    person: Person, index: int, owner: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return keypoints (17, 3): x, y in pixels and COCO's flag.

    The flag is 2 for visible, 1 for occluded, 0 for not labeled (then x = y = 0). An occluded
    keypoint is labeled if an annotator could locate it: mostly when its neighbor on the same limb
    is visible.

    owner: (H, W) part labels after everything was drawn.
    """
    height, width = owner.shape
    joints = np.zeros((COCO.num_keypoints, 3))
    deep = np.zeros(COCO.num_keypoints, bool)  # hidden without any hint in the image
    for j, name in enumerate(COCO.names):
        x, y = person.points[name][:2]
        column, row = int(round(x)), int(round(y))
        if not (0 <= column < width and 0 <= row < height):
            continue
        joints[j] = x, y, 2 if _seen(person, index, name, owner, row, column) else 1
        deep[j] = joints[j, 2] == 1 and _turned_away(person, name)
    seen = joints[:, 2] == 2
    draw = rng.random(COCO.num_keypoints)
    for j in range(COCO.num_keypoints):
        if joints[j, 2] == 1:
            near = any(seen[a if b == j else b] for a, b in COCO.limbs if j in (a, b))
            label_prob = 0.62 if near else 0.06
            if deep[j]:
                label_prob = 0.04
            if draw[j] > label_prob:
                joints[j] = 0
    return joints


def _turned_away(person, name) -> bool:
    if name in ("nose", "left_eye", "right_eye"):
        place = NOSE if name == "nose" else EYES[int(name.startswith("right"))]
        return face_turn(place, person.body.frames["head"], person.radii) < -0.05
    if name.endswith("ear"):
        return person.points[name][2] < person.points["head"][2] - 0.35 * person.radii[0]
    return False


def _seen(person, index, name, owner, row, column) -> bool:
    body = person.body
    if name in ("nose", "left_eye", "right_eye"):
        place = NOSE if name == "nose" else EYES[int(name.startswith("right"))]
        # the nose stands out and is seen a little farther round than the eyes
        if face_turn(place, body.frames["head"], person.radii) < (
            -0.05 if name == "nose" else 0.10
        ):
            return False
        shows = ["head"]
    elif name.endswith("ear"):
        if person.look.haircut == "long" or _turned_away(person, name):
            return False
        shows = ["head"]
    else:
        side, joint = name.split("_")
        if joint in ("shoulder", "hip"):
            # on the far side of the trunk, which is itself in front
            center, half = (
                ("thorax", body.build.shoulder)
                if joint == "shoulder"
                else ("pelvis", body.build.hip)
            )
            if person.points[name][2] - person.points[center][2] < -0.72 * half * person.scale:
                return False
        shows = [part if part in PART else f"{side}_{part}" for part in _SHOWS[joint]]
    reach = 1 if person.scale < 70 else 0  # limbs of small people are thinner than a pixel
    around = owner[
        max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1
    ]
    mine = around[(around >> PART_BITS) == index + 1] & ((1 << PART_BITS) - 1)
    allowed = {PART[part] for part in shows}
    return any(part in allowed for part in mine.tolist())


def mpii_joints(person: Person, coco: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(16, 3) x, y in pixels (0-based) and 0 or 1, from the same body and its COCO labels `coco`
    (17, 3).
    """
    joints = np.zeros((MPII.num_keypoints, 3))
    own = {"pelvis": "pelvis", "thorax": "thorax", "upper_neck": "neck", "head_top": "head_top"}
    for j, name in enumerate(MPII.names):
        if name in own:
            x, y = person.points[own[name]][:2]
            shown = 0 <= round(x) < shape[1] and 0 <= round(y) < shape[0]
            joints[j] = (x, y, 1) if shown else 0
        else:
            x, y, flag = coco[COCO.names.index(name)]
            joints[j] = (x, y, 1) if flag > 0 else 0
    return joints
