# SPDX-License-Identifier: Apache-2.0
"""Draws a room: a pure function of (seed, split, index), whatever the image size."""

from __future__ import annotations

import math

from mtr_tf.data.rooms import geometry
from mtr_tf.data.rooms.geometry import Rotation
from mtr_tf.data.rooms.geometry import Vector
from mtr_tf.data.rooms.scene import CLASSES
from mtr_tf.data.rooms.scene import CLEARANCE
from mtr_tf.data.rooms.scene import Camera
from mtr_tf.data.rooms.scene import Light
from mtr_tf.data.rooms.scene import Material
from mtr_tf.data.rooms.scene import Scene
from mtr_tf.data.rooms.scene import Thing
from mtr_tf.data.rooms.stream import Stream
from mtr_tf.data.rooms.textures import NOISE_CELLS
from mtr_tf.data.rooms.textures import TEXTURES

_UP = (0.0, 0.0, 1.0)


def sample(seed: int, split: int, index: int) -> Scene:
    """Draws the scene of one example.

    Args:
      seed: of the whole data set, at least 0.
      split: position of the split's name in SPLITS.
      index: the example's number in its split.
    """
    stream = Stream(seed, split, index, 0)
    size = (stream.uniform(4, 6.5), stream.uniform(4, 6.5), stream.uniform(2.3, 3.2))
    camera = _camera(stream, size)
    things: list[Thing] = []
    for _ in range(stream.integer(7, 12)):
        thing = _thing(stream, size, camera, things)
        if thing is not None:
            things.append(thing)
    count = stream.integer(1, 2)
    lights = [_light(stream, size, camera, things, count) for _ in range(count)]
    level = stream.uniform(0.1, 0.28)
    return Scene(
        size=size,
        faces=_faces(stream),
        things=tuple(things),
        camera=camera,
        lights=tuple(lights),
        ambient=tuple(level * stream.uniform(0.85, 1.15) for _ in range(3)),
        sky=stream.rotation()[0],
        noise=stream.uniform(2, 8),
        table=stream.bytes(NOISE_CELLS**3) / 255,
    )


def _camera(stream: Stream, size: Vector) -> Camera:
    """A camera inside the room that looks at a point well away from it."""
    low, high = CLEARANCE, CLEARANCE + 0.1
    while True:
        position = tuple(stream.uniform(low, extent - high) for extent in size)
        target = tuple(stream.uniform(0.3, extent - 0.3) for extent in size)
        forward = geometry.minus(target, position)
        square = forward[0] * forward[0] + forward[1] * forward[1]
        if square > 6 and forward[2] * forward[2] < 0.2 * square:
            break
    forward = geometry.unit(forward)
    right = geometry.unit(geometry.cross(forward, _UP))
    down = geometry.cross(forward, right)
    # A small roll by an angle a; t = tan(a / 2) gives its cosine and sine exactly.
    t = stream.uniform(-0.05, 0.05)
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    rolled_right = tuple(
        cosine * r + sine * d for r, d in zip(right, down, strict=True)
    )
    down = tuple(cosine * d - sine * r for r, d in zip(right, down, strict=True))
    return Camera(position, (rolled_right, down, forward), stream.uniform(0.65, 0.9))


def _material(stream: Stream) -> Material:
    first, other = stream.color(), stream.color()
    contrast = stream.uniform(0.3, 1.0)
    second = tuple(a + contrast * (b - a) for a, b in zip(first, other, strict=True))
    x, y = stream.heading()
    yaw = ((x, y, 0.0), (-y, x, 0.0), (0.0, 0.0, 1.0))
    frame = stream.rotation() if stream.chance(0.5) else yaw
    return Material(
        texture=stream.choice(tuple(TEXTURES)),
        colors=(first, second),
        frame=frame,
        frequency=1 / stream.uniform(0.12, 0.5),
        offset=tuple(stream.uniform(0, 16) for _ in range(3)),
        gloss=stream.uniform(0.1, 0.6) if stream.chance(0.4) else 0.0,
    )


def _faces(stream: Stream) -> tuple[Material, ...]:
    """Materials of the six faces; the walls share one in half of the rooms."""
    walls = [_material(stream) for _ in range(4)]
    if stream.chance(0.5):
        walls = [walls[0]] * 4
    return (*walls, _material(stream), _material(stream))


def _shape(stream: Stream, kind: str) -> geometry.Round | geometry.Box:
    size = stream.uniform(0.25, 0.5)

    def part(low: float, high: float) -> float:
        return size * stream.uniform(low, high)

    if kind == "sphere":
        return geometry.sphere(part(0.7, 1.0))
    if kind == "box":
        return geometry.Box((part(0.4, 0.9), part(0.4, 0.9), part(0.4, 1.1)))
    if kind == "cylinder":
        return geometry.cylinder(part(0.5, 0.8), part(0.4, 1.2))
    if kind == "cone":
        return geometry.cone(part(0.8, 1.2), part(0.8, 1.4))
    waist = part(0.35, 0.55)
    return geometry.spool(waist, waist * stream.uniform(1.5, 2.2), part(0.6, 1.2))


