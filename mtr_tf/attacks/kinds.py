# SPDX-License-Identifier: Apache-2.0
"""The table of attacks: all that the rest of the package knows about any of them.

A new attack is a file with its record, and an entry in KINDS. Then `--attack` takes its
name, plans fit its settings, progress and studies know what it costs, ensembles can
include it, and `python docs/attack_tables.py` writes its row in docs/attacks.md.
Nothing else branches on an attack's name. A user's own entry (`KINDS["mine"] =
Kind(...)`) works just like ours. TensorFlow is imported when the first attack is made.
"""

from __future__ import annotations

import dataclasses
import importlib
import numbers
from collections.abc import Iterable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any

from mtr_tf.attacks import checks
from mtr_tf.errors import InputError
from mtr_tf.errors import check_keys
from mtr_tf.errors import did_you_mean

if TYPE_CHECKING:
    import tensorflow as tf

    from mtr_tf.attacks.base import Attack

# The stages of SEA's runs, (radius in multiples of epsilon, share of the steps), and
# the loss of each run: the paper's three and CosPGD's, which is the strongest alone.
SEA_RADII = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
SEA_LOSSES = ("masked_ce_balanced", "masked_ce", "js", "cospgd")
NORMS = ("linf", "l2")
# The settings that `make` takes for any attack; each attack uses those that apply.
SETTINGS = ("step_size", "steps", "queries", "norm", "restarts", "random_start")
SETTINGS += ("radii", "mean", "std")
FORWARD = 0.4  # The cost of a pass without a gradient, relative to one with it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One attack of an ensemble: a kind, the losses it raises, its stages."""

    kind: str
    losses: tuple[str, ...] | None = None  # None: those of the ensemble.
    radii: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What a plan must know about an attack.

    Attributes:
      record: A subclass of `base.Attack`, or "package.module:Class", which is imported
        when the attack is made: a frozen record, made of `epsilon`, its first field,
        and of those of its other fields that are set.
      does: What it does, a line of Markdown for docs/attacks.md.
      source: Where it is from, likewise.
      uses: The settings of the command that it takes: "step_size", "steps", "queries",
        "restarts", "random_start" or "ensemble". Others do not affect its results; it
        then has the steps and restarts of the record.
      named: Fields of the record that `make` knows by another name: {field: setting}.
      fixed: Fields of the record that always have these values, unless `uses` names
        their setting.
      step: Its default step size as a share of epsilon; 0 for a record without
        `step_size`.
      starts: "random" or "image": where it starts by default ("image" only for a single
        run), unless `fixed` says it; "elsewhere": at a point of its own, whatever is
        asked; "members": each member starts as it does by itself.
      members: Of an ensemble, whose results are combined image by image; None: those
        that `ensemble` names.
      is_ensemble: Whether it is an ensemble.
      gradient: Whether it follows gradients; otherwise it only makes forward passes.
      guesses: Whether it uses the objective only to choose among random draws.
      chooses_losses: Whether it raises losses of its own choice, whatever is asked.
      needs_classes: Whether a task with classes must be attacked.
      bounded: Whether results stay in the ball and the box, which sweeps check. Attacks
        that do not are for comparison only, and say so in each record; ours need the
        model's normalisation.
      norms: The norms that it supports.
      for_comparison: Whether it repeats the mistakes of other code, to measure what
        they change. It is then never in an ensemble, nor among the attacks in Python.
    """

    record: str | type[Attack]
    does: str = ""
    source: str = ""
    uses: frozenset[str] = frozenset()
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: float = 0.0
    starts: str = "random"
    members: tuple[Member, ...] | None = None
    is_ensemble: bool = False
    gradient: bool = True
    guesses: bool = False
    chooses_losses: bool = False
    needs_classes: bool = False
    bounded: bool = True
    norms: tuple[str, ...] = NORMS
    for_comparison: bool = False

    def make(self, epsilon: float | tf.Tensor, **settings: Any) -> Attack:
        """Returns the attack, with those of the settings that it takes.

        Args:
          epsilon: Radius in [0, 1] pixel units.
          **settings: step_size, steps, queries, norm, restarts, random_start, radii,
            mean and std, as far as they apply, and any other field of the record. A
            field in `named` may be given by either name; the field's own wins. The
            default step size is the share `step` of epsilon. A fixed field stays as it
            is.

        Raises:
          InputError: As the record does; or a setting is neither one of these nor a
            field that is not fixed, or a field without a default is not given; or the
            record's first field is not epsilon, or it has a step size that `uses`
            leaves out, which would be overwritten.
        """
        record: Any = self.load()
        fields = [field for field in dataclasses.fields(record) if field.init]
        first, *names = [field.name for field in fields] or [""]
        if first != "epsilon":
            raise InputError(
                f"The first field of {record.__name__} must be epsilon, its radius, "
                f"got {first or 'none'}; rename it, or put epsilon before it."
            )
        setting_of = {name: self.named.get(name, name) for name in names}
        if "step_size" in setting_of.values() and "step_size" not in self.uses:
            raise InputError(
                f"{record.__name__} has a step_size, so its entry in KINDS must name "
                f"it in uses, got {', '.join(sorted(self.uses)) or 'nothing'}; add it."
            )
        fixed = {n for n in self.fixed if self.named.get(n, n) not in self.uses}
        free = [name for name in names if name not in fixed]
        choices = dict.fromkeys((*SETTINGS, *self.named.values(), *free))
        check_keys(
            settings, choices, f"{record.__name__} takes the settings", "but got"
        )
        if not hasattr(epsilon, "dtype"):  # As tensors have; those are not checked.
            checks.check_number("epsilon", epsilon)
        # At radius 0, where nothing moves, any step that is allowed.
        is_0 = isinstance(epsilon, numbers.Real) and epsilon == 0
        radius: Any = 1.0 if is_0 else epsilon
        step_names = [n for n in names if setting_of[n] == "step_size" and self.step]
        arguments = {name: self.step * radius for name in step_names}
        arguments |= self.fixed
        for name in free:
            for setting in (setting_of[name], name):
                if setting in settings:
                    arguments[name] = settings[setting]
        for field in fields[1:]:
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in arguments:
                raise InputError(
                    f"{record.__name__} needs {field.name}, which has no default; give "
                    f"it, {field.name}=..."
                )
        return record(epsilon, **arguments)

    @property
    def ours(self) -> bool:
        """Whether its record is this package's; a user's may change."""
        return self.place[0].startswith("mtr_tf.")

    @property
    def place(self) -> tuple[str, str]:
        """The names of the record's module and class."""
        if isinstance(self.record, str):
            module, _, name = self.record.partition(":")
            return module, name
        return self.record.__module__, self.record.__qualname__

    def load(self) -> type[Attack]:
        """The record's class, imported if need be."""
        if not isinstance(self.record, str):
            return self.record
        module, name = self.place
        return getattr(importlib.import_module(module), name)

    def start_at_random(self, random_start: bool | None, restarts: int) -> bool | None:
        """Whether it starts at random, given the setting; None: as each member does."""
        if "random_start" in self.uses and random_start is not None:
            return random_start
        if "random_start" in self.fixed:
            return self.fixed["random_start"]
        if self.starts == "members":
            return None
        return self.starts == "random" or restarts > 1

    def can_spare(self, restarts: int) -> bool:
        """Whether it follows an objective that spares tasks."""
        return not (self.for_comparison or self.draws_nothing(restarts))

    def draws_nothing(self, restarts: int) -> bool:
        """Whether the objective has no part in what it returns."""
        return self.guesses and restarts == 1


