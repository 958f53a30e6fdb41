# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks per image, and SEA (Croce, Singh and Hein, 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from mtr_tf.attacks import apgd
from mtr_tf.attacks import base
from mtr_tf.attacks import threat
from mtr_tf.attacks.kinds import SEA_LOSSES
from mtr_tf.attacks.kinds import SEA_RADII
from mtr_tf.attacks.pgd import Best
from mtr_tf.errors import InputError
from mtr_tf.errors import present

# An attack, or an attack and the names of the losses that it raises.
Member = base.Attack | tuple[base.Attack, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Worst(base.Attack):
    """For each image, the result that scores highest among several attacks.

    Members choose their own points by the same score: that of the objective, or of
    `objective.in_ensemble()` if it has this method. Objectives made by
    `attacks.objective` are therefore judged by harm unless their judge is "loss". Of an
    objective with the method `with_ties`, results are compared by what it returns:
    results of equal harm are equal, as in the command's tables.

    Attributes:
      attacks: The members: each is an attack, or a pair (attack, names of losses),
        which raises `objective.with_losses(names)`. Each has its own random numbers,
        made from the seed and its position here (`member_keys`). Of equal results, the
        earlier member's is taken; a NaN score never wins.

    Raises:
      InputError: There are no members, or one is not an attack; or, when called, the
        objective lacks the method that losses need; or a member raises it.
    """

    attacks: tuple[Member, ...]

    def __post_init__(self):
        try:
            members = tuple(self.attacks)
        except TypeError:
            members = ()
        if not members:
            raise InputError(
                "attacks must be a tuple of at least one attack, such as (PGD(...), "
                f"APGD(...)); got {self.attacks!r}."
            )
        pairs = [_pair(member) for member in members]
        members = tuple(pair[0] if pair[1] is None else pair for pair in pairs)
        object.__setattr__(self, "attacks", members)
        for attack, _ in pairs:
            is_class = isinstance(attack, type)
            if is_class or not callable(getattr(attack, "search", None)):
                raise InputError(
                    "Each entry of attacks must be an attack, or a pair (attack, "
                    f"names of losses); got {attack!r}."
                )

    @property
    def raises_own_losses(self) -> bool:
        """Whether a member does so because no losses are named for it."""
        return any(
            losses is None and getattr(attack, "raises_own_losses", True)
            for attack, losses in self._pairs()
        )

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""
        return sum(attack.passes + 1 for attack, _ in self._pairs())

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        dtype = threat.compute_dtype(x)
        if hasattr(objective, "in_ensemble"):
            objective = objective.in_ensemble()
        centre = tf.cast(x, dtype)
        ties = getattr(objective, "with_ties", lambda: objective)()
        judge = base.begin(ties, centre, centre)
        best = None
        for number, (attack, losses) in enumerate(self._pairs()):
            member_objective = objective
            if losses is not None:
                member_objective = _with_losses(objective, losses)
            points = attack.search(member_objective, x, member_keys(keys, number))
            points = tf.cast(points, dtype)  # Exact: x's numbers, in the scores' dtype.
            best = Best.none(points) if best is None else best
            scores = base.score(judge, points, tf.constant(1.0))
            best = best.offer(points, scores)
        return tf.cast(present(best, "a member").points, x.dtype)

    def _pairs(self) -> list[tuple[base.Attack, tuple[str, ...] | None]]:
        """The members as pairs, with None for the objective's own losses."""
        return [_pair(member) for member in self.attacks]


@dataclasses.dataclass(frozen=True)
class SEA(base.Attack):
    """Segmentation ensemble attack: the worst of four APGD runs on four losses.

    Each run has `steps` steps, in balls of 2, 1.5 and 1 epsilon for 30, 30 and 40 % of
    them. The losses are the paper's class-balanced masked cross-entropy, masked
    cross-entropy and Jensen-Shannon divergence, and CosPGD's, which the paper does not
    have. Each image keeps the result with the highest share of wrong pixels (for
    several tasks: the most harm, see `Worst`), or the largest loss where a task has
    metrics of its own that do not measure harm. Each run chooses its best point in the
    same way, as the authors' code does.

    Attributes:
      epsilon: As for PGD.
      steps: Steps of each run, 300 in the paper.
      norm: "linf" (the paper's) or "l2".
      restarts, random_start: For each run, as for APGD.

    Raises:
      InputError: A setting is out of range; or, when called, an objective that was not
        made by `attacks.objective`.
    """

    epsilon: float | tf.Tensor
    steps: int = 300
    norm: str = "linf"
    restarts: int = 1
    random_start: bool = True

    def __post_init__(self):
        self._worst()

    @property
    def raises_own_losses(self) -> bool:
        """False: each run names its loss."""
        return False

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""
        return self._worst().passes

    def search(
        self, objective: base.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `base.Attack`."""
        return self._worst().search(objective, x, keys)

    def _worst(self) -> Worst:
        settings = (self.steps, self.norm, self.restarts, self.random_start)
        run = apgd.APGD(self.epsilon, *settings, radii=SEA_RADII)
        return Worst(tuple((run, (name,)) for name in SEA_LOSSES))


def _pair(member: Any) -> tuple[base.Attack, tuple[str, ...] | None]:
    """A member with its losses, None for the objective's own."""
    is_pair = isinstance(member, tuple) and len(member) == 2
    attack, names = member if is_pair else (member, None)
    if isinstance(names, str):  # As for `with_losses`.
        names = [name.strip() for name in names.split(",")]
    if names is not None and not isinstance(names, Iterable):
        raise InputError(
            "The second of a pair (attack, names of losses) must be names, such as "
            f"'ce,margin'; got {names!r}."
        )
    return attack, None if names is None else tuple(names)


def _with_losses(objective: base.Objective, names: tuple[str, ...]) -> Any:
    if not hasattr(objective, "with_losses"):
        raise InputError(
            "This attack needs an objective with the method with_losses; make it with "
            f"attacks.objective, got {objective!r}."
        )
    return objective.with_losses(names)


def member_at_lengths(
    attack: base.Attack,
    number: int,
    objective: base.Objective,
    x: tf.Tensor,
    keys: tf.Tensor,
    epsilon: tf.Tensor,
    step_size: tf.Tensor,
) -> tf.Tensor:
    """Returns the images of an ensemble's member alone, from the ensemble's keys.

    The lengths replace those of the attack; see `base.Attack.with_lengths`.
    """
    keys = member_keys(keys, number)
    return attack.at_lengths(objective, x, keys, epsilon, step_size)


def member_keys(keys: tf.Tensor, number: int) -> tf.Tensor:
    """Returns a member's keys, int64 [batch, 2], made from those of its ensemble."""
    return tf.map_fn(lambda key: threat.fold_in(key, number), keys)
