# SPDX-License-Identifier: Apache-2.0
"""Tiny data in Taskonomy's official layout, of random numbers."""

from __future__ import annotations

import numpy as np
from PIL import Image

DOMAINS = (
    "rgb",
    "segment_semantic",
    "depth_zbuffer",
    "depth_euclidean",
    "normal",
    "edge_texture",
    "edge_occlusion",
    "keypoints2d",
    "keypoints3d",
    "reshading",
    "principal_curvature",
)
_COLOURS = ("rgb", "normal", "reshading", "principal_curvature")
_SIXTEEN_BITS = (
    "depth_zbuffer",
    "depth_euclidean",
    "edge_texture",
    "edge_occlusion",
    "keypoints2d",
    "keypoints3d",
)


def draw(seed=0, size=16) -> dict[str, np.ndarray]:
    """A view's numbers by domain; its depths have a hole of 5 x 5 at the upper left."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for domain in DOMAINS:
        if domain in _COLOURS:
            arrays[domain] = rng.integers(0, 256, (size, size, 3), np.uint8)
        elif domain in _SIXTEEN_BITS:
            arrays[domain] = rng.integers(0, 800, (size, size), np.uint16)
        else:
            arrays[domain] = rng.integers(0, 18, (size, size), np.uint8)
    for domain in ("depth_zbuffer", "depth_euclidean"):
        arrays[domain] += np.uint16(900)
        arrays[domain][:5, :5] = 65535
    arrays["keypoints3d"] *= np.uint16(80)
    return arrays


def write_view(root, arrays, point, view=0, folder="{domain}"):
    """Writes a view's files; `folder` may name a building beside the domain."""
    for domain, array in arrays.items():
        ending = domain.replace("segment_semantic", "segmentsemantic")
        path = root / folder.format(domain=domain)
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(
            path / f"point_{point}_view_{view}_domain_{ending}.png"
        )


def write_building(root, points, size=16, folder="{domain}"):
    """Writes a whole view of each point."""
    for point in points:
        write_view(root, draw(point, size), point, folder=folder)
