# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks per image, and SEA (Croce, Singh and Hein, 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from mtr_tf.attacks import apgd
from mtr_tf.attacks import calling
from mtr_tf.attacks import threat
from mtr_tf.attacks.pgd import Best
from mtr_tf.errors import InputError

SEA_RADII = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
SEA_LOSSES = ("masked_ce_balanced", "masked_ce", "js")

# An attack, or an attack and the names of the losses that it raises.
Member = calling.Attack | tuple[calling.Attack, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Worst(calling.Attack):
    """Of several attacks' results, for each image the one that scores highest.

    Attributes:
      attacks: The members, each an attack or a pair (attack, names of losses): it then
        raises `objective.with_losses(names)`. Each has random numbers of its own, made
        of the seed and its place here. Of equal results the earlier member's is taken;
        a score that is NaN never wins.
      judge: What results are compared by: None is the objective's score, a name that of
        `objective.with_judge(name)`.

    Raises:
      InputError: No members, or something that is no attack; or, when called, an
        objective without the methods that losses or judge ask for; or as a member does.
    """

    attacks: tuple[Member, ...]
    judge: str | None = None

    def __post_init__(self):
        try:
            members = tuple(self.attacks)
        except TypeError:
            members = ()
        if not members:
            raise InputError(
                "attacks is a tuple of attacks, one at least, such as "
                f"(PGD(...), APGD(...)); got {self.attacks!r}."
            )
        members = tuple(
            (member[0], tuple(member[1])) if _is_pair(member) else member
            for member in members
        )
        object.__setattr__(self, "attacks", members)
        for attack, _ in self._pairs():
            if not callable(getattr(attack, "search", None)):
                raise InputError(
                    "Each of attacks is an attack, or a pair (attack, names of "
                    f"losses); got {attack!r}."
                )

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""
        return sum(attack.passes + 1 for attack, _ in self._pairs())

    def search(
        self, objective: calling.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `calling.Attack`."""
        dtype = threat.compute_dtype(x)
        judge = objective
        if self.judge is not None:
            judge = _method(objective, "with_judge")(self.judge)
        judge = calling.begin(judge, tf.cast(x, dtype))
        best = None
        for number, (attack, losses) in enumerate(self._pairs()):
            raised = objective
            if losses is not None:
                raised = _method(objective, "with_losses")(losses)
            points = attack.search(raised, x, _member_keys(keys, number))
            points = tf.cast(points, dtype)  # Exact: x's numbers in what scores take.
            best = Best.none(points) if best is None else best
            scores = calling.score(judge, points, tf.constant(1.0))
            best = best.offer(points, scores)
        return tf.cast(best.points, x.dtype)

    def _pairs(self) -> list[tuple[calling.Attack, tuple[str, ...] | None]]:
        """The members as pairs, with None for the objective's own losses."""
        return [
            member if _is_pair(member) else (member, None) for member in self.attacks
        ]


@dataclasses.dataclass(frozen=True)
class SEA(calling.Attack):
    """Segmentation ensemble attack: the worst of three APGD runs on three losses.

    Each run has `steps` steps, in balls of 2, 1.5 and 1 epsilon for 30, 30 and 40 % of
    them. The losses are class-balanced masked cross-entropy, masked cross-entropy and
    the Jensen-Shannon divergence. Of the three results each image keeps the one with
    the highest share of wrong pixels. Each run's own best point is chosen by the
    objective's score; the released code chooses it by wrong pixels.

    Attributes:
      epsilon: As for PGD.
      steps: Steps of each run, 300 in the paper.
      norm: "linf" (the paper's) or "l2".

    Raises:
      InputError: A setting is out of range; or, when called, an objective that was not
        made by `attacks.objective`.
    """

    epsilon: float | tf.Tensor
    steps: int = 300
    norm: str = "linf"

    def __post_init__(self):
        self._worst()

    @property
    def passes(self) -> int:
        """Evaluations of the objective per image, with or without a gradient."""
        return self._worst().passes

    def search(
        self, objective: calling.Objective, x: tf.Tensor, keys: tf.Tensor
    ) -> tf.Tensor:
        """The whole attack in graph operations; arguments as in `calling.Attack`."""
        return self._worst().search(objective, x, keys)

    def _worst(self) -> Worst:
        run = apgd.APGD(self.epsilon, self.steps, self.norm, radii=SEA_RADII)
        return Worst(tuple((run, (name,)) for name in SEA_LOSSES), judge="error")


def _is_pair(member: Any) -> bool:
    return isinstance(member, tuple) and len(member) == 2


def _method(objective: calling.Objective, name: str) -> Any:
    method = getattr(objective, name, None)
    if method is None:
        raise InputError(
            f"This attack needs an objective with the method {name}; make it with "
            f"attacks.objective, got {objective!r}."
        )
    return method


def _member_keys(keys: tf.Tensor, number: int) -> tf.Tensor:
    """Returns other keys, int64 [batch, 2], for each image and member."""
    return tf.map_fn(lambda key: threat.fold_in(key, number), keys)
