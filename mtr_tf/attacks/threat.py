# SPDX-License-Identifier: Apache-2.0
"""Threat models: how far an image may move, and what a step in that ball looks like.

A threat model is a ball of radius `epsilon` around each image, in some norm, cut with
the box [0, 1] of valid pixels. Each norm answers the same four questions: a random
point of the unit ball, the steepest direction, the projection onto ball and box, and
the rounding of a result to the image's own dtype without leaving either. Random numbers
and rounding are further below.

Everything acts per image: the first axis is the batch, the others are the image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import checks
from mtr_tf.errors import InputError

LARGEST_L2 = 1e6  # Of an epsilon, and of a step.
_ALG = "philox"  # The same numbers on every device.


@dataclasses.dataclass(frozen=True)
class Linf:
    """No pixel value may change by more than `epsilon`, in pixel units of [0, 1].

    `epsilon` may be a float64 tensor, so that one graph serves all radii.
    """

    epsilon: float | tf.Tensor

    def check(self) -> None:
        """Raises InputError unless the radius (not a tensor) is allowed."""
        _check_radius(self.epsilon, 1, "in units of [0, 1] (8/255, not 8)")

    def noise(self, shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Returns one uniform point of the unit cube [-1, 1)^shape."""
        return 2 * uniform(shape, key, dtype) - 1

    start = noise  # Where runs begin is uniform too.

    def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns the unit move that raises a linear loss most: the sign."""
        return tf.sign(gradient)

    def projection(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns the map onto ball and box around `x`: a clip between two bounds.

        The bounds are numbers of x's own dtype, with no difference to x above epsilon
        even in exact arithmetic. So neither the clip nor a later plain rounding to
        that dtype (rounding is monotone) can leave the ball or the box.
        """
        wide = tf.cast(x, tf.float64)
        low = tf.maximum(wide - self.epsilon, 0)
        high = tf.minimum(wide + self.epsilon, 1)
        low, high = (
            tf.cast(rounded_towards(x, bound, self.epsilon), compute_dtype(x))
            for bound in (low, high)
        )
        return lambda point: _clip(point, low, high)

    def rounded(self, point: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns a projected `point` in x's dtype, still inside (see projection)."""
        return tf.cast(point, x.dtype)


@dataclasses.dataclass(frozen=True)
class L2:
    """The plain l2 norm of the difference of two images in [0, 1] is at most epsilon.

    Plain: the root of the sum (not the mean) of squares over all pixels and channels.
    As for `Linf`, `epsilon` may be a float64 tensor.
    """

    epsilon: float | tf.Tensor

    def check(self) -> None:
        """Raises InputError unless the radius (not a tensor) is allowed."""
        what = "an l2 norm for images in [0, 1], from 0 to 1e6"
        _check_radius(self.epsilon, LARGEST_L2, what)

    def noise(self, shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Returns one uniform point of the unit ball.

        A Gaussian has a uniform direction, and the share of a d-dimensional ball
        within radius r is r^d, so the radius is u^(1/d) with u uniform in [0, 1).
        """
        power = 1 / tf.cast(tf.reduce_prod(shape), dtype)
        return self._point(shape, key, dtype, power)

    def start(self, shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Returns a point of uniform direction whose length is uniform in [0, 1).

        Nearly all of a ball of many dimensions is at its rim, and there a random
        direction uses up the radius: runs of PGD from uniform points of the ball end
        with 0.1 to 0.3 % less loss (docs/attacks.md); to APGD it makes no difference.
        """
        return self._point(shape, key, dtype, 1.0)

    def _point(self, shape, key, dtype, power) -> tf.Tensor:
        """A point of uniform direction and length u^power, u uniform in [0, 1)."""
        direction = normal(shape, fold_in(key, 0), dtype)
        u = uniform([], fold_in(key, 1), dtype)
        return tf.math.divide_no_nan(direction, tf.norm(direction)) * u**power

    def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns each image's gradient divided by its l2 norm; zero for a norm of 0.

        The gradient is first divided by its largest entry, because squares of small or
        large entries are beyond float32; that entry is capped so that its reciprocal is
        not.
        """
        axes, cap = image_axes(gradient), 0.5 / np.finfo(gradient.dtype.name).tiny
        highest = tf.reduce_max(gradient, axes, keepdims=True)
        lowest = tf.reduce_min(gradient, axes, keepdims=True)
        largest = tf.minimum(tf.maximum(highest, -lowest), cap)
        scaled = gradient * _reciprocal(largest)
        return scaled * _reciprocal(_norms(scaled))

    def projection(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns the map onto (nearly) the nearest point of ball and box around `x`.

        The nearest point is clip(x + t offset), for the largest t <= 1 that is inside
        the ball (Lagrange). Shrinking into the ball first and clipping then, as is
        common, ends inside: x is in the box, so clipping a coordinate brings it nearer
        to x's. But its t is too small: on images near the box's edge, such steps miss 2
        to 5 % of a linear loss's maximum. So t is raised once to the value that fills
        the ball if no further coordinate is clipped (if one is, the point is further
        inside); then they miss 0.1 %.
        """
        centre = tf.cast(x, compute_dtype(x))
        low, high = -centre, 1 - centre
        epsilon = tf.cast(self.epsilon, centre.dtype)

        def project(point):
            offset = point - centre
            t = epsilon * _reciprocal(tf.maximum(_norms(offset), epsilon))
            scaled = t * offset
            clipped = _clip(scaled, low, high)
            # A factor of 0 or 1: choosing by tf.where takes many times as long.
            free = tf.cast(tf.equal(scaled, clipped), centre.dtype)
            free_norms = _norms(free * clipped)
            room = epsilon**2 - (_norms(clipped) ** 2 - free_norms**2)
            factor = tf.sqrt(tf.maximum(room, 0)) * _reciprocal(free_norms)
            factor = tf.minimum(factor, _reciprocal(t))  # Not beyond the point itself.
            return centre + _clip(tf.maximum(factor, 1) * scaled, low, high)

        return project

    def rounded(self, point: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns `point` in x's dtype, inside ball and box in float64 arithmetic.

        Shrinks into the ball once more in float64, then rounds each coordinate towards
        x, which shortens the difference and keeps between two points of the box. In
        half precision that would give away much of the radius; see `rounded_as_long`.
        """
        wide = tf.cast(x, tf.float64)
        offset = tf.cast(point, tf.float64) - wide
        inner = self.epsilon * (1 - 1e-12)  # Room for the rounding of a norm's sum.
        offset *= inner * _reciprocal(tf.maximum(_norms(offset), inner))
        if x.dtype.size == 2:
            return rounded_as_long(x, offset)
        return rounded_towards(x, wide + offset, tf.abs(offset))


NORMS: dict[str, type[Linf] | type[L2]] = {"linf": Linf, "l2": L2}


def ball(norm: str, epsilon: float | tf.Tensor) -> Linf | L2:
    """Returns the threat model of a norm ("linf" or "l2") and radius, unchecked."""
    return NORMS[norm](epsilon)


def check(norm: str, epsilon: float | tf.Tensor) -> None:
    """Checks the settings of an attack; values of tensors are not checked.

    Raises:
      InputError: An unknown norm, or a radius that the norm does not allow.
    """
    checks.check_name("norm", norm, NORMS)
    if not tf.is_tensor(epsilon):
        NORMS[norm](epsilon).check()


def compute_dtype(x: tf.Tensor) -> tf.DType:
    """Returns what an attack on `x` computes in: float64 for float64, else float32."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def random_start(
    threat: Linf | L2, x: tf.Tensor, keys: tf.Tensor, restart: tf.Tensor | int
) -> tf.Tensor:
    """Returns where runs begin, images [batch, ...] in the ball; may leave the box.

    The noise of an image is a function of its key (int64 [batch, 2], see `image_keys`)
    and the number of the restart alone, whatever the batch around it.
    """
    return _add_noise(threat.start, threat.epsilon, x, keys, restart)


def random_point(
    threat: Linf | L2, x: tf.Tensor, keys: tf.Tensor, number: tf.Tensor | int
) -> tf.Tensor:
    """Returns `random_start` with noise uniform in the ball; the same for linf."""
    return _add_noise(threat.noise, threat.epsilon, x, keys, number)


def _check_radius(radius: float | tf.Tensor, most: float, what: str) -> None:
    checks.check_number("epsilon", radius)
    if not 0 <= radius <= most:
        raise InputError(f"epsilon must be {what}; got {radius:g}.")


def _add_noise(
    draw: Callable, epsilon, x: tf.Tensor, keys: tf.Tensor, number
) -> tf.Tensor:
    dtype = compute_dtype(x)
    noise = random_images(draw, x, keys, number)
    return tf.cast(x, dtype) + tf.cast(epsilon, dtype) * noise


def random_images(
    draw: Callable[..., tf.Tensor],
    x: tf.Tensor,
    keys: tf.Tensor,
    number: tf.Tensor | int,
) -> tf.Tensor:
    """Returns random numbers like `x`, each image's from its own key and `number`.

    Args:
      draw: (shape, key, dtype) -> numbers of one image, such as `normal` or `uniform`.
      x: Images [batch, ...].
      keys: int64 [batch, 2].
      number: Which draw the numbers are for.
    """
    dtype, shape = compute_dtype(x), tf.shape(x)[1:]
    return tf.map_fn(
        lambda key: draw(shape, fold_in(key, number), dtype),
        keys,
        fn_output_signature=tf.TensorSpec(x.shape[1:], dtype),
    )


def fold_in(seed: int | tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """Returns keys, int64 [..., 2]: one from `seed` and each number of `data`.

    `fold_in(seed, indices)` is a seed per image for an attack, by each image's number
    in its data set: then noise depends neither on batch size nor order nor replicas.

    Args:
      seed: an int, or a key [2].
      data: ints of any shape.

    Raises:
      InputError: `seed` is not of integers of int64.
    """
    seed, data = _as_int64(seed), tf.cast(data, tf.int64)
    key = tf.stack([seed, 0]) if seed.shape.rank == 0 else seed
    mixed_key = tf.random.experimental.stateless_fold_in(
        key, tf.constant(0, tf.int64), _ALG
    )
    return tf.stack([tf.broadcast_to(mixed_key[0], tf.shape(data)), data], axis=-1)


def image_keys(seed: int | tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Returns int64 [batch, 2]: the key of each image's random numbers.

    Args:
      seed: an int, into which each image's index is folded; or a seed per image, which
        decides alone: int [batch], or [batch, 2] as `fold_in` returns.
      indices: int [batch], each image's number, used with a single seed only.

    Raises:
      InputError: `seed` is not of integers of int64, or of another shape.
    """
    seed = _as_int64(seed)
    if seed.shape.rank == 0:
        return fold_in(seed, indices)
    matches = seed.shape[:1].is_compatible_with(indices.shape)
    if matches and seed.shape.rank == 1:
        return tf.stack([seed, tf.zeros_like(seed)], axis=1)
    if matches and seed.shape.rank == 2 and seed.shape[1] == 2:
        return seed
    raise InputError(
        "seed must be one int, or one per image (shape [batch] or [batch, 2]); got "
        f"shape {seed.shape} for a batch of {indices.shape[0]}."
    )


def _as_int64(seed: Any) -> tf.Tensor:
    """Returns the seed or seeds as int64; raises InputError unless they fit."""
    parts = [part for part in tf.nest.flatten(seed) if not tf.is_tensor(part)]
    for number in (n for part in parts for n in np.ravel(part).tolist()):
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            raise InputError(
                f"seed must be from -2^63 to 2^63 - 1; got {number}; give another."
            )
    if seed is None:
        raise InputError("seed must be whole numbers; got None.")
    seed = tf.convert_to_tensor(seed)
    if not seed.dtype.is_integer:
        raise InputError(f"seed must be whole numbers; got {seed.dtype.name}.")
    return tf.cast(seed, tf.int64)


def choose(mask: tf.Tensor, yes: tf.Tensor, no: tf.Tensor) -> tf.Tensor:
    """Returns `yes` for the images of the mask [batch], `no` for the others.

    This older form of tf.where copies whole images and needs no broadcasting, which
    takes seven times as long.
    """
    return tf.raw_ops.Select(condition=mask, x=yes, y=no)


def image_axes(x: tf.Tensor) -> list[int]:
    """Returns the axes of each image: all but the first."""
    return list(range(1, x.shape.rank))


def per_image(numbers: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns one number per image, [batch], in a shape that multiplies images `x`."""
    return tf.reshape(numbers, [-1, *[1] * (x.shape.rank - 1)])


def _norms(x: tf.Tensor) -> tf.Tensor:
    """Returns each image's l2 norm, [batch, 1, ...]."""
    squares = tf.reduce_sum(tf.square(x), image_axes(x), keepdims=True)
    return tf.sqrt(squares)


def _reciprocal(values: tf.Tensor) -> tf.Tensor:
    """Returns 1 / values, and 0 for 0."""
    return tf.math.divide_no_nan(tf.ones_like(values), values)


def _clip(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Returns `x` between bounds of its shape; tf.clip_by_value takes two passes."""
    return tf.raw_ops.ClipByValue(t=x, clip_value_min=low, clip_value_max=high)


# Random numbers of a key that are the same with XLA and without, on any device.
#
# TensorFlow's stateless random floats differ under XLA; its random integers do not. So
# floats are made from integers here, as TensorFlow makes them without XLA:
# `uniform` returns the very numbers of tf.random.stateless_uniform, and `normal` those
# of tf.random.stateless_normal but for rounding.

# The integer type of each float type, and how many of its bits make a float.
_INTEGERS = {tf.float32: (tf.int32, 23), tf.float64: (tf.int64, 52)}
_WORD = 32  # TensorFlow has the two halves of 64 bits the other way round for floats.
_SMALLEST = 1e-7  # What the logarithm is taken of, at least.


def uniform(shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns independent numbers, uniform in [0, 1).

    Args:
      shape: of the result.
      key: int64 [2].
      dtype: float32 or float64.
    """
    integer, digits = _INTEGERS[dtype]
    bits = tf.random.stateless_uniform(
        shape,
        key,
        minval=None,
        maxval=None,
        dtype=integer,
        alg=_ALG,
    )
    if integer == tf.int64:
        upper = tf.bitwise.left_shift(bits, tf.constant(_WORD, integer))
        lower = tf.bitwise.right_shift(bits, tf.constant(_WORD, integer))
        bits = upper + tf.bitwise.bitwise_and(lower, 2**_WORD - 1)
    low = tf.bitwise.bitwise_and(bits, tf.constant(2**digits - 1, integer))
    return tf.cast(low, dtype) * tf.constant(2.0**-digits, dtype)


def normal(shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns independent standard normal numbers, two from each pair of uniform ones.

    Arguments are those of `uniform` (Box and Muller, 1958).
    """
    shape = tf.convert_to_tensor(shape, tf.int32)
    count = tf.reduce_prod(shape)
    pairs = uniform([(count + 1) // 2, 2], key, dtype)
    length = tf.sqrt(-2 * tf.math.log(tf.maximum(pairs[:, 0], _SMALLEST)))
    angle = 2 * math.pi * pairs[:, 1]
    numbers = tf.stack([tf.sin(angle) * length, tf.cos(angle) * length], axis=1)
    return tf.reshape(tf.reshape(numbers, [-1])[:count], shape)


# Rounding to the images' own float type, without going further from x: all numbers are
# in [0, 1], and x is of the type that is rounded to.

# An integer type of each float type's size: neighbouring non-negative floats have
# neighbouring bit patterns, so adding 1 to the bits is the next float up.
_BITS = {
    tf.float16: tf.int16,
    tf.bfloat16: tf.int16,
    tf.float32: tf.int32,
    tf.float64: tf.int64,
}
_HALVINGS = 40  # Of the range of scales, 2^-1 to 2^13.


def rounded_towards(
    x: tf.Tensor, value: tf.Tensor, reach: tf.Tensor | float
) -> tf.Tensor:
    """Returns float64 `value` in x's dtype, at most `reach` away from `x`.

    Rounds to the nearest number, and where that is too far goes to its neighbour on
    x's side.
    """
    nearest = tf.cast(value, x.dtype)
    gap = tf.cast(x, tf.float64) - tf.cast(nearest, tf.float64)
    bits = _BITS[x.dtype]
    too_far = tf.cast(tf.abs(gap) > reach, bits)
    move = tf.cast(tf.sign(gap), bits) * too_far
    return tf.bitcast(tf.bitcast(nearest, bits) + move, x.dtype)


def rounded_as_long(x: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Returns about x + offset in x's dtype, [batch, ...], about as far from x in l2.

    Half precision has few numbers: `rounded_towards` gives away most of a small offset,
    because much of it is less than the distance to the next number. So x + s offset is
    rounded to the nearest number, with the largest s whose result is no longer than the
    offset. All coordinates move outwards as s grows, so bisection finds s. Then the
    changes of the next larger s are made at as many coordinates as the remaining length
    allows, taken from all over the image.

    Args:
      x: [batch, ...] in [0, 1].
      offset: float64, x + offset in [0, 1].
    """
    axes = image_axes(x)
    wide = tf.cast(x, tf.float64)
    # Room for the rounding of the sums.
    limit = tf.reduce_sum(tf.square(offset), axes, keepdims=True) * (1 - 1e-12)

    def scaled(log_scale):
        value = wide + tf.pow(tf.constant(2.0, tf.float64), log_scale) * offset
        return tf.cast(tf.clip_by_value(value, 0, 1), x.dtype)

    def squares(rounded):
        return tf.square(tf.cast(rounded, tf.float64) - wide)

    def halve(number, low, high):
        middle = (low + high) / 2
        length = tf.reduce_sum(squares(scaled(middle)), axes, keepdims=True)
        fits = length <= limit
        low, high = tf.where(fits, middle, low), tf.where(fits, high, middle)
        return number + 1, low, high

    # Rounding to the nearest at most doubles an offset: half the offset always fits.
    _, low, high = tf.while_loop(
        lambda number, *_: number < _HALVINGS,
        halve,
        (0, tf.zeros_like(limit) - 1.001, tf.zeros_like(limit) + 13),
        parallel_iterations=1,
    )
    inside, outside = scaled(low), scaled(high)
    spare = limit - tf.reduce_sum(squares(inside), axes, keepdims=True)
    affordable = _affordable_mask(squares(outside) - squares(inside), spare)
    return tf.where(affordable, outside, inside)


def _affordable_mask(costs: tf.Tensor, spare: tf.Tensor) -> tf.Tensor:
    """Returns a mask like `costs`; an image's entries in it sum to `spare` at most.

    Entries are taken in an order that visits all parts of an image evenly: multiples of
    the golden ratio, modulo 1, are spread evenly, however many there are.
    """
    flat = tf.reshape(costs, [tf.shape(costs)[0], tf.reduce_prod(tf.shape(costs)[1:])])
    places = tf.range(tf.shape(flat)[1], dtype=tf.float64) * (np.sqrt(5) - 1) / 2
    order = tf.argsort(tf.math.floormod(places, 1))
    sums = tf.cumsum(tf.gather(flat, order, axis=1), axis=1)
    affordable = sums <= tf.reshape(spare, [-1, 1])
    return tf.reshape(tf.gather(affordable, tf.argsort(order), axis=1), tf.shape(costs))
