# SPDX-License-Identifier: Apache-2.0
"""What a room is made of, as plain records; `sampling` draws one.

World frame: metres, x and y along the floor, z up, the floor at z = 0. Camera frame: x
right, y down, z forward. The room's floor is at least 4 m by 4 m and at most 6.5 m by
6.5 m; the camera keeps 0.5 m from everything.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mtr_tf.data.rooms import geometry
from mtr_tf.data.rooms.geometry import Rotation
from mtr_tf.data.rooms.geometry import Vector

CLASSES = ("floor", "ceiling", "wall", "sphere", "box", "cylinder", "cone", "spool")
SPLITS = ("train", "validation", "test")
CLEARANCE = 0.5  # Metres between the camera and anything else.


@dataclasses.dataclass(frozen=True)
class Material:
    """Two colours mixed by a solid texture, drawn in the same way for every class.

    A point p (from the surface's own origin) has the texture's coordinates
    (frame p) * frequency + offset.
    """

    texture: str
    colors: tuple[Vector, Vector]
    frame: Rotation
    frequency: float
    offset: Vector
    gloss: float


@dataclasses.dataclass(frozen=True)
class Thing:
    """A solid in the room; `frame` has its axes as rows, in world coordinates."""

    kind: str
    shape: geometry.Round | geometry.Box
    center: Vector
    frame: Rotation
    material: Material


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera; `frame` has right, down and forward as rows.

    `focal` is the focal length in widths of the image.
    """

    position: Vector
    frame: Rotation
    focal: float


@dataclasses.dataclass(frozen=True)
class Light:
    """A point light: its place, and its strength per colour."""

    position: Vector
    color: Vector


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A room and all that is in it.

    Attributes:
      size: the room is [0, size_x] x [0, size_y] x [0, size_z].
      faces: materials of its faces at x = 0, x = size_x, y = 0, ..., z = size_z.
      things: the solids in it.
      camera: where it is seen from.
      lights: one or two.
      ambient: light that comes from everywhere, per colour.
      sky: direction that a little more of the ambient light comes from.
      noise: deviation of the sensor's noise, in levels of 255.
      table: numbers in [0, 1] for the textures' value noise, [NOISE_CELLS ** 3].
    """

    size: Vector
    faces: tuple[Material, ...]
    things: tuple[Thing, ...]
    camera: Camera
    lights: tuple[Light, ...]
    ambient: Vector
    sky: Vector
    noise: float
    table: np.ndarray


@dataclasses.dataclass(frozen=True)
class Surface:
    """The visible points, grouped by owner: arrays are [H W], in the order `order`.

    Attributes:
      order: int64 [H W], the flat pixel of each row.
      groups: (owner, slice of its rows), for every visible owner.
      point: world coordinates.
      normal: unit, outward from things and into the room.
      curvature: two principal curvatures, positive where convex, unordered.
    """

    order: np.ndarray
    groups: tuple[tuple[int, slice], ...]
    point: Vector
    normal: Vector
    curvature: tuple[np.ndarray, np.ndarray]
