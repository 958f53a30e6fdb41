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

from mtr_tf.attacks import base
from mtr_tf.attacks import threat

# Points that do not spare tasks score below -FAR, and so does any mean of such scores
# and others.
FAR = 1e20
_PENALTY = 1e30
_MAX_EXCESS = 1e6  # The largest excess, also that of a loss that is not finite.
_MARGIN = 0.1  # Moves aim lower by this share of what they could lower a loss by
_RETURN = 2.0  # and return from above by this multiple of the excess.
_HALVINGS = 14  # The bend is found to 2^-14.
_ROUNDS = 3  # Of bends, where several tasks are spared.
_STEP = 1 / 255  # The step of an attack that does not say how it moves, per value.

# A gradient [batch, ...] -> how far the attack then moves, [batch, ...].
Move = Callable[[tf.Tensor], tf.Tensor]


def score(
    scores: tf.Tensor, losses: Mapping[str, tf.Tensor], clean: Mapping[str, tf.Tensor]
) -> tf.Tensor:
    """Returns scores that rank points that spare above all that do not, [batch].

    Args:
      scores: What the attack judges points by.
      losses: Of the spared tasks, [batch] each.
      clean: The same of the clean images.
    """
    overshoot = excess(losses, clean)
    return tf.where(overshoot > 0, -_PENALTY * (1 + overshoot), scores)


def excess(
    losses: Mapping[str, tf.Tensor], clean: Mapping[str, tf.Tensor]
) -> tf.Tensor:
    """Returns the sum of the losses' excess over the clean ones, relative to these.

    [batch]; 0 where no task is above. A loss that is not finite counts as far above.
    """
    shares = []
    for task, loss in losses.items():
        loss, clean_loss = (tf.cast(t, tf.float32) for t in (loss, clean[task]))
        least = np.finfo(np.float32).tiny
        share = (loss - clean_loss) / tf.maximum(tf.abs(clean_loss), least)
        share = tf.clip_by_value(share, least, _MAX_EXCESS)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(clean_loss)
        share = tf.where(loss <= clean_loss, 0.0, share)
        shares.append(tf.where(finite, share, _MAX_EXCESS))
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
      tape: As for `base.with_replaced_gradient`.
      x: Images [batch, ...].
      ascend: What the attack raises, [batch].
      losses: Of the spared tasks, [batch] each.
      clean: The same of the clean images.
      move: How the attack moves along a gradient.
    """

    def make_gradient(slope_of):
        slope = slope_of(ascend)
        spared_slopes = [slope_of(loss) for loss in losses.values()]
        room = [clean[task] - loss for task, loss in losses.items()]
        return bent(slope, spared_slopes, room, move)

    return base.with_replaced_gradient(tape, x, ascend, make_gradient)


def bent(
    slope: tf.Tensor,
    spared_slopes: Sequence[tf.Tensor],
    room: Sequence[tf.Tensor],
    move: Move | None = None,
    margin: float = _MARGIN,
) -> tf.Tensor:
    """Returns the gradient of the attacked loss, bent so that spared losses stay low.

    A move usually ends higher than its gradient predicts. So moves aim below what is
    allowed by `margin`, a share of what they could lower a spared loss by. Where the
    loss is above that aim, they go down by more than the excess.

    Args:
      slope: The gradient, [batch, ...], finite.
      spared_slopes: Those of the spared losses.
      room: By how much each may still rise, [batch]; negative: must fall.
      move: How the attack moves along a gradient; `move.movable`, if there is one,
        returns a gradient with 0 where the attack cannot move.
      margin: A share, see above.
    """
    move = _step if move is None else move
    movable = getattr(move, "movable", lambda change: change)
    slope, spared_slopes = movable(slope), [movable(s) for s in spared_slopes]
    unit = threat.L2(0.0).steepest
    length = _dot(unit(slope), slope)
    length = tf.where(length > 0, length, 1)  # Without a slope, points still go back.
    bends = []
    for spared_slope, limit in zip(spared_slopes, room, strict=True):
        direction = unit(spared_slope)
        rescaled = threat.per_image(length, slope) * direction  # To the slope's length.
        steepness = _dot(direction, spared_slope)
        # In the unit of moves; where nothing moves the loss, any move will do.
        limit = tf.math.divide_no_nan(tf.cast(limit, slope.dtype), steepness)
        limit += margin * tf.minimum(_dot(direction, move(-rescaled)), 0)
        limit = tf.where(limit < 0, _RETURN * limit, limit)
        limit = tf.where(steepness > 0, limit, slope.dtype.max)
        bends.append((direction, rescaled, limit))
    for _ in range(_ROUNDS if len(bends) > 1 else 1):
        for bend in bends:
            slope = _bend(slope, *bend, move)
    return slope


def _bend(slope, direction, rescaled, limit, move: Move) -> tf.Tensor:
    """Returns (1 - u) slope - u rescaled, u the smallest that keeps to `limit`."""

    def mixture(share):
        share = threat.per_image(share, slope)
        return (1 - share) * slope - share * rescaled

    def fits(share):
        return _dot(direction, move(mixture(share))) <= limit

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        enough = fits(middle)
        return tf.where(enough, low, middle), tf.where(enough, middle, high)

    zeros = tf.zeros_like(limit)
    _, share = base.loop(0, _HALVINGS, halve, (zeros, zeros + 1))
    return mixture(tf.where(fits(zeros), zeros, share))


def _step(slope: tf.Tensor) -> tf.Tensor:
    """A small step along the gradient."""
    count = tf.cast(tf.reduce_prod(tf.shape(slope)[1:]), slope.dtype)
    return _STEP * tf.sqrt(count) * threat.L2(0.0).steepest(slope)


def _dot(direction: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the scalar product of each image, [batch]."""
    return tf.reduce_sum(direction * x, threat.image_axes(x))
