# SPDX-License-Identifier: Apache-2.0
"""Targets that a picture defines by itself, so that every data set has them.

With Y the luminance (ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B) of a picture in [0, 1],
or its only channel if it is grey, s = (1, 2, 1) / 4 and d = (-1, 0, 1):

*   `autoencoder` is the picture with all its channels. (Taskonomy, and Cityscapes with
    released targets, store another one.)
*   `edge_texture` is Sobel's gradient magnitude |g| with gx = s down, d across and
    gy = d down, s across. A straight edge of height h along an axis gives h on either
    side of it; the most is sqrt(5) / 2 = 1.118, at a corner from 0 to 1.
*   `keypoints2d` is l / (l + 0.05**2), l being the smaller eigenvalue of the structure
    tensor, the mean of g g' under a Gaussian window of 1 pixel (cut at 3 pixels). It
    lies in [0, 1): near 0 in flat regions and along straight edges, 1/2 where the
    weakest direction has a root mean square gradient of 0.05. (Shi and Tomasi, "Good
    Features to Track", CVPR 1994, without their threshold.)

Beyond the border the picture continues as its mirror image, border pixels repeated. No
direction is preferred: targets of the mirrored picture are the mirrored targets, to the
last bit, because terms are added in symmetric pairs.
"""

from __future__ import annotations

import numpy as np

# The (low, high) values between which maps of photographs are painted.
RANGES = {"edge_texture": (0.0, 0.5), "keypoints2d": (0.0, 1.0)}

_LUMINANCE = np.array((0.299, 0.587, 0.114), np.float32)
_LUMINOUS = (1, 3)  # Channels of pictures that have a luminance.
_WINDOW_SIGMA = 1.0
_WINDOW_RADIUS = 3
_HALF_RESPONSE = np.float32(0.05**2)


def compute(task: str, images: np.ndarray) -> np.ndarray:
    """Returns a task's targets, float32 `[batch, H, W, channels]`.

    Args:
      task: One of `TASKS`.
      images: `[batch, H, W, C]`, uint8 or float in [0, 1].
    """
    return TASKS[task](images)


def of_channels(count: int) -> tuple[str, ...]:
    """Returns the tasks that pictures of `count` channels define.

    Edges and corners are computed from luminance, which only colour and grey have.
    """
    return tuple(TASKS) if count in _LUMINOUS else ("autoencoder",)


def as_floats(images: np.ndarray) -> np.ndarray:
    """Returns images as float32; uint8 images are divided by 255."""
    scale = 255 if images.dtype == np.uint8 else 1
    return images.astype(np.float32) / np.float32(scale)


def edge_texture(images: np.ndarray) -> np.ndarray:
    """Returns the magnitude of the gradient, `[batch, H, W, 1]`."""
    across, down = _gradient(images)
    return np.sqrt(across**2 + down**2)[..., np.newaxis]


def keypoints2d(images: np.ndarray) -> np.ndarray:
    """Returns the squashed smaller eigenvalue, `[batch, H, W, 1]`."""
    across, down = _gradient(images)
    xx, yy, xy = (_window(product) for product in (across**2, down**2, across * down))
    eigenvalue = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    eigenvalue = np.maximum(eigenvalue, 0)  # Rounding may make it negative.
    return (eigenvalue / (eigenvalue + _HALF_RESPONSE))[..., np.newaxis]


def _gradient(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns Sobel's (across, down) of the luminance, each `[batch, H, W]`."""
    padded = np.pad(_luminance(images), ((0, 0), (1, 1), (1, 1)), "symmetric")
    above, centre, below = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    smooth = (above + below) * 0.25 + centre * 0.5
    across = smooth[..., 2:] - smooth[..., :-2]
    rise = below - above
    down = (rise[..., 2:] + rise[..., :-2]) * 0.25 + rise[..., 1:-1] * 0.5
    return across, down


def _luminance(images: np.ndarray) -> np.ndarray:
    """Returns the luminance of colour or grey images, `[batch, H, W]`."""
    images = as_floats(images)
    if images.shape[-1] == 1:
        return images[..., 0]
    red, green, blue = np.moveaxis(images, -1, 0)
    # Written out: the rounding of a matrix product depends on a pixel's place.
    return red * _LUMINANCE[0] + green * _LUMINANCE[1] + blue * _LUMINANCE[2]


def _window(values: np.ndarray) -> np.ndarray:
    """Returns the Gaussian mean around each pixel of `[batch, H, W]`."""
    radius = _WINDOW_RADIUS
    offsets = np.arange(radius + 1)
    weights = np.exp(-0.5 * (offsets / _WINDOW_SIGMA) ** 2)
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    for axis in (1, 2):
        size = values.shape[axis]
        padding = [(0, 0)] * values.ndim
        padding[axis] = (radius, radius)
        padded = np.moveaxis(np.pad(values, padding, "symmetric"), axis, 0)
        total = padded[radius : radius + size] * weights[0]
        for k in range(1, radius + 1):
            low, high = radius - k, radius + k
            pair = padded[low : low + size] + padded[high : high + size]
            pair *= weights[k]
            total += pair
        values = np.moveaxis(total, 0, axis)
    return values


TASKS = {
    "edge_texture": edge_texture,
    "keypoints2d": keypoints2d,
    "autoencoder": as_floats,
}
