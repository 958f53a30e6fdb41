# SPDX-License-Identifier: Apache-2.0
"""From a scene to its picture and its exact targets, by ray casting.

    arrays = render(sampling.sample(seed, split, index), height, width)

Camera frame: x right, y down, z forward; pixel (row i, column j) looks along
((j + 1/2 - W/2) / (f W), (i + 1/2 - H/2) / (f W), 1), so that the ray's parameter is
the z-depth. Targets (float32, every pixel valid):

    seg              uint8 [H, W], position in CLASSES
    depth            [H, W, 1], z-depth in metres, in [0.3, 10]
    depth_euclidean  [H, W, 1], distance to the camera's centre in metres, in [0.3, 10]
    normal           [H, W, 3], unit, camera frame, facing the camera: n . ray < 0
    curvature        [H, W, 2], principal curvatures k1 >= k2 in 1/m, positive where the
                     surface bulges towards the viewer (1/r on a ball), cut to [-10, 10]
    reshading        [H, W, 1], Lambert's law for a light at the camera: n . v in [0, 1]
    edge_occlusion   [H, W, 1] in [0, 1], see `labels.edge_occlusion`
    keypoints3d      [H, W, 1] in [0, 1), see `labels.keypoints3d`

What "the same bytes on any machine" rests on: random words that NumPy promises to keep
(`stream`), and float64 arithmetic with + - * / sqrt floor only, which IEEE 754 rounds
correctly and NumPy does not reorder or contract, pixel by pixel. There is no sin, exp,
pow, BLAS or sum over pixels. It does not cover a machine whose float64 is not IEEE's.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mtr_tf.data.rooms import geometry
from mtr_tf.data.rooms import labels
from mtr_tf.data.rooms import shading
from mtr_tf.data.rooms.geometry import Vector
from mtr_tf.data.rooms.scene import CLASSES
from mtr_tf.data.rooms.scene import Camera
from mtr_tf.data.rooms.scene import Scene
from mtr_tf.data.rooms.scene import Surface
from mtr_tf.data.rooms.scene import Thing
from mtr_tf.data.rooms.stream import Stream

MAX_CURVATURE = 10.0
# Inward normals of the faces at x = 0, x = size_x, y = 0, ..., z = size_z.
FACE_NORMALS = tuple(
    tuple(sign if axis == k else 0.0 for k in range(3))
    for axis in range(3)
    for sign in (1.0, -1.0)
)
_FACES = len(FACE_NORMALS)
_FACE_CLASSES = ("wall", "wall", "wall", "wall", "floor", "ceiling")


@dataclasses.dataclass(frozen=True)
class Hits:
    """What each pixel's ray meets first.

    Attributes:
      depth: float64 [H, W], the ray's parameter: z-depth.
      owner: uint8 [H, W], 0-5 for the room's faces, 6 + i for the scene's thing i.
      part: uint8 [H, W], the part of that thing (see `geometry`), 0 for faces.
      ray: three float64 [H, W], directions in the world frame, z-depth 1.
    """

    depth: np.ndarray
    owner: np.ndarray
    part: np.ndarray
    ray: Vector


def grid(camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions of the pixels in the camera frame: x [1, W] and y [H, 1] at z = 1."""
    scale = camera.focal * width
    x = (np.arange(width) + 0.5 - width / 2) / scale
    y = (np.arange(height) + 0.5 - height / 2) / scale
    return x[None, :], y[:, None]


def cast(scene: Scene, height: int, width: int) -> Hits:
    """Finds the nearest surface for every pixel."""
    x, y = grid(scene.camera, height, width)
    ray = _rays(scene.camera.frame, x, y)
    depth, owner = _cast_room(scene, ray)
    part = np.zeros(owner.shape, np.uint8)
    for number, thing in enumerate(scene.things):
        window = _window(scene.camera, thing, x[0], y[:, 0])
        if window is None:
            continue
        origin = geometry.minus(scene.camera.position, thing.center)
        # The camera's axes in the thing's frame; rays are x right + y down + forward.
        axes = tuple(geometry.into(thing.frame, axis) for axis in scene.camera.frame)
        t, piece = thing.shape.hit(
            geometry.into(thing.frame, origin),
            _rays(axes, x[:, window[1]], y[window[0]]),
        )
        is_nearer = t < depth[window]
        depth[window][is_nearer] = t[is_nearer]
        owner[window][is_nearer] = _FACES + number
        part[window][is_nearer] = piece[is_nearer]
    return Hits(depth, owner, part, ray)


def _rays(axes: geometry.Rotation, x: np.ndarray, y: np.ndarray) -> Vector:
    """Directions of pixels, from the camera's axes right, down and forward."""
    right, down, forward = axes
    return tuple(right[k] * x + (down[k] * y + forward[k]) for k in range(3))


def _cast_room(scene: Scene, ray: Vector) -> tuple[np.ndarray, np.ndarray]:
    """The z-depth where each ray hits a face of the room, and which face it is."""
    steps = []
    for axis in range(3):
        direction = np.where(ray[axis] == 0, 1e-30, ray[axis])
        face = np.where(direction > 0, scene.size[axis], 0.0)
        steps.append((face - scene.camera.position[axis]) / direction)
    depth = np.minimum(np.minimum(steps[0], steps[1]), steps[2])
    axis = np.where(depth == steps[0], 0, np.where(depth == steps[1], 1, 2))
    positive = np.where(axis == 0, ray[0], np.where(axis == 1, ray[1], ray[2])) > 0
    return depth, (2 * axis + positive).astype(np.uint8)


