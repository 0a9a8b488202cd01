"""A jointed body in three dimensions: proportions, poses within joint limits, and where its joints
come to lie.

Lengths are in units of the standing height; angles are in degrees. The body's own axes are x to the
person's left, y up, z forward; `pose_body` hands on camera axes x right, y DOWN, z towards the
viewer, so that x and y are image directions. The projection is orthographic. Segment lengths follow
Drillis and Contini's table (1966), with the head a little larger, as a person seen from eye height
shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LEFT = 0
RIGHT = 1
SIDES = (1.0, -1.0)  # the sign of x on the person's left and right


@dataclass(frozen=True)
class Build:
    """Proportions of one person: segment lengths and half widths, in standing heights."""

    head: float
    neck: float
    torso: float
    shoulder: float
    hip: float
    upper_arm: float
    forearm: float
    hand: float
    thigh: float
    shin: float
    foot: float
    girth: float


def sample_build(rng: np.random.Generator) -> Build:
    """Draw an adult's or, one time in four, a child's proportions; heads are a little larger
    than life, for faces are a few pixels.
    """
    child = rng.random() < 1 / 4
    length = rng.normal(1, 0.035, 8)
    head = (0.210 if child else 0.188) * np.clip(length[0], 0.93, 1.07)
    legs = 0.94 if child else 1.0
    return Build(
        head=head,
        neck=0.040 * length[1],
        torso=0.272 * length[2],
        shoulder=rng.uniform(0.092, 0.122),
        hip=rng.uniform(0.050, 0.064),
        upper_arm=0.163 * length[3],
        forearm=0.145 * length[4],
        hand=0.068 * length[5],
        thigh=0.245 * legs * length[6],
        shin=0.238 * legs * length[7],
        foot=rng.uniform(0.115, 0.135),
        girth=float(np.clip(rng.normal(1.38, 0.13), 1.0, 1.75)),
    )


@dataclass
class Pose:
    """Joint angles.

    arms: per side (forward, sideways, inward turn, elbow); legs: per side (forward, sideways,
    outward turn, knee).
    """

    name: str
    arms: list[tuple[float, float, float, float]]
    legs: list[tuple[float, float, float, float]]
    lean: float = 0.0
    side: float = 0.0
    twist: float = 0.0
    head: tuple[float, float, float] = (0.0, 0.0, 0.0)  # yaw to the left, nod, tilt
    point_toes: float = 0.0


@dataclass(frozen=True)
class View:
    """yaw 0 faces the camera; pitch is how far the camera looks down; roll turns the body within
    the image.
    """

    yaw: float
    pitch: float
    roll: float


@dataclass
class Body:
    """A posed body in camera axes (x right, y down, z to the viewer), unit: standing height,
    origin: the pelvis.
    """

    build: Build
    pose: Pose
    view: View
    points: dict[str, np.ndarray] = field(default_factory=dict)
    frames: dict[str, np.ndarray] = field(default_factory=dict)  # columns: left, up, forward


# lower and upper limits of (forward, sideways, turn, bend), kept well inside what people can do
ARM_LIMITS = np.array([(-50, -8, -100, 2), (175, 165, 105, 148)], float)
LEG_LIMITS = np.array([(-35, -10, -15, 1), (128, 62, 45, 140)], float)

# name: (forward, sideways, inward turn, elbow) and their spread
ARM_STYLES = {
    "hang": ((2, 10, 20, 14), (9, 6, 20, 9)),
    "akimbo": ((-12, 48, 85, 92), (6, 6, 8, 10)),
    "folded": ((24, 14, 62, 98), (6, 5, 8, 8)),
    "forward": ((70, 12, 5, 20), (18, 10, 20, 14)),
    "carry": ((18, 12, 15, 85), (10, 6, 15, 14)),
    "wave": ((5, 105, -82, 80), (8, 16, 12, 28)),
    "up": ((12, 158, -60, 18), (8, 10, 20, 14)),
    "spread": ((4, 82, -10, 14), (8, 16, 30, 12)),
    "head": ((62, 48, 35, 138), (12, 10, 12, 8)),
    "behind": ((-28, 14, 55, 45), (7, 5, 12, 14)),
}
STAND_ARMS = (
    ("hang", 0.40),
    ("akimbo", 0.12),
    ("folded", 0.07),
    ("forward", 0.10),
    ("carry", 0.12),
    ("wave", 0.08),
    ("head", 0.04),
    ("spread", 0.05),
    ("behind", 0.02),
)
ACTIVE_ARMS = (("spread", 0.32), ("up", 0.28), ("wave", 0.18), ("forward", 0.14), ("hang", 0.08))
REST_ARMS = (
    ("carry", 0.38),
    ("hang", 0.14),
    ("forward", 0.30),
    ("folded", 0.06),
    ("head", 0.06),
    ("akimbo", 0.06),
)

# arms that cross the trunk or vanish behind it are drawn less often in an easy set
_TANGLED = ("folded", "behind", "head", "forward", "carry")
# how often each kind of pose is drawn in an easy and in a hard set
POSES = (
    ("stand", 0.60, 0.30),
    ("walk", 0.24, 0.19),
    ("run", 0.02, 0.12),
    ("sit", 0.02, 0.12),
    ("crouch", 0.005, 0.07),
    ("active", 0.09, 0.08),
    ("bend", 0.005, 0.05),
    ("lunge", 0.02, 0.07),
)


def choose(rng: np.random.Generator, table):
    """Draw a key of ((key, weight), ...)."""
    left = rng.random() * sum(weight for _, weight in table)
    for key, weight in table:
        left -= weight
        if left < 0:
            return key
    return table[-1][0]


def _near(rng, mean, spread, limits):
    return tuple(np.clip(rng.normal(mean, spread), *limits).tolist())


def _arm(rng, style):
    return _near(rng, *ARM_STYLES[style], ARM_LIMITS)


def _arms(rng, table, hardness):
    table = [(style, weight * (hardness if style in _TANGLED else 1)) for style, weight in table]
    first = choose(rng, table)
    # folded arms need both; the others match more often than not
    second = first if first == "folded" or rng.random() < 0.55 else choose(rng, table)
    second = "hang" if second == "folded" and first != "folded" else second
    arms = [_arm(rng, first), _arm(rng, second)]
    return arms if rng.random() < 0.5 else arms[::-1]


def _leg(rng, forward, side, knee, turn=8.0, spread=5.0):
    return _near(rng, (forward, side, turn, knee), (spread, 3, 5, spread), LEG_LIMITS)


@dataclass(frozen=True)
class _Gait:
    """Angles in degrees of walking or running, before the swing; lean of the trunk and toes."""

    front_leg: int
    front_knee: int
    back_leg: int
    back_knee: int
    front_arm: int
    back_arm: int
    elbow: int
    lean: int
    toes: float


_GAITS = {
    "walk": _Gait(30, 14, -20, 30, 28, -24, 22, lean=2, toes=0.0),
    "run": _Gait(58, 70, -22, 72, 48, -40, 88, lean=9, toes=15.0),
}


def _stride(rng, gait, swing, lead):
    """Return legs and arms of a step with the leg `lead` in front."""
    front = _leg(rng, gait.front_leg * swing, 2, gait.front_knee * swing)
    back = _leg(rng, gait.back_leg * swing, 2, gait.back_knee * swing)
    legs = [back, back]
    legs[lead] = front
    spread = (8, 4, 12, 12)
    ahead = _near(rng, (gait.front_arm * swing, 8, 20, gait.elbow), spread, ARM_LIMITS)
    behind = _near(rng, (gait.back_arm * swing, 10, 12, gait.elbow * 0.8), spread, ARM_LIMITS)
    arms = [ahead, ahead]  # arms swing against the legs
    arms[lead] = behind
    if rng.random() < 0.25:
        arms[lead] = _arm(rng, choose(rng, STAND_ARMS[3:]))
    return legs, arms


def sample_pose(rng: np.random.Generator, hardness: float = 1.0) -> Pose:
    """Return a pose of a random kind within the joint limits; hardness 0: plain ones, 1: any."""
    kind = choose(rng, [(name, easy + hardness * (hard - easy)) for name, easy, hard in POSES])
    lead = int(rng.random() < 0.5)
    loose = 0.35 + 0.65 * hardness
    head = (rng.normal(0, 22 * loose), rng.normal(3, 8 * loose), rng.normal(0, 6 * loose))
    lean = rng.normal(3, 4 * loose)
    side = rng.normal(0, 3)
    twist = rng.normal(0, 7 * loose)
    toes = 0.0
    if kind == "stand":
        wide = rng.choice((3.0, 8.0, 14.0))
        legs = [_leg(rng, 1, wide, 4, spread=3), _leg(rng, 1, wide, 4, spread=3)]
        if rng.random() < 0.3:  # the weight on one leg, the other knee loose
            legs[lead] = _leg(rng, 16, wide + 4, 30)
        arms = _arms(rng, STAND_ARMS, hardness)
    elif kind in ("walk", "run"):
        gait = _GAITS[kind]
        swing = rng.uniform(0.5, 1.0)
        legs, arms = _stride(rng, gait, swing, lead)
        lean += gait.lean * swing if kind == "run" else gait.lean
        toes = gait.toes
    elif kind == "sit":
        legs = [_leg(rng, 84, 9, 84, spread=8), _leg(rng, 84, 9, 84, spread=8)]
        if rng.random() < 0.3:
            legs[lead] = _leg(rng, 72, 10, 30, spread=10)
        arms = _arms(rng, REST_ARMS, hardness)
        lean += rng.normal(4, 9)
    elif kind == "crouch":
        legs = [_leg(rng, 104, 16, 118, spread=9), _leg(rng, 104, 16, 118, spread=9)]
        if rng.random() < 0.4:  # on one knee
            legs[lead] = _leg(rng, 2, 6, 95)
            legs[1 - lead] = _leg(rng, 88, 8, 92)
        arms = _arms(rng, REST_ARMS, hardness)
        lean += rng.uniform(8, 30)
    elif kind == "active":
        forward, knee, spread, toes = 2, 5, 4, 0.0
        if rng.random() < 0.5:  # a jump
            forward, knee, spread, toes = 22, 48, 14, 35.0
        legs = [_leg(rng, forward, rng.uniform(4, 30), knee, spread=spread) for _ in SIDES]
        arms = _arms(rng, ACTIVE_ARMS, hardness)
        side += rng.normal(0, 6)
    elif kind == "bend":
        lean = rng.uniform(35, 75)
        legs = [_leg(rng, 4, 7, 14, spread=8), _leg(rng, 4, 7, 14, spread=8)]
        arms = _arms(rng, (("forward", 0.5), ("hang", 0.3), ("spread", 0.2)), hardness)
        head = (head[0] * 0.6, head[1] - 0.4 * lean, head[2])
    else:  # lunge
        wide = rng.uniform(15, 35)
        legs = [_leg(rng, 4, wide, 6), _leg(rng, 4, wide, 6)]
        legs[lead] = _leg(rng, 42, wide, 58, turn=25)
        arms = _arms(rng, ACTIVE_ARMS, hardness)
        side += rng.normal(0, 9)
    head = tuple(np.clip(head, (-58, -35, -18), (58, 38, 18)).tolist())
    return Pose(
        kind,
        arms,
        legs,
        float(np.clip(lean, -15, 80)),
        float(np.clip(side, -20, 20)),
        float(np.clip(twist, -25, 25)),
        head,
        toes,
    )


def sample_view(rng: np.random.Generator, hardness: float = 1.0) -> View:
    """Draw a view: mostly towards the camera, at times away from it or from the side, seldom
    lying across the image.
    """
    kind = rng.random()
    back = 0.04 + 0.16 * hardness
    side = 0.02 + 0.28 * hardness
    if kind < back:
        yaw = rng.normal(180, 15 + 11 * hardness)
    elif kind < back + side:
        yaw = rng.uniform(-180, 180)
    else:
        yaw = rng.normal(0, 15 + 15 * hardness)
    lying = rng.random() < 0.025 * hardness
    roll = (
        rng.choice((-90.0, 90.0)) + rng.normal(0, 18) if lying else rng.normal(0, 2 + 3 * hardness)
    )
    return View(float(yaw), float(np.clip(rng.normal(7, 5), -4, 22)), float(roll))


def _turn(axis: int, degrees: float) -> np.ndarray:
    """(3, 3) right-handed rotation about axis 0, 1 or 2."""
    c = np.cos(np.radians(degrees))
    s = np.sin(np.radians(degrees))
    matrix = np.zeros((3, 3))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[axis, axis], matrix[a, a], matrix[b, b], matrix[a, b], matrix[b, a] = 1, c, c, -s, s
    return matrix


def pose_body(build: Build, pose: Pose, view: View) -> Body:
    """Return joints as points, and pelvis, torso, head and feet as frames, in camera axes."""
    down = np.array((0.0, -1.0, 0.0))
    up = np.array((0.0, 1.0, 0.0))
    root = _turn(2, view.roll) @ _turn(0, view.pitch) @ _turn(1, view.yaw)
    # part of a lean comes from the pelvis, the rest from the spine
    pelvis = root @ _turn(0, 0.4 * pose.lean)
    torso = pelvis @ _turn(0, 0.6 * pose.lean) @ _turn(2, pose.side) @ _turn(1, pose.twist)
    head = torso @ _turn(1, pose.head[0]) @ _turn(0, pose.head[1]) @ _turn(2, pose.head[2])
    points = {"pelvis": np.zeros(3)}
    frames = {"root": root, "pelvis": pelvis, "torso": torso, "head": head}
    # the spine bends between the two frames
    spine = 0.35 * build.torso * pelvis @ up + 0.65 * build.torso * torso @ up
    points["thorax"] = spine
    throat = spine + build.neck * 0.9 * (torso @ np.array((0, 0.98, 0.17)))
    points["neck"] = throat
    points["head"] = throat + head @ np.array((0, 0.46 * build.head, 0.10 * build.head))
    points["head_top"] = points["head"] + head @ np.array((0, 0.5 * build.head, 0))
    for i, (name, sign) in enumerate(zip(("left", "right"), SIDES)):
        forward, side, turn, bend = pose.arms[i]
        # a raised arm lifts its shoulder
        lift = 0.022 * max(0.0, side - 60) / 100
        shoulder = spine + torso @ np.array((sign * build.shoulder, lift - 0.018, 0))
        upper = torso @ _turn(0, -forward) @ _turn(2, sign * side) @ _turn(1, -sign * turn)
        lower = upper @ _turn(0, -bend)
        points[f"{name}_shoulder"] = shoulder
        points[f"{name}_elbow"] = shoulder + build.upper_arm * upper @ down
        points[f"{name}_wrist"] = points[f"{name}_elbow"] + build.forearm * lower @ down
        points[f"{name}_fingers"] = points[f"{name}_wrist"] + build.hand * lower @ np.array(
            (0, -0.97, 0.24)
        )
        forward, side, turn, bend = pose.legs[i]
        hip = pelvis @ np.array((sign * build.hip, 0, 0))
        # legs hang from the root, not from the pelvis: who bends down keeps the legs upright
        thigh = root @ _turn(0, -forward) @ _turn(2, sign * side) @ _turn(1, sign * turn)
        shin = thigh @ _turn(0, bend)
        foot = shin @ _turn(0, pose.point_toes)
        points[f"{name}_hip"] = hip
        points[f"{name}_knee"] = hip + build.thigh * thigh @ down
        points[f"{name}_ankle"] = points[f"{name}_knee"] + build.shin * shin @ down
        points[f"{name}_heel"] = points[f"{name}_ankle"] + foot @ np.array((0, -0.026, -0.022))
        points[f"{name}_toes"] = points[f"{name}_ankle"] + foot @ np.array(
            (0, -0.034, build.foot - 0.028)
        )
        frames[f"{name}_foot"] = foot
    flip = np.array((1.0, -1.0, 1.0))  # y up becomes y down
    return Body(
        build,
        pose,
        view,
        {name: point * flip for name, point in points.items()},
        {name: frame * flip[:, None] for name, frame in frames.items()},
    )
