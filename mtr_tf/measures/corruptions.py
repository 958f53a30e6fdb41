# SPDX-License-Identifier: Apache-2.0
"""Common corruptions of images, which leave everything in its place.

Those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), that need no pictures of frost or rain, with
the five severities of their ImageNet-C.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from mtr_tf.attacks import threat

# The strength of each severity from 1 to 5.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # Standard deviation.
    "shot_noise": (60, 25, 12, 5, 3),  # Photons of a white pixel.
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # Share of values.
    "gaussian_blur": (1, 2, 3, 4, 6),  # Standard deviation, in pixels of 224.
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # Added to the value (of HSV).
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # Factor of the distance from the mean.
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # Boxes per pixel of a side.
    "jpeg": (25, 18, 15, 10, 7),  # Quality, of 100.
}
_BLUR_SIDE = 224  # Shorter side of the images that deviations refer to.


def corrupted(
    name: str,
    images: tf.Tensor,
    strength: float | tf.Tensor,
    keys: tf.Tensor,
    channels: Sequence[int] = (),
) -> tf.Tensor:
    """Returns corrupted images, float32 in [0, 1].

    Args:
      name: One of `SEVERITIES`.
      images: Float in [0, 1], `[batch, height, width, channels]`.
      strength: A number as in `SEVERITIES`.
      keys: int64 `[batch, 2]`, a seed for the noise of each image.
      channels: The channels to corrupt; empty: all.
    """
    floats = tf.cast(images, tf.float32)
    count = floats.shape[-1]
    selection = tuple(channels) or tuple(range(count))
    strength = tf.cast(strength, tf.float32)
    part = _CORRUPTIONS[name](tf.gather(floats, selection, axis=-1), strength, keys)
    part = tf.ensure_shape(tf.clip_by_value(part, 0.0, 1.0), [*floats.shape[:3], None])
    positions = {channel: position for position, channel in enumerate(selection)}
    order = [
        positions.get(channel, len(selection) + channel) for channel in range(count)
    ]
    return tf.gather(tf.concat([part, floats], axis=-1), order, axis=-1)


def _map_images(
    draw: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, keys: tf.Tensor
) -> tf.Tensor:
    """Calls `draw(image, key)` for each image of `x`; returns an array like `x`."""
    spec = tf.TensorSpec(x.shape[1:], x.dtype)
    return tf.map_fn(lambda pair: draw(*pair), (x, keys), fn_output_signature=spec)


def _gaussian_noise(x: tf.Tensor, deviation: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    return x + deviation * _map_images(
        lambda image, key: threat.normal(tf.shape(image), key, image.dtype), x, keys
    )


def _shot_noise(x: tf.Tensor, photons: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    def poisson(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(image)
        return tf.random.stateless_poisson(shape, key, image * photons, image.dtype)

    return _map_images(poisson, x, keys) / photons


def _impulse_noise(x: tf.Tensor, share: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Sets a share of the values, half of them to 0 and half to 1."""
    uniform = _map_images(
        lambda image, key: threat.uniform(tf.shape(image), key, image.dtype), x, keys
    )
    with_zeros = tf.where(uniform < share / 2, tf.zeros_like(x), x)
    return tf.where(uniform >= 1 - share / 2, tf.ones_like(x), with_zeros)


def _gaussian_blur(x: tf.Tensor, deviation: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Replaces each pixel by a mean over the image with Gaussian weights."""
    del keys
    height, width = x.shape[1:3]
    deviation *= min(height, width) / _BLUR_SIDE

    def weights(side: int) -> tf.Tensor:
        positions = tf.range(side, dtype=tf.float32)
        distance = positions[:, tf.newaxis] - positions
        return tf.nn.softmax(-((distance / deviation) ** 2) / 2, axis=1)

    rows = tf.einsum("ih,bhwc->biwc", weights(height), x)
    return tf.einsum("jw,biwc->bijc", weights(width), rows)


def _brightness(x: tf.Tensor, increase: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Raises the largest channel, up to 1, and keeps hue and saturation."""
    del keys
    value = tf.reduce_max(x, axis=-1, keepdims=True)
    new_value = tf.minimum(value + increase, 1.0)
    return tf.where(
        value > 0, x * new_value / tf.where(value > 0, value, 1.0), new_value
    )


def _contrast(x: tf.Tensor, factor: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Moves values towards the mean of their channel."""
    del keys
    mean = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
    return mean + factor * (x - mean)


def _pixelate(x: tf.Tensor, share: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Replaces boxes of pixels by their means."""
    del keys
    side = tf.constant(list(x.shape[1:3]))
    boxes = tf.maximum(tf.cast(tf.cast(side, tf.float32) * share, tf.int32), 1)
    method = tf.image.ResizeMethod
    means = tf.image.resize(x, boxes, method.AREA)
    return tf.image.resize(means, side, method.NEAREST_NEIGHBOR)


def _jpeg(x: tf.Tensor, quality: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Compresses as JPEG; if images are not RGB, each channel as a grey image."""
    quality = tf.cast(quality, tf.int32)
    parts = [x] if x.shape[-1] == 3 else tf.split(x, x.shape[-1], axis=-1)

    def compress(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        del key
        return tf.image.adjust_jpeg_quality(image, quality)

    return tf.concat([_map_images(compress, part, keys) for part in parts], axis=-1)


_CORRUPTIONS = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
