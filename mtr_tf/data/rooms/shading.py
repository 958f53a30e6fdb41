# SPDX-License-Identifier: Apache-2.0
"""The light that surfaces send to the camera: textures, lamps, shadows, gloss.

As in `geometry`, only exactly rounded operations are used.
"""

from __future__ import annotations

import math

import numpy as np

from mtr_tf.data.rooms import geometry
from mtr_tf.data.rooms.geometry import Rotation
from mtr_tf.data.rooms.geometry import Vector
from mtr_tf.data.rooms.scene import Light
from mtr_tf.data.rooms.scene import Material
from mtr_tf.data.rooms.scene import Scene
from mtr_tf.data.rooms.scene import Surface
from mtr_tf.data.rooms.scene import Thing
from mtr_tf.data.rooms.textures import TEXTURES

_LIFT = 1e-6  # Metres a shadow ray starts above its surface.
_HALVING = 4.0  # Squared metres at which a lamp's light has halved.


def shade(scene: Scene, surface: Surface) -> Vector:
    """Light per colour at every row of the surface, at least 0; 1 is white."""
    albedo, gloss = paint(scene, surface)
    view = geometry.minus(scene.camera.position, surface.point)
    distance = np.sqrt(geometry.dot(view, view))
    view = tuple(axis / distance for axis in view)
    sky = 0.85 + 0.15 * geometry.dot(scene.sky, surface.normal)
    diffuse = [level * sky for level in scene.ambient]
    shine = [np.zeros(np.size(sky)) for _ in range(3)]
    origins = tuple(
        p + _LIFT * n for p, n in zip(surface.point, surface.normal, strict=True)
    )
    for light in scene.lights:
        strength, highlight = _lamp(scene, surface, origins, light, view)
        highlight *= gloss * strength
        for channel in range(3):
            diffuse[channel] += light.color[channel] * strength
            shine[channel] += light.color[channel] * highlight
    return tuple(a * d + s for a, d, s in zip(albedo, diffuse, shine, strict=True))


def paint(scene: Scene, surface: Surface) -> tuple[Vector, np.ndarray]:
    """Unlit colours (three [H W], in [0, 1]) and gloss ([H W]) of the points."""
    rows = len(surface.order)
    albedo = tuple(np.empty(rows) for _ in range(3))
    gloss = np.empty(rows)
    for owner, group in surface.groups:
        if owner < len(scene.faces):
            material, frame, start = scene.faces[owner], geometry.IDENTITY, (0, 0, 0)
        else:
            thing = scene.things[owner - len(scene.faces)]
            material, frame, start = thing.material, thing.frame, thing.center
        point = tuple(axis[group] for axis in surface.point)
        cells = texture_cells(material, frame, start, point)
        weight = TEXTURES[material.texture](*cells, scene.table)
        for channel in range(3):
            first, second = (color[channel] for color in material.colors)
            albedo[channel][group] = first + (second - first) * weight
        gloss[group] = material.gloss
    return albedo, gloss


def texture_cells(
    material: Material, frame: Rotation, start: Vector, point: Vector
) -> Vector:
    """A texture's coordinates at world points, on a surface with this frame."""
    frequency = material.frequency
    axes = geometry.combine(material.frame, frame)
    cells = []
    for row, offset in zip(axes, material.offset, strict=True):
        scaled_row = tuple(frequency * part for part in row)
        shift = offset - geometry.dot(scaled_row, start)
        cells.append(geometry.dot(scaled_row, point) + shift)
    return tuple(cells)


def _lamp(
    scene: Scene, surface: Surface, origins: Vector, light: Light, view: Vector
) -> tuple[np.ndarray, np.ndarray]:
    """Light of one lamp that reaches the points (Lambert's law), and its reflection."""
    ray = geometry.minus(light.position, surface.point)
    square = geometry.dot(ray, ray)
    distance = np.sqrt(square)
    cosine = geometry.dot(surface.normal, ray) / distance
    is_lit = cosine > 0
    _cast_shadows(scene.things, origins, light, ray, distance, is_lit)
    strength = np.where(is_lit, cosine, 0.0) / (1 + square / _HALVING)
    # Blinn: the normal against the direction half-way between lamp and viewer.
    half = tuple(a / distance + b for a, b in zip(ray, view, strict=True))
    highlight = geometry.dot(surface.normal, half)
    highlight = highlight * highlight / np.maximum(geometry.dot(half, half), 1e-12)
    for _ in range(4):
        highlight = highlight * highlight
    return strength, highlight


def _cast_shadows(
    things: tuple[Thing, ...],
    origins: Vector,
    light: Light,
    ray: Vector,
    distance: np.ndarray,
    is_lit: np.ndarray,
) -> None:
    """Clears `is_lit` where a thing is between a point and the lamp.

    Rays are traced only from points in the shadow cone of a thing's bounding ball.
    """
    for thing in things:
        gap = geometry.minus(thing.center, light.position)
        center_distance = math.sqrt(geometry.dot(gap, gap))
        share = thing.shape.radius / center_distance
        direction = tuple(axis / center_distance for axis in gap)
        depth = -geometry.dot(direction, ray)
        in_cone = depth > distance * math.sqrt(max(1 - share * share, 0.0))
        rows = np.flatnonzero(
            in_cone & is_lit & (depth > center_distance - thing.shape.radius)
        )
        if not len(rows):
            continue
        start = geometry.minus(tuple(axis[rows] for axis in origins), thing.center)
        t, _ = thing.shape.hit(
            geometry.into(thing.frame, start),
            geometry.into(thing.frame, tuple(axis[rows] for axis in ray)),
        )
        is_lit[rows[t < 1]] = False