def _window(
    camera: Camera, thing: Thing, x: np.ndarray, y: np.ndarray
) -> tuple[slice, slice] | None:
    """Rows and columns that may see a thing: where its bounding ball is projected."""
    gap = geometry.minus(thing.center, camera.position)
    center = geometry.into(camera.frame, gap)
    radius = thing.shape.radius
    window = []
    for side, lines in ((center[1], y), (center[0], x)):
        # Lines x = m z that touch a circle of this radius around (side, center[2]).
        square = center[2] * center[2] - radius * radius
        if center[2] <= radius:  # Beside or behind the camera: no bounds.
            window.append(slice(0, len(lines)))
            continue
        spread = radius * np.sqrt(side * side + square)
        low = np.searchsorted(lines, (side * center[2] - spread) / square - 1e-9)
        high = np.searchsorted(lines, (side * center[2] + spread) / square + 1e-9)
        if low >= high:
            return None
        window.append(slice(int(low), int(high)))
    return window[0], window[1]


def find_surface(scene: Scene, hits: Hits) -> Surface:
    """Exact points, normals and curvatures of everything visible."""
    owner = hits.owner.ravel()
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=_FACES + len(scene.things))).tolist()
    starts = [0, *ends[:-1]]
    groups = tuple(
        (number, slice(a, b))
        for number, (a, b) in enumerate(zip(starts, ends, strict=True))
        if a < b
    )
    depth = hits.depth.ravel()[order]
    part = hits.part.ravel()[order]
    point = tuple(
        start + depth * axis.ravel()[order]
        for start, axis in zip(scene.camera.position, hits.ray, strict=True)
    )
    normal = tuple(np.empty(len(order)) for _ in range(3))
    curvature = (np.zeros(len(order)), np.zeros(len(order)))
    for number, rows in groups:
        if number < _FACES:
            values = FACE_NORMALS[number]
        else:
            thing = scene.things[number - _FACES]
            gap = geometry.minus(tuple(axis[rows] for axis in point), thing.center)
            local = geometry.into(thing.frame, gap)
            values = thing.shape.normal(local, part[rows])
            values = geometry.out_of(thing.frame, values)
            curvatures = thing.shape.curvature(local, part[rows])
            curvature[0][rows], curvature[1][rows] = curvatures
        for axis, value in zip(normal, values, strict=True):
            axis[rows] = value
    return Surface(order, groups, point, normal, curvature)


def render(scene: Scene, height: int, width: int, key: tuple[int, ...] = ()) -> dict:
    """Renders a scene.

    Args:
      scene: what to look at.
      height: rows of the picture.
      width: columns of the picture.
      key: integers that choose the sensor's noise; no noise when empty.

    Returns:
      "image", uint8 [H, W, 3], and the targets listed above.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        hits = cast(scene, height, width)
        surface = find_surface(scene, hits)
        light = shading.shade(scene, surface)
    image = _expose(scene, light, surface.order, (height, width), key)
    return {"image": image, **_targets(scene, hits, surface)}


def _scatter(order: np.ndarray, values: np.ndarray, shape: tuple) -> np.ndarray:
    """Puts grouped rows back at their pixels."""
    out = np.empty(len(order))
    out[order] = values
    return out.reshape(shape)


def _expose(
    scene: Scene, light: Vector, order: np.ndarray, shape: tuple, key: tuple[int, ...]
) -> np.ndarray:
    """Turns light into levels, by a square-root tone curve and the sensor's noise."""
    image = np.empty((*shape, 3))
    for channel in range(3):
        level = np.sqrt(np.minimum(light[channel], 1.0)) * 255
        image[..., channel] = _scatter(order, level, shape)
    if key:
        bells = Stream(*key, 1, shape[0], shape[1]).bells(image.size)
        image += scene.noise * bells.reshape(image.shape)
    return np.floor(np.clip(image, 0.0, 255.0) + 0.5).astype(np.uint8)


def _targets(scene: Scene, hits: Hits, surface: Surface) -> dict[str, np.ndarray]:
    shape = hits.depth.shape
    order = surface.order
    normal = tuple(
        _scatter(order, part, shape)
        for part in geometry.into(scene.camera.frame, surface.normal)
    )
    x, y = grid(scene.camera, *shape)
    length = np.sqrt(x * x + y * y + 1)
    point = (hits.depth * x, hits.depth * y, hits.depth)
    cosine = -(normal[0] * x + normal[1] * y + normal[2]) / length
    kinds = (*_FACE_CLASSES, *(thing.kind for thing in scene.things))
    numbers = np.array([CLASSES.index(kind) for kind in kinds], np.uint8)
    first, second = surface.curvature
    curvature = [
        _scatter(order, np.clip(k, -MAX_CURVATURE, MAX_CURVATURE), shape)
        for k in (np.maximum(first, second), np.minimum(first, second))
    ]
    edges = labels.edge_occlusion(hits.owner * np.uint8(4) + hits.part, point, normal)
    columns = {
        "depth": (hits.depth,),
        "depth_euclidean": (hits.depth * length,),
        "normal": normal,
        "curvature": curvature,
        "reshading": (np.clip(cosine, 0.0, 1.0),),
        "edge_occlusion": (edges,),
        "keypoints3d": (labels.keypoints3d(point, normal),),
    }
    targets: dict[str, np.ndarray] = {"seg": numbers[hits.owner]}
    for task, parts in columns.items():
        targets[task] = np.stack(parts, axis=-1).astype(np.float32)
    return targets
