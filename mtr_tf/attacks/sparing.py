# SPDX-License-Identifier: Apache-2.0
"""Attacks that spare some tasks: their losses stay at or below those of clean images.

There are two parts, both per image:

    direction   The gradient g of the attacked loss is bent by the gradients h_s of the
                spared losses, as little as possible: to (1 - u) g - u h_s, with the
                smallest u in [0, 1] for which the attack's next move does not raise L_s
                above the allowed value, to first order.
    score       A point that spares all tasks ranks above every point that does not.
                Among the former the attack's own score decides, among the latter the
                smaller excess.

The move is the attack's own: with its step size and its momentum, clipped to ball and
box. For an attack that does not say how it moves, a short step along the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import balance
from mtr_tf.attacks import base
from mtr_tf.attacks import threat

# Points that do not spare score below -FAR, and so do means of their scores and others.
FAR = 1e20
_BELOW = 1e30
_MOST = 1e6  # The largest excess, also that of a loss that is not finite.
_MARGIN = 0.1  # Moves aim lower by this share of what they could lower a loss by,
_BACK = 2.0  # and return from above with this multiple of what is missing.
_HALVINGS = 14  # The bend is found to 2^-14.
_ROUNDS = 3  # Of bends, where several tasks are spared.
_STEP = 1 / 255  # The step of an attack that does not say how it moves, per value.

# A gradient [batch, ...] -> how far the attack then moves, [batch, ...].
Move = Callable[[tf.Tensor], tf.Tensor]


def score(
    scores: tf.Tensor, losses: Mapping[str, tf.Tensor], clean: Mapping[str, tf.Tensor]
) -> tf.Tensor:
    """Returns scores by which points that spare come before all that do not, [batch].

    Args:
      scores: What the attack judges points by.
      losses: Of the spared tasks, [batch] each.
      clean: The same of the clean images.
    """
    above = excess(losses, clean)
    return tf.where(above > 0, -_BELOW * (1 + above), scores)


def excess(
    losses: Mapping[str, tf.Tensor], clean: Mapping[str, tf.Tensor]
) -> tf.Tensor:
    """Returns how far losses are above the clean ones, as a share of these, summed.

    [batch]; 0 where no task is above. A loss that is not finite counts as far above.
    """
    shares = []
    for task, loss in losses.items():
        loss, before = (tf.cast(t, tf.float32) for t in (loss, clean[task]))
        least = np.finfo(np.float32).tiny
        share = (loss - before) / tf.maximum(tf.abs(before), least)
        share = tf.clip_by_value(share, least, _MOST)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(before)
        share = tf.where(loss <= before, 0.0, share)
        shares.append(tf.where(finite, share, _MOST))
    return tf.add_n(shares)


def with_bent_gradient(
    tape: tf.GradientTape,
    x: tf.Tensor,
    ascend: tf.Tensor,
    losses: Mapping[str, tf.Tensor],
    clean: Mapping[str, tf.Tensor],
    move: Move | None = None,
) -> tf.Tensor:
    """Returns `ascend` with a bent gradient with respect to `x` (see the module).

    This takes one more backward pass per spared task, but only if a gradient is taken.
    There is no gradient with respect to anything else, and no second derivative.

    Args:
      tape: A persistent tape that watched `x` while all that follows was made.
      x: Images [batch, ...].
      ascend: What the attack raises, [batch].
      losses: Of the spared tasks, [batch] each.
      clean: The same of the clean images.
      move: How the attack moves along a gradient.
    """
    half = base.computes_in_float16(base.graph_operations())

    @tf.custom_gradient
    def joined(_):
        def backward(upstream):
            slope = balance.slope_of(tape, x, ascend, half)
            others = [balance.slope_of(tape, x, each, half) for each in losses.values()]
            room = [clean[task] - loss for task, loss in losses.items()]
            found = bent(slope, others, room, move)
            return _by_image(tf.cast(upstream, x.dtype), x) * found

        return tf.stop_gradient(ascend), backward

    return joined(x)


def bent(
    slope: tf.Tensor,
    others: Sequence[tf.Tensor],
    room: Sequence[tf.Tensor],
    move: Move | None = None,
    margin: float = _MARGIN,
) -> tf.Tensor:
    """Returns the gradient of the attacked loss, bent so that spared losses stay low.

    A move usually ends higher than its gradient predicts. So moves aim below what is
    allowed, by a share of what they could lower a spared loss by, and if they are above
    that, they go down by more than what is missing.

    Args:
      slope: The gradient, [batch, ...], finite.
      others: Those of the spared losses.
      room: By how much each may still rise, [batch]; negative: must fall.
      move: How the attack moves along a gradient; `move.movable`, if there is one,
        returns what is left of a gradient where it can move.
      margin: That share.
    """
    move = _step if move is None else move
    movable = getattr(move, "movable", lambda change: change)
    slope, others = movable(slope), [movable(other) for other in others]
    unit = threat.L2(0.0).steepest
    length = _along(unit(slope), slope)
    length = tf.where(length > 0, length, 1)  # Without a slope, back all the same.
    bends = []
    for other, left in zip(others, room, strict=True):
        along = unit(other)
        against = _by_image(length, slope) * along
        steepness = _along(along, other)
        # In the unit of moves; where nothing moves the loss, any move will do.
        left = tf.math.divide_no_nan(tf.cast(left, slope.dtype), steepness)
        left += margin * tf.minimum(_along(along, move(-against)), 0)
        left = tf.where(left < 0, _BACK * left, left)
        left = tf.where(steepness > 0, left, slope.dtype.max)
        bends.append((along, against, left))
    for _ in range(_ROUNDS if len(bends) > 1 else 1):
        for bend in bends:
            slope = _bent_by(slope, *bend, move)
    return slope


def _bent_by(slope, along, against, left, move: Move) -> tf.Tensor:
    """Returns (1 - u) slope - u against, the smallest u that moves `left` at most."""

    def at(share):
        share = _by_image(share, slope)
        return (1 - share) * slope - share * against

    def fits(share):
        return _along(along, move(at(share))) <= left

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        good = fits(middle)
        return tf.where(good, low, middle), tf.where(good, middle, high)

    none = tf.zeros_like(left)
    _, share = base.loop(0, _HALVINGS, halve, (none, none + 1))
    return at(tf.where(fits(none), none, share))


def _step(slope: tf.Tensor) -> tf.Tensor:
    """A small step along the gradient."""
    count = tf.cast(tf.reduce_prod(tf.shape(slope)[1:]), slope.dtype)
    return _STEP * tf.sqrt(count) * threat.L2(0.0).steepest(slope)


def _along(direction: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the scalar product of each image, [batch]."""
    return tf.reduce_sum(direction * x, list(range(1, x.shape.rank)))


def _by_image(numbers: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns one number per image so that it multiplies images."""
    return tf.reshape(numbers, [-1, *[1] * (x.shape.rank - 1)])
