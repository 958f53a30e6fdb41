# SPDX-License-Identifier: Apache-2.0
"""Can the attack be trusted? Looks for signs that a model only seems robust.

A model may hide its gradients, and an attack may be too weak or have wrong settings. On
a few images, each check compares attacks whose order is known, or results that must
agree, and says in one sentence what is wrong (after Carlini et al. 2019, "On Evaluating
Adversarial Robustness", and the flags of Croce and Hein's AutoAttack).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import attacks
from mtr_tf import files
from mtr_tf.attacks import base
from mtr_tf.attacks import threat
from mtr_tf.attacks.attack_losses import ATTACK_LOSSES
from mtr_tf.attacks.kinds import Kind
from mtr_tf.cli import progress
from mtr_tf.errors import present
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation import worst_case
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.evaluator import Evaluation
from mtr_tf.evaluation.plan import AttackSettings
from mtr_tf.evaluation.plan import Cell
from mtr_tf.runs import store

_QUERIES = 200  # Of the black-box attack.
_HUGE = 64 / 255  # See `_huge`; of linf.
_FLOOR = 0.4  # The share of pixels that may still be right there.
_FAR_STEPS = 50  # There, at least.
_FEW = 4  # Images that are attacked one by one.
_STEPS = 20  # Where the attack itself takes no steps.
_COUNTED = "of_images"  # How many have something to attack: of these are the shares.
_MANY = 0.1  # The share of zeros in gradients from which on they are reported.
_SMALLEST = {"float16": 6e-8, "bfloat16": 9e-41}  # What is smaller is zero there.


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: `reason` says what is wrong, and is empty where nothing is.

    `measured` has the numbers behind it: mean scores of points, shares, accuracies.
    """

    name: str
    reason: str
    measured: dict[str, float]


