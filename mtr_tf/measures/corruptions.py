# SPDX-License-Identifier: Apache-2.0
"""Common corruptions of images that leave in place what is to be seen.

Those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), that need no pictures of frost or rain, with
the five severities of their ImageNet-C.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from mtr_tf.attacks import threat

# What each severity from 1 to 5 is.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # Standard deviation.
    "shot_noise": (60, 25, 12, 5, 3),  # Photons of a white pixel.
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # Share of values.
    "gaussian_blur": (1, 2, 3, 4, 6),  # Standard deviation, in pixels of 224.
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # Added to the value (of HSV).
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # Factor of the distance from the mean.
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # Of the pixels of a side.
    "jpeg": (25, 18, 15, 10, 7),  # Quality, of 100.
}
_BLURRED_SIDE = 224  # Pixels of the shorter side that blurs are given for.


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
      strength: Such as the numbers there.
      keys: int64 `[batch, 2]`, a seed for the noise of each image.
      channels: Those that are corrupted; empty: all.
    """
    whole = tf.cast(images, tf.float32)
    last = whole.shape[-1]
    chosen = tuple(channels) or tuple(range(last))
    strength = tf.cast(strength, tf.float32)
    part = _CORRUPTIONS[name](tf.gather(whole, chosen, axis=-1), strength, keys)
    part = tf.ensure_shape(tf.clip_by_value(part, 0.0, 1.0), [*whole.shape[:3], None])
    places = {channel: place for place, channel in enumerate(chosen)}
    order = [places.get(channel, len(chosen) + channel) for channel in range(last)]
    return tf.gather(tf.concat([part, whole], axis=-1), order, axis=-1)


def _each(
    draw: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, keys: tf.Tensor
) -> tf.Tensor:
    """What is drawn for each image with its own key, like x."""
    spec = tf.TensorSpec(x.shape[1:], x.dtype)
    return tf.map_fn(lambda pair: draw(*pair), (x, keys), fn_output_signature=spec)


def _gaussian_noise(x: tf.Tensor, deviation: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    return x + deviation * _each(
        lambda image, key: threat.normal(tf.shape(image), key, image.dtype), x, keys
    )


def _shot_noise(x: tf.Tensor, photons: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    def counted(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(image)
        return tf.random.stateless_poisson(shape, key, image * photons, image.dtype)

    return _each(counted, x, keys) / photons


def _impulse_noise(x: tf.Tensor, share: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Half of the values that are hit become 0, half 1."""
    drawn = _each(
        lambda image, key: threat.uniform(tf.shape(image), key, image.dtype), x, keys
    )
    hit = tf.where(drawn < share / 2, tf.zeros_like(x), x)
    return tf.where(drawn >= 1 - share / 2, tf.ones_like(x), hit)


def _gaussian_blur(x: tf.Tensor, deviation: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Each pixel is a mean over those of the picture, with Gaussian weights."""
    del keys
    height, width = x.shape[1:3]
    deviation *= min(height, width) / _BLURRED_SIDE

    def weights(side: int) -> tf.Tensor:
        places = tf.range(side, dtype=tf.float32)
        apart = places[:, tf.newaxis] - places
        return tf.nn.softmax(-((apart / deviation) ** 2) / 2, axis=1)

    rows = tf.einsum("ih,bhwc->biwc", weights(height), x)
    return tf.einsum("jw,biwc->bijc", weights(width), rows)


def _brightness(x: tf.Tensor, added: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """The largest channel gets so much larger, at most 1; hue and saturation stay."""
    del keys
    value = tf.reduce_max(x, axis=-1, keepdims=True)
    brighter = tf.minimum(value + added, 1.0)
    return tf.where(value > 0, x * brighter / tf.where(value > 0, value, 1.0), brighter)


def _contrast(x: tf.Tensor, factor: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Nearer to the mean of its channel."""
    del keys
    mean = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
    return mean + factor * (x - mean)


def _pixelate(x: tf.Tensor, share: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Means over boxes, so many per side, each as large again as it was."""
    del keys
    side = tf.constant(list(x.shape[1:3]))
    fewer = tf.maximum(tf.cast(tf.cast(side, tf.float32) * share, tf.int32), 1)
    method = tf.image.ResizeMethod
    small = tf.image.resize(x, fewer, method.AREA)
    return tf.image.resize(small, side, method.NEAREST_NEIGHBOR)


def _jpeg(x: tf.Tensor, quality: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Through a JPEG file; images that are not RGB channel by channel, as grey ones."""
    quality = tf.cast(quality, tf.int32)
    parts = [x] if x.shape[-1] == 3 else tf.split(x, x.shape[-1], axis=-1)

    def through_file(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        del key
        return tf.image.adjust_jpeg_quality(image, quality)

    return tf.concat([_each(through_file, part, keys) for part in parts], axis=-1)


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