def _kind(record: str, *uses: str, **fields: Any) -> Kind:
    """One of ours: `record` is "module:Class" of mtr_tf.attacks."""
    return Kind(record=f"mtr_tf.attacks.{record}", uses=frozenset(uses), **fields)


def _released_kind(start: str, scale: str, does: str, source: str = "") -> Kind:
    """One of the attacks with the mistakes of the paper's released code."""
    return _kind(
        "released:ReleasedPGD",
        "step_size",
        "steps",
        does=does,
        source=source,
        fixed={"start": start, "scale": scale},
        step=0.25,
        starts="image" if start == "image" else "elsewhere",
        bounded=scale == "pixels",
        norms=("linf",),
        for_comparison=True,
    )


_STEPPING = ("step_size", "steps", "restarts", "random_start")
_RUNS = ("steps", "restarts", "random_start")

KINDS = {
    "pgd": _kind(
        "pgd:PGD",
        *_STEPPING,
        does="`x <- P(x + step d(g))` from a random point; keeps the worst point found",
        source="Madry et al. 2018",
        step=0.25,
    ),
    "fgsm": _kind(
        "pgd:FGSM",
        does="`P(x + eps d(g))`",
        source="Goodfellow et al. 2015",
        step=1,
        starts="image",
    ),
    "mim": _kind(
        "momentum:MIM",
        *_STEPPING,
        does="as `pgd`, but from the image, along `m <- m + g / ‖g‖_1`",
        source="Dong et al. 2018",
        step=0.25,
        starts="image",
    ),
    "mim_released": _kind(
        "momentum:MIM",
        *_STEPPING,
        does="PGD along `m <- m / 2 + g`",
        source="code of Mao et al.",
        fixed={"decay": 0.5, "normalize": False, "random_start": True},
        step=0.25,
    ),
    "apgd": _kind(
        "apgd:APGD",
        *_RUNS,
        does="`x <- P(x + 3/4 (z - x) + 1/4 (x - x_before))`, `z = P(x + step "
        "d(g))`; the step starts at 2 eps and is halved where it stops "
        "helping",
        source="Croce and Hein 2020",
    ),
    "square": _kind(
        # Always starts at random, but results and the keys of finished cells have the
        # setting as it was given, like those of noise and corner.
        "square:Square",
        "queries",
        "random_start",
        does="random windows of `±eps`, kept if the score rises; sees no gradient",
        source="Andriushchenko et al. 2020",
        named={"queries": "steps"},
        gradient=False,
    ),
    "noise": _kind(
        "baselines:Noise",
        "restarts",
        "random_start",
        does="a uniform random point of the ball: the least that any attack should do",
        named={"draws": "restarts"},
        gradient=False,
        guesses=True,
    ),
    "corner": _kind(
        "baselines:Corner",
        "restarts",
        "random_start",
        does=(
            "a random corner of the ball (l2: a point on its surface): the least "
            "that any attack should do"
        ),
        named={"draws": "restarts"},
        gradient=False,
        guesses=True,
    ),
    "sea": _kind(
        "ensemble:SEA",
        *_RUNS,
        does="four APGD runs in shrinking balls, on the losses "
        "`masked_ce_balanced`, `masked_ce`, `js` and (not in the paper) "
        "`cospgd`; the worst per image",
        source="Croce et al. 2024",
        members=tuple(
            Member(kind="apgd", losses=(loss,), radii=SEA_RADII) for loss in SEA_LOSSES
        ),
        is_ensemble=True,
        chooses_losses=True,
        needs_classes=True,
    ),
    "worst": _kind(
        "ensemble:Worst",
        *_STEPPING,
        "queries",
        "ensemble",
        does="for each image, the worst of the attacks in `--ensemble`",
        starts="members",
        is_ensemble=True,
    ),
    "pgd_released": _released_kind(
        "corner",
        "wrong",
        "what the paper's code does on Cityscapes: starts from the upper corner of its "
        "bounds, and treats standardised units as pixels, so it goes OUTSIDE the ball",
        "code of Mao et al., with two errors",
    ),
    "pgd_released_start": _released_kind(
        "corner", "pixels", "only the corner start, `min(1, x + eps)`; inside the ball"
    ),
    "pgd_released_scale": _released_kind(
        "image",
        "wrong",
        "only the wrong scale, starting from the image itself; OUTSIDE the ball",
    ),
}