def check_once(
    subject: sweep.Subject,
    cells: Sequence[Cell],
    results: Sequence[Result],
    facts: Mapping[str, Any],
    path: pathlib.Path,
    *,
    examples: int,
    transfer: bool = False,
) -> list[str]:
    """Checks the attack of a sweep and logs what is wrong; returns the warnings.

    Args:
      subject: What was attacked. Of several workers the chief alone reads and writes,
        and returns warnings.
      cells: The attacks of the sweep.
      results: Theirs, on the chief; the others have none.
      facts: What results depend on beside the attack, as JSON.
      path: The file that keeps the checks; those of the same attack are not run again.
      examples: How many images are looked at.
      transfer: Whether the results come from images made on another model.
    """
    cell, workers = probe(cells), subject.workers
    if cell is None:
        return []
    count = min(examples, subject.num_examples)
    about = {**facts, "num_examples": count, "attack": cell.to_dict()}
    pairs = itertools.zip_longest(cells, results) if transfer else ()
    alike = [(each, result) for each, result in pairs if _alike(cell, each)]
    if transfer:
        about["transferred"] = [each.to_dict() for each, _ in alike]
    mended = _mended(cell, subject)
    known: dict[str, Any] = _kept(path, mended) if workers.chief else {}
    if not workers.of_chief(known.get("about") == store.as_json(about)):
        replicas = workers.replicas
        few = dataclasses.replace(
            subject,
            num_examples=count,
            batch_size=min(-(-count // replicas) * replicas, subject.batch_size),
            surrogate=None if transfer else subject.surrogate,
        )
        checks = run(few, cell, alike)
        known = {
            "about": about,
            "mended": mended,
            "checks": [dataclasses.asdict(check) for check in checks],
            "warnings": warnings(checks),
        }
        if workers.chief:
            store.write_file(path, known)
    if not workers.chief:
        return []
    for warning in known["warnings"]:
        logging.warning("%s", warning)
    if not known["warnings"]:
        logging.info("checks on %d images: no reason to doubt the attack", count)
    return known["warnings"]


def _kept(path: pathlib.Path, mended: Sequence[str]) -> dict[str, Any]:
    """The checks in a file; none where there is none, or (warning) a damaged one.

    Nor where one of those that were mended warns, and was made before.
    """
    kept = store.read_kept(path)
    try:  # What the warnings are is in the checks, which need not have a checksum.
        checks = [Check(**check) for check in kept["checks"]] if kept else []
        if kept and kept["warnings"] != warnings(checks):
            raise ValueError("its warnings do not match its checks")
        if any(map(_may_be_false, checks)):
            return {}
        older = {m.split()[0] for m in {*mended}.difference(kept.get("mended", ()))}
        if any(check.reason and check.name in older for check in checks):
            return {}
    except files.DAMAGED as error:
        files.say_damaged(path, error)
        return {}
    return kept


def _mended(cell: Cell, subject: sweep.Subject) -> list[str]:
    """Names of the checks that may have warned of such a cell for nothing before.

    A second mend of one check has a word behind its name.
    """
    far = cell.numbers[0] >= _huge(cell, subject)
    found = {
        "zero_gradients": cell.objective.losses != _full_losses(cell),
        "large_eps": far,
        "large_eps part": not _all_pixels_of_classes(cell),
        "transfer": subject.surrogate is not None,
    }
    return [name for name, is_one in found.items() if is_one]


def _huge(cell: Cell, subject: sweep.Subject) -> float:
    """A radius at which no picture can be told any more, of images in [0, 1]."""
    if cell.threat.norm == "l2":
        return _HUGE * math.sqrt(math.prod(subject.info.image_shape))
    return _HUGE


def _full_losses(cell: Cell) -> tuple[str, ...]:
    """The cell's losses but those that leave out what is wrong already."""
    losses = cell.objective.losses
    return tuple(each for each in losses if not ATTACK_LOSSES[each].leaves_out)


def _may_be_false(check: Check) -> bool:
    """Whether it warns of images that may have had nothing to attack.

    Versions that counted these, or looked at the clean images, have no `_COUNTED`.
    """
    zero = check.name == "zero_gradients"
    return zero and bool(check.reason) and _COUNTED not in check.measured


def probe(cells: Sequence[Cell]) -> Cell | None:
    """The white-box attack that is looked at: PGD with the settings of the sweep.

    They are those of the first cell of the largest radius that takes steps along
    gradients, or that is an ensemble; of the first cell where there is none. It spares
    no task. None where there is no radius but 0.
    """
    largest = max(cell.eps for cell in cells)
    if not largest:
        return None
    cells = [cell for cell in cells if cell.eps == largest]
    cell = next((cell for cell in cells if _takes_steps(cell.attack.kind)), cells[0])
    uses = cell.attack.kind.uses
    step_size = cell.attack.step_size if "step_size" in uses else 0.0
    pgd = AttackSettings(
        name="pgd",
        step_size=step_size or cell.eps / 4,
        steps=cell.attack.steps if "steps" in uses else _STEPS,
    )
    goal = dataclasses.replace(cell.objective, spare=())
    return dataclasses.replace(cell, attack=pgd, objective=goal)


def _takes_steps(kind: Kind) -> bool:
    """Whether PGD with its settings is much like it."""
    return kind.is_ensemble or (kind.gradient and "steps" in kind.uses)


def run(
    subject: sweep.Subject,
    cell: Cell,
    transferred: Sequence[tuple[Cell, Result | None]] = (),
) -> list[Check]:
    """Runs all checks.

    Args:
      subject: What is attacked; all its examples are used.
      cell: As `probe` returns it.
      transferred: Attacks made on another model, with their results on at least these
        images on the chief, and None on other workers.
    """
    epsilon, step = cell.numbers
    steps = cell.attack.steps
    huge = _huge(cell, subject)
    evaluate = _Evaluations(subject, cell)
    pgd = functools.partial(evaluate.pgd, epsilon, step)
    calls = {
        "clean": functools.partial(evaluate.pgd, 0, 0, 0),
        "base": functools.partial(pgd, steps),
        "more": functools.partial(pgd, 2 * steps),
        "other": functools.partial(pgd, steps, seed=subject.seed + 1),
        "far": functools.partial(evaluate.far, huge, max(_FAR_STEPS, steps)),
        "single": functools.partial(pgd, steps, alone=True),
        "fgsm": functools.partial(evaluate.other, "fgsm", epsilon),
        "square": functools.partial(evaluate.other, "square", epsilon, steps=_QUERIES),
        "slopes": functools.partial(evaluate.slopes, epsilon),
    }
    evaluations = {}
    chief = subject.workers.chief
    with progress.bar(
        len(calls), "checking the attack", "evaluations", shown=chief
    ) as advance:
        for name, call in calls.items():
            evaluations[name] = call()
            advance(1)
    slopes = _slopes_of_attacked(cell, evaluations.pop("slopes"))
    far = evaluations["far"]
    harms = {name: _harm(cell, each) for name, each in evaluations.items()}
    whole = harms["base"]
    single = harms.pop("single")
    single, few = worst_case.finite(single, whole[: len(single)])
    clean, base, more, other, distant, fgsm, square = worst_case.finite(*harms.values())
    if not (base.size and few.size):
        reason = "no image has a finite loss in all checks, so nothing can be concluded"
        return [Check("finite", reason, {"images": len(base)})]
    scale = max(float(np.mean(base - clean)), 1e-6)
    attacked = subject.model if subject.surrogate is None else subject.surrogate
    order = functools.partial(_order, rise=base - clean)
    checks = [
        Check("zero_gradients", *zero_gradients(slopes, cell, attacked)),
        order(
            "more_steps",
            not _more(base, more, 0.02 * scale),
            f"PGD does less harm after {2 * steps} steps than after {steps}; "
            "the step size is too large, or the gradients mislead",
            rise_twice=more - clean,
        ),
        order(
            "converged",
            not _more(more, base, 0.25 * scale),
            f"{2 * steps} steps instead of {steps} do over a quarter "
            "more harm; give more --steps",
            rise_twice=more - clean,
        ),
        order(
            "black_box",
            not _more(square, base, 0.02 * scale),
            f"Square, which sees no gradient, does more harm in {_QUERIES} queries "
            "than PGD; the gradients are masked",
            rise_square=square - clean,
        ),
        order(
            "fgsm",
            not _more(fgsm, base, 0.02 * scale),
            "one step of FGSM does more harm than PGD; there are too few steps, their "
            "size is wrong, or the gradients mislead",
            rise_fgsm=fgsm - clean,
        ),
        _floor(cell, base - clean, distant - clean, far, farther=huge > epsilon),
        order(
            "batch_size",
            np.mean(np.abs(single - few)) <= 0.05 * scale,
            "images attacked one by one come out differently than in a batch; the "
            "model mixes the images of a batch",
            difference=np.abs(single - few),
        ),
        order(
            "random_start",
            abs(np.mean(other) - np.mean(base)) <= 0.1 * scale,
            "another seed for the random start changes the harm by over a tenth of "
            "its rise; give more --restarts and --steps",
            rise_other_seed=other - clean,
        ),
        *(_transfer(evaluate, attack, made, whole) for attack, made in transferred),
    ]
    # Noise is drawn by batch: of a random model that check says nothing.
    random = subject.random
    return [check for check in checks if check.name != "batch_size" or not random]


def warnings(checks: Sequence[Check]) -> list[str]:
    """The reasons of the checks that failed, as sentences."""
    return [f"{check.reason} ({_numbers(check)})." for check in checks if check.reason]


def _numbers(check: Check) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in check.measured.items())


class _Evaluations:
    """Attacks the examples again and again; PGD of all settings is one graph."""

    def __init__(self, subject: sweep.Subject, cell: Cell):
        self.workers, self.cell, self._subject = subject.workers, cell, subject
        self._pgd = sweep.make_evaluator(subject, cell, self._stepping)

    def _stepping(self, objective, x, seed, epsilon, step_size, steps):
        steps = tf.cast(steps, tf.int32)
        attack = attacks.PGD(
            epsilon, step_size, steps, norm=self.cell.threat.norm, keep="last"
        )
        return attack(objective, x, seed)

    def pgd(
        self,
        epsilon: float,
        step_size: float,
        steps: int,
        *,
        seed: int | None = None,
        alone: bool = False,
    ) -> Evaluation:
        """The last points of PGD; `alone`: of a few images, in batches of one."""
        numbers = (epsilon, step_size, steps)
        return self._run(self._pgd, numbers=numbers, seed=seed, alone=alone)

    def far(self, epsilon: float, steps: int) -> Evaluation:
        """PGD far from the image; on classes with a loss that leaves none right.

        The sum of cross-entropies goes on with pixels that are wrong already, and may
        leave the others as they are at any radius.
        """
        if not _all_pixels_of_classes(self.cell):
            return self.pgd(epsilon, epsilon / 4, steps)
        goal = dataclasses.replace(
            self.cell.objective, losses=("masked_ce",), balance="sum"
        )
        cell = dataclasses.replace(self.cell, objective=goal)
        evaluator = sweep.make_evaluator(self._subject, cell, self._stepping)
        return self._run(evaluator, numbers=(epsilon, epsilon / 4, steps))

    def other(self, name: str, epsilon: float, **settings: Any) -> Evaluation:
        """Another attack at this radius."""

        def attack(objective, x, seed, epsilon):
            named = attacks.make(name, epsilon, norm=self.cell.threat.norm, **settings)
            return named(objective, x, seed)

        evaluator = sweep.make_evaluator(self._subject, self.cell, attack)
        return self._run(evaluator, numbers=(epsilon,))

    def harm_of(self, attack: Cell) -> np.ndarray:
        """The harm that an attack of the sweep does to each image, `[N]`.

        Of an ensemble it is that of its worst member, as its results are.
        """
        harms = []
        for each in attack.members or (attack,):
            evaluator = sweep.make_evaluator(self._subject, each)
            found = self._run(evaluator, numbers=each.numbers)
            harms.append(_harm(self.cell, found))
        return np.fmax.reduce(harms)

    def slopes(self, epsilon: float) -> Evaluation:
        """The gradients where PGD starts, in place of adversarial images.

        At the clean image itself the loss may have its minimum: that of numbers does
        whose targets are the model's own outputs. Tasks whose loss leaves out what is
        wrong already raise their own: an image that is wrong everywhere has no gradient
        of the other, and need not have one.
        """
        goal = dataclasses.replace(self.cell.objective, losses=_full_losses(self.cell))
        cell = dataclasses.replace(self.cell, objective=goal)

        def attack(objective, x, seed, epsilon):  # What it hands out is no image.
            ball = threat.ball(self.cell.threat.norm, epsilon)
            start = ball.projection(x)(threat.random_start(ball, x, seed, 0))
            begun = base.begin(objective, start, x)
            return base.gradient(begun, start, tf.constant(0.0))[0]

        evaluator = sweep.make_evaluator(self._subject, cell, attack)
        count = self._subject.num_examples
        return self._run(evaluator, numbers=(epsilon,), keep_examples=count)

    def _run(self, evaluator, *, alone: bool = False, **settings) -> Evaluation:
        subject = self._subject
        size = subject.workers.replicas
        count = min(_FEW, subject.num_examples) if alone else subject.num_examples
        return evaluator.run(
            subject.columns,
            batch_size=size if alone else subject.batch_size,
            num_examples=count,
            **settings,
        )


def _slopes_of_attacked(cell: Cell, evaluation: Evaluation) -> np.ndarray:
    """The gradients of the images that have a place that is attacked, `[N, H, W, C]`.

    Args:
      cell: The attack.
      evaluation: As `_Evaluations.slopes` returns it.
    """
    examples = present(evaluation.examples, "images")
    slopes = present(examples.adversarial, "gradients")
    rows = evaluation.aimed or evaluation.wanted or evaluation.attacked
    weights = dict(cell.objective.weights)
    tasks = [task for task in cell.tasks if weights.get(task, 1.0)]
    has = [worst_case.loss_rows(cell, task, rows)[:, 1] > 0 for task in tasks]
    return slopes[np.any(has, axis=0)]


def _harm(cell: Cell, evaluation: Evaluation) -> np.ndarray:
    """What the attack's points are judged by, of each image."""
    rows = (evaluation.attacked, evaluation.wanted, evaluation.aimed)
    return worst_case.score(cell, *rows, evaluation.before)


def zero_gradients(
    slopes: np.ndarray, cell: Cell, model: keras.Model
) -> tuple[str, dict[str, float]]:
    """Returns what is wrong, empty where nothing is, and the numbers behind it.

    Args:
      slopes: Gradients of the images that have something to attack, `[N, H, W, C]`.
      cell: The attack; one on a part of the output leaves pixels without a gradient.
      model: What the gradients are of; its precision is named as a likely cause.
    """
    if cell.threat.channels:  # What the others' gradients are does not matter.
        slopes = slopes[..., list(cell.threat.channels)]
    count, dead = len(slopes), slopes == 0
    if not count:
        return "", {_COUNTED: 0}
    images = float(np.mean(np.all(dead, axis=(1, 2, 3))))
    entries = float(np.mean(dead))  # Of all numbers: one colour may be dead alone.
    restricted = cell.objective.restricted
    reason = ""
    if images or (entries > _MANY and not restricted):
        reason = (
            "the gradient is exactly zero for some images, or for over a tenth of the "
            f"entries; gradient attacks see nothing there{_cause(model)}"
        )
    return reason, {"images": images, "entries": entries, _COUNTED: count}


def _cause(model: keras.Model) -> str:
    """What to say of the model's precision; empty where that cannot be the cause."""
    used = {layer.compute_dtype for layer in model._flatten_layers()}
    halves = [name for name in _SMALLEST if name in used]
    if not halves:
        return ""
    name = halves[0]
    return (
        f"; gradients are in {name}, where everything below {_SMALLEST[name]:g} is "
        "zero: before you conclude anything, use float32 (no --fast, and "
        "--precision=float32 for a run)"
    )


def _more(larger: np.ndarray, smaller: np.ndarray, tolerance: float = 0.0) -> bool:
    """Whether some scores are larger than others of the same images, beyond chance.

    Their mean difference must be over the tolerance and over twice its standard error,
    so that nothing is said where the images disagree, or where there is one alone.
    """
    if len(larger) < 2:
        return False
    change = larger - smaller
    error = float(np.std(change, ddof=1)) / math.sqrt(len(change))
    return float(np.mean(change)) > max(tolerance, 2 * error)


def _order(
    name: str, holds: bool | np.bool_, reason: str, **harms: np.ndarray
) -> Check:
    """A check that compares mean scores."""
    measured = {key: float(np.mean(v)) for key, v in harms.items() if v.size}
    return Check(name, "" if holds else reason, measured)


def _floor(
    cell: Cell, base: np.ndarray, far: np.ndarray, there: Evaluation, farther: bool
) -> Check:
    """At a radius of 64 levels accuracy under attack must be near 0.

    That is where `_all_pixels_of_classes` holds. All else must be harmed no less there
    than at the radius itself, if that is smaller (`farther`).
    """
    measured = {"rise": float(np.mean(base)), "rise_eps_64": float(np.mean(far))}
    high = ""
    if _all_pixels_of_classes(cell):
        task = cell.known[cell.tasks[0]]
        correct, count = there.attacked[task.name][task.harm.name].sum(axis=0)
        measured["accuracy"] = float(correct / max(count, 1))
        if measured["accuracy"] > _FLOOR:
            high = "at eps 64 over two fifths of the pixels are still classified right"
    elif farther and _more(base, far):
        high = "at eps 64 PGD does less harm than at the radius itself"
    reason = (
        f"{high}; more steps may be needed, or the gradients are masked" if high else ""
    )
    return Check("large_eps", reason, measured)


def _alike(cell: Cell, attack: Cell) -> bool:
    """Whether results of an attack may be compared with those of the cell."""
    shared = operator.attrgetter("tasks", "eps", "objective.balance", "objective.judge")
    bounded = attack.attack.kind.bounded  # Others are stronger.
    return bounded and shared(attack) == shared(cell)


def _all_pixels_of_classes(cell: Cell) -> bool:
    """Whether all of the input is changed to harm all pixels of one task with classes.

    Its harm must be the accuracy: `masked_ce` leaves a pixel once it is wrong, although
    its class may still be among the first k.
    """
    restricted = cell.objective.restricted or cell.objective.targeted
    stays = bool(cell.threat.channels) or cell.packed
    scored = cell.known[cell.tasks[0]].harm.is_accuracy
    return scored and len(cell.tasks) == 1 and not (restricted or stays)


def _transfer(
    evaluate: _Evaluations, attack: Cell, made: Result | None, base: np.ndarray
) -> Check:
    """Compares images made on another model with those of attacks on the model itself.

    Args:
      evaluate: On the model itself.
      attack: What made them. It may be stronger than PGD; so where they do more harm,
        it is run on the model itself, too.
      made: Its result; None on workers that only take part.
      base: The harm that PGD does to each image, `[N]`.
    """
    harm = base
    if made is not None:
        harm = worst_case.score_of(evaluate.cell, made)[: len(base)]
    transfer, white_box = worst_case.finite(harm, base)
    if evaluate.workers.of_chief(_more(transfer, white_box)):
        stronger = np.maximum(base, evaluate.harm_of(attack))
        transfer, white_box = worst_case.finite(harm, stronger)
    return _order(
        "transfer",
        not _more(transfer, white_box),
        f"{attack.label} made on another model does more harm than the same attack "
        "and PGD on the model itself; its gradients are masked",
        white_box=white_box,
        transfer=transfer,
    )
