# SPDX-License-Identifier: Apache-2.0
"""Attacks on some channels of the images, such as colours but not distances.

The attack sees images with only these channels, and its objective adds the others
unchanged. So any attack, in any norm, leaves the others alone, and its ball is that of
the channels that it may change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import base
from mtr_tf.errors import InputError
from mtr_tf.errors import is_whole


def on_channels(
    attack: Callable[..., tf.Tensor], channels: Sequence[int]
) -> Callable[..., tf.Tensor]:
    """Returns an attack that changes only these channels.

        attack = on_channels(PGD(8 / 255, 2 / 255, 20), (0, 1, 2))
        x_adv = attack(objective, x)

    Args:
      attack: `(objective, x, ...) -> x_adv`, such as an `attacks.PGD`; other arguments
        are passed on.
      channels: The numbers of the channels, from 0; empty: returns the attack itself.

    Raises:
      InputError: The channels are not different ones; or, when called, the images lack
        one, or as the attack does.
    """
    if not np.iterable(channels):
        raise InputError(
            f"Channels must be several numbers, such as (0, 1, 2); got {channels!r}."
        )
    channels = tuple(channels)  # Of NumPy, too.
    if not channels:
        return attack
    check(channels)

    def channel_attack(objective, x, *arguments, **options):
        x = tf.convert_to_tensor(x)
        check(channels, x.shape[-1])
        make_whole = _Whole(x, channels)
        channel_objective = OnChannels(objective, make_whole).confined(
            lambda slope: slope
        )
        return make_whole(
            attack(channel_objective, chosen(x, channels), *arguments, **options)
        )

    return channel_attack


def chosen(x: tf.Tensor, channels: Sequence[int]) -> tf.Tensor:
    """Returns these channels (the last axis) of images or gradients; empty: all."""
    if not channels:
        return x
    return tf.stack([x[..., channel] for channel in channels], axis=-1)


def check(channels: Sequence[int], count: int | None = None) -> None:
    """Raises `InputError` unless they are different numbers of `count` channels."""
    valid = all(is_whole(c) and 0 <= c < (count or c + 1) for c in channels)
    if not valid or len({*channels}) < len(channels):
        last = "" if count is None else f" to {count - 1}"
        raise InputError(
            "The attacked channels (--attack_channels) must be different numbers from "
            f"0{last}; got {', '.join(map(str, channels))}."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Whole:
    """Puts channels back between the others of the images x."""

    x: tf.Tensor
    channels: tuple[int, ...]

    def __call__(self, part: tf.Tensor) -> tf.Tensor:
        return self._merge(part, tf.cast(self.x, part.dtype))

    def change(self, part: tf.Tensor) -> tf.Tensor:
        """Returns a change of these channels as one of whole images."""
        return self._merge(part, tf.zeros_like(self.x, part.dtype))

    def _merge(self, part: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        parts = dict(zip(self.channels, tf.unstack(part, axis=-1), strict=True))
        planes = tf.unstack(others, axis=-1)
        return tf.stack(
            [parts.get(i, plane) for i, plane in enumerate(planes)], axis=-1
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Move:
    """The move of an attack on some channels, along gradients of whole images."""

    move: Callable[[tf.Tensor], tf.Tensor]
    whole: _Whole

    def __call__(self, slope: tf.Tensor) -> tf.Tensor:
        return self.whole.change(self.move(chosen(slope, self.whole.channels)))

    def movable(self, slope: tf.Tensor) -> tf.Tensor:
        """Returns the gradient with zeros in the channels that stay."""
        return self.whole.change(chosen(slope, self.whole.channels))


@dataclasses.dataclass(frozen=True, eq=False)
class OnChannels:
    """An objective of whole images as an objective of some of their channels."""

    objective: Any
    whole: _Whole

    def __call__(self, x: tf.Tensor, progress: tf.Tensor | float = 0.0) -> Any:
        """Returns what the objective returns for the whole images."""
        base.check_arity(self.objective)
        return self.objective(self.whole(x), progress)

    def begin(self, start: tf.Tensor, clean: tf.Tensor) -> OnChannels:
        """Returns the objective for one run; see `base.begin`."""
        return self._wrap(
            base.begin(self.objective, self.whole(start), self.whole(clean))
        )

    def moving(self, move: Callable[[tf.Tensor], tf.Tensor]) -> OnChannels:
        """Returns the objective, given how the attack moves; see `base.gradient`."""
        if not hasattr(self.objective, "moving"):
            return self
        return self._wrap(self.objective.moving(_Move(move, self.whole)))

    def confined(self, movable: Callable[[tf.Tensor], tf.Tensor]) -> OnChannels:
        """Returns the objective with gradients confined to these channels.

        `movable` returns such a gradient with 0 where the attack cannot move.
        """
        if not hasattr(self.objective, "confined"):
            return self
        return self._wrap(self.objective.confined(_Move(movable, self.whole)))

    def _wrap(self, objective: Any) -> OnChannels:
        return dataclasses.replace(self, objective=objective)

    def __getattr__(self, name: str) -> Any:
        """Other attributes of the objective; not `reusable`, because it holds images.

        Images that are passed on are made whole. Where a method returns another
        objective, it returns one of these channels, too.
        """
        if name == "reusable" or name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.objective, name)
        if name == "checked":
            return lambda x, *arguments: self._wrap(value(self.whole(x), *arguments))
        if name == "look_at_losses":
            return lambda x: value(self.whole(x))
        if not callable(value):
            return value

        def method(*arguments: Any, **options: Any) -> Any:
            result = value(*arguments, **options)
            return (
                self._wrap(result)
                if isinstance(result, type(self.objective))
                else result
            )

        return method