def make(name: str, epsilon: float | tf.Tensor, **settings: Any) -> Attack:
    """Returns the attack of a name in KINDS.

        attack = attacks.make("pgd", 8 / 255, steps=20, restarts=5)

    Args:
      name: As in `--attack`; not "worst", whose members are attacks.
      epsilon: Radius in [0, 1] pixel units.
      **settings: See `Kind.make`.

    Raises:
      InputError: The name or a setting is unknown, one that the attack needs is not
        given, or one is out of range.
    """
    check_names("attack", [name], KINDS)
    if KINDS[name].is_ensemble and KINDS[name].members is None:
        raise InputError(
            f"{name} needs the attacks that it combines: attacks.Worst((PGD(...), "
            "...))."
        )
    return KINDS[name].make(epsilon, **settings)


def member_names() -> tuple[str, ...]:
    """The attacks that may be in the ensemble of "worst"."""
    return tuple(
        name
        for name, kind in KINDS.items()
        if not (kind.is_ensemble or kind.for_comparison)
    )


def check_names(what: str, names: Iterable[str], choices: Iterable[str]) -> None:
    """Raises `InputError`, with the nearest known name, for an unknown one."""
    choices = tuple(choices)
    for name in names:
        if name not in choices:
            raise InputError(
                f"Unknown {what} {name!r}.{did_you_mean(name, choices)} Known: "
                f"{', '.join(choices)}."
            )