def _thing(
    stream: Stream, size: Vector, camera: Camera, things: list[Thing]
) -> Thing | None:
    """A new thing in view, clear of the others; None if no place was found."""
    kind = stream.choice(CLASSES[3:])
    shape = _shape(stream, kind)
    material = _material(stream)
    for _ in range(6):
        frame, rise = _posture(stream, kind, shape)
        center = _place(stream, size, camera, things, shape, rise)
        if center is not None and _is_free(center, shape.radius, size, camera, things):
            return Thing(kind, shape, center, frame, material)
    return None


def _posture(
    stream: Stream, kind: str, shape: geometry.Round | geometry.Box
) -> tuple[Rotation, float | None]:
    """A frame, and how high the centre is above what the thing stands on.

    The height is None for a thing in the air, whose frame is a random rotation.
    """
    if stream.chance(0.3):
        return stream.rotation(), None
    x, y = stream.heading()
    may_lie = kind in ("cylinder", "spool")
    if isinstance(shape, geometry.Round) and may_lie and stream.chance(0.35):
        rim = max(shape.profile(shape.low), shape.profile(0.0))
        return ((0.0, 0.0, 1.0), (y, -x, 0.0), (x, y, 0.0)), math.sqrt(rim)
    height = _height(shape)
    if kind == "cone" and stream.chance(0.25):  # Upside down.
        return ((x, y, 0.0), (y, -x, 0.0), (0.0, 0.0, -1.0)), height
    return ((x, y, 0.0), (-y, x, 0.0), _UP), height


def _place(
    stream: Stream,
    size: Vector,
    camera: Camera,
    things: list[Thing],
    shape: geometry.Round | geometry.Box,
    rise: float | None,
) -> Vector | None:
    """A centre: in the air, on another thing, under the ceiling or on the floor."""
    if rise is not None and things and stream.chance(0.3):
        support = stream.choice(things)
        top = _flat_top(support)
        if top is None:
            return None
        return (support.center[0], support.center[1], top + rise)
    depth = stream.uniform(1.0, 4.5)
    right = stream.uniform(-0.45, 0.45) / camera.focal * depth
    down = stream.uniform(-0.45, 0.45) / camera.focal * depth
    offset = geometry.out_of(camera.frame, (right, down, depth))
    point = tuple(a + b for a, b in zip(camera.position, offset, strict=True))
    if rise is None:
        return point
    if stream.chance(0.2):
        return (point[0], point[1], size[2] - rise)
    return (point[0], point[1], rise)


def _height(shape: geometry.Round | geometry.Box) -> float:
    """How high the upper end of an upright thing is above its centre."""
    return shape.half[2] if isinstance(shape, geometry.Box) else shape.high


def _flat_top(thing: Thing) -> float | None:
    """Height of an upright thing's flat upper end; None where there is none."""
    if thing.frame[2] != _UP or thing.kind in ("sphere", "cone"):
        return None
    return thing.center[2] + _height(thing.shape)


def _is_free(
    center: Vector, radius: float, size: Vector, camera: Camera, things: list[Thing]
) -> bool:
    """Whether a ball may be here: inside the walls, clear of camera and things."""
    for value, extent in zip(center[:2], size[:2], strict=True):
        if not radius < value < extent - radius:
            return False
    if not 0.05 < center[2] < size[2] - 0.05:
        return False
    if _distance(center, camera.position) < radius + CLEARANCE:
        return False
    return all(
        _distance(center, thing.center) > 0.7 * (radius + thing.shape.radius)
        for thing in things
    )


def _distance(a: Vector, b: Vector) -> float:
    gap = geometry.minus(a, b)
    return math.sqrt(geometry.dot(gap, gap))


def _light(
    stream: Stream, size: Vector, camera: Camera, things: list[Thing], count: int
) -> Light:
    """A light in the upper part of the room, outside all things."""
    for _ in range(20):
        position = (
            stream.uniform(0.4, size[0] - 0.4),
            stream.uniform(0.4, size[1] - 0.4),
            size[2] * stream.uniform(0.7, 0.93),
        )
        if all(_distance(position, t.center) > t.shape.radius + 0.1 for t in things):
            break
    else:
        position = camera.position
    strength = stream.uniform(1.3, 2.6) / count
    return Light(
        position, tuple(strength * stream.uniform(0.85, 1.15) for _ in range(3))
    )
