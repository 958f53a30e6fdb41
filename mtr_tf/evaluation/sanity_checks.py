# SPDX-License-Identifier: Apache-2.0
"""Can the attack be trusted? Looks for signs that a model only seems robust.

A model may hide its gradients, and an attack may be too weak or have wrong settings. On
a few images, each check compares attacks of known order, or results that must agree,
and states in one sentence what is wrong (after Carlini et al. 2019, "On Evaluating
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

_QUERIES = 200  # Those of the black-box attack.
_HUGE_LINF = 64 / 255  # See `_huge_eps`.
_MOST_ACCURACY = 0.4  # The largest share of pixels that may be right there.
_FAR_STEPS = 50  # Steps there, at least.
_SINGLE_IMAGES = 4  # Images that are attacked one by one.
_STEPS = 20  # For attacks that take no steps.
# Key of the number of images that have something to attack; shares refer to these.
_COUNT_KEY = "of_images"
_MOST_ZEROS = 0.1  # The share of zeros in gradients above which they are reported.
_SMALLEST = {"float16": 6e-8, "bfloat16": 9e-41}  # Smaller numbers are zero.


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
      subject: What was attacked. With several workers only the chief reads, writes and
        returns warnings.
      cells: The attacks of the sweep.
      results: Their results, on the chief; other workers have none.
      facts: What results depend on besides the attack, as JSON.
      path: The file of the checks; those of the same attack are not run again.
      examples: How many images are checked.
      transfer: Whether the results are from images made on another model.
    """
    cell, workers = probe(cells), subject.workers
    if cell is None:
        return []
    count = min(examples, subject.num_examples)
    key = {**facts, "num_examples": count, "attack": cell.to_dict()}
    pairs = itertools.zip_longest(cells, results) if transfer else ()
    comparable = [
        (other_cell, result)
        for other_cell, result in pairs
        if _is_comparable(cell, other_cell)
    ]
    if transfer:
        key["transferred"] = [other_cell.to_dict() for other_cell, _ in comparable]
    mended_checks = _mended_checks(cell, subject)
    content: dict[str, Any] = _read_checks(path, mended_checks) if workers.chief else {}
    if not workers.of_chief(content.get("about") == store.as_json(key)):
        replicas = workers.replicas
        sample = dataclasses.replace(
            subject,
            num_examples=count,
            batch_size=min(-(-count // replicas) * replicas, subject.batch_size),
            surrogate=None if transfer else subject.surrogate,
        )
        checks = run(sample, cell, comparable)
        content = {
            "about": key,
            "mended": mended_checks,
            "checks": [dataclasses.asdict(check) for check in checks],
            "warnings": warnings(checks),
        }
        if workers.chief:
            store.write_file(path, content)
    if not workers.chief:
        return []
    for warning in content["warnings"]:
        logging.warning("%s", warning)
    if not content["warnings"]:
        logging.info("checks on %d images: no reason to doubt the attack", count)
    return content["warnings"]


def _read_checks(path: pathlib.Path, mended: Sequence[str]) -> dict[str, Any]:
    """The checks in a file; empty if it is missing or, with a warning, damaged.

    Also empty if a check warns that was run before it was mended.
    """
    content = store.read_kept(path)
    try:  # Warnings follow from the checks, which may lack a checksum.
        checks = [Check(**check) for check in content["checks"]] if content else []
        if content and content["warnings"] != warnings(checks):
            raise ValueError("its warnings do not match its checks")
        if any(map(_may_be_false, checks)):
            return {}
        names = {m.split()[0] for m in {*mended}.difference(content.get("mended", ()))}
        if any(check.reason and check.name in names for check in checks):
            return {}
    except files.DAMAGED as error:
        files.say_damaged(path, error)
        return {}
    return content


def _mended_checks(cell: Cell, subject: sweep.Subject) -> list[str]:
    """Names of the checks whose earlier versions may have warned of the cell wrongly.

    The second mend of a check has another word after the name.
    """
    is_huge = cell.numbers[0] >= _huge_eps(cell, subject)
    conditions = {
        "zero_gradients": cell.objective.losses != _full_losses(cell),
        "large_eps": is_huge,
        "large_eps part": not _all_pixels_of_classes(cell),
        "transfer": subject.surrogate is not None,
    }
    return [name for name, applies in conditions.items() if applies]


def _huge_eps(cell: Cell, subject: sweep.Subject) -> float:
    """A radius at which no image can be recognised, for images in [0, 1]."""
    if cell.threat.norm == "l2":
        return _HUGE_LINF * math.sqrt(math.prod(subject.info.image_shape))
    return _HUGE_LINF


def _full_losses(cell: Cell) -> tuple[str, ...]:
    """The cell's losses without those that leave out pixels that are wrong already."""
    losses = cell.objective.losses
    return tuple(name for name in losses if not ATTACK_LOSSES[name].leaves_out)


def _may_be_false(check: Check) -> bool:
    """Whether the check warns of images that may have had nothing to attack.

    Versions that counted them, or used the clean images, wrote no `_COUNT_KEY`.
    """
    zero = check.name == "zero_gradients"
    return zero and bool(check.reason) and _COUNT_KEY not in check.measured


def probe(cells: Sequence[Cell]) -> Cell | None:
    """The white-box attack that is checked: PGD with the settings of the sweep.

    They are those of the first cell of the largest radius that takes steps along
    gradients or is an ensemble, or else of the first cell of that radius. PGD spares no
    task. None if the only radius is 0.
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
    """Whether PGD with the settings of the attack is much like it."""
    return kind.is_ensemble or (kind.gradient and "steps" in kind.uses)


def run(
    subject: sweep.Subject,
    cell: Cell,
    transfers: Sequence[tuple[Cell, Result | None]] = (),
) -> list[Check]:
    """Runs all checks.

    Args:
      subject: What is attacked; all its examples are used.
      cell: As `probe` returns it.
      transfers: Attacks made on another model, with their results on at least these
        images, which other workers than the chief have as None.
    """
    epsilon, step = cell.numbers
    steps = cell.attack.steps
    huge_eps = _huge_eps(cell, subject)
    evaluate = _Evaluations(subject, cell)
    pgd = functools.partial(evaluate.pgd, epsilon, step)
    calls = {
        "clean": functools.partial(evaluate.pgd, 0, 0, 0),
        "base": functools.partial(pgd, steps),
        "more": functools.partial(pgd, 2 * steps),
        "other": functools.partial(pgd, steps, seed=subject.seed + 1),
        "far": functools.partial(evaluate.far, huge_eps, max(_FAR_STEPS, steps)),
        "single": functools.partial(pgd, steps, single_images=True),
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
    harms = {name: _harm(cell, evaluation) for name, evaluation in evaluations.items()}
    batch_harm = harms["base"]
    single_harm = harms.pop("single")
    single_harm, same_images = worst_case.finite(
        single_harm, batch_harm[: len(single_harm)]
    )
    clean, base, twice, other_seed, far_harm, fgsm, square = worst_case.finite(
        *harms.values()
    )
    if not (base.size and same_images.size):
        reason = "no image has a finite loss in all checks, so nothing can be concluded"
        return [Check("finite", reason, {"images": len(base)})]
    scale = max(float(np.mean(base - clean)), 1e-6)
    attacked_model = subject.model if subject.surrogate is None else subject.surrogate
    order = functools.partial(_order_check, rise=base - clean)
    checks = [
        Check("zero_gradients", *zero_gradients(slopes, cell, attacked_model)),
        order(
            "more_steps",
            not _is_larger(base, twice, 0.02 * scale),
            f"PGD does less harm after {2 * steps} steps than after {steps}; "
            "the step size is too large, or the gradients mislead",
            rise_twice=twice - clean,
        ),
        order(
            "converged",
            not _is_larger(twice, base, 0.25 * scale),
            f"{2 * steps} steps instead of {steps} do over a quarter "
            "more harm; give more --steps",
            rise_twice=twice - clean,
        ),
        order(
            "black_box",
            not _is_larger(square, base, 0.02 * scale),
            f"Square, which sees no gradient, does more harm in {_QUERIES} queries "
            "than PGD; the gradients are masked",
            rise_square=square - clean,
        ),
        order(
            "fgsm",
            not _is_larger(fgsm, base, 0.02 * scale),
            "one step of FGSM does more harm than PGD; there are too few steps, their "
            "size is wrong, or the gradients mislead",
            rise_fgsm=fgsm - clean,
        ),
        _floor_check(
            cell, base - clean, far_harm - clean, far, farther=huge_eps > epsilon
        ),
        order(
            "batch_size",
            np.mean(np.abs(single_harm - same_images)) <= 0.05 * scale,
            "images attacked one by one come out differently than in a batch; the "
            "model mixes the images of a batch",
            difference=np.abs(single_harm - same_images),
        ),
        order(
            "random_start",
            abs(np.mean(other_seed) - np.mean(base)) <= 0.1 * scale,
            "another seed for the random start changes the harm by over a tenth of "
            "its rise; give more --restarts and --steps",
            rise_other_seed=other_seed - clean,
        ),
        *(
            _transfer_check(evaluate, attack, result, batch_harm)
            for attack, result in transfers
        ),
    ]
    # A random model draws noise by batch, so this check has no meaning for it.
    random = subject.random
    return [check for check in checks if check.name != "batch_size" or not random]


def warnings(checks: Sequence[Check]) -> list[str]:
    """The reasons of the checks that failed, as sentences."""
    return [f"{check.reason} ({_numbers(check)})." for check in checks if check.reason]


def _numbers(check: Check) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in check.measured.items())


class _Evaluations:
    """Attacks the examples repeatedly; PGD of all settings is one graph."""

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
        single_images: bool = False,
    ) -> Evaluation:
        """The last points of PGD; with `single_images`, of a few images one by one."""
        numbers = (epsilon, step_size, steps)
        return self._run(
            self._pgd, numbers=numbers, seed=seed, single_images=single_images
        )

    def far(self, epsilon: float, steps: int) -> Evaluation:
        """PGD far from the image; for classes with a loss that leaves no pixel right.

        The sum of cross-entropies goes on with pixels that are wrong already, and may
        leave the others unchanged at any radius.
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
            instance = attacks.make(
                name, epsilon, norm=self.cell.threat.norm, **settings
            )
            return instance(objective, x, seed)

        evaluator = sweep.make_evaluator(self._subject, self.cell, attack)
        return self._run(evaluator, numbers=(epsilon,))

    def harm_of(self, attack: Cell) -> np.ndarray:
        """The harm that an attack of the sweep does to each image, `[N]`.

        For an ensemble it is that of its worst member, as in its results.
        """
        harms = []
        for member in attack.members or (attack,):
            evaluator = sweep.make_evaluator(self._subject, member)
            evaluation = self._run(evaluator, numbers=member.numbers)
            harms.append(_harm(self.cell, evaluation))
        return np.fmax.reduce(harms)

    def slopes(self, epsilon: float) -> Evaluation:
        """The gradients where PGD starts, in place of adversarial images.

        At the clean image a loss may have its minimum: losses on numbers do if the
        targets are the model's own outputs. Losses that leave out pixels that are wrong
        already are replaced by the tasks' own, because an image that is wrong
        everywhere has no gradient of them, and need not have one.
        """
        goal = dataclasses.replace(self.cell.objective, losses=_full_losses(self.cell))
        cell = dataclasses.replace(self.cell, objective=goal)

        def attack(objective, x, seed, epsilon):  # It returns no image.
            ball = threat.ball(self.cell.threat.norm, epsilon)
            start = ball.projection(x)(threat.random_start(ball, x, seed, 0))
            run_objective = base.begin(objective, start, x)
            return base.gradient(run_objective, start, tf.constant(0.0))[0]

        evaluator = sweep.make_evaluator(self._subject, cell, attack)
        count = self._subject.num_examples
        return self._run(evaluator, numbers=(epsilon,), keep_examples=count)

    def _run(self, evaluator, *, single_images: bool = False, **settings) -> Evaluation:
        subject = self._subject
        count, size = subject.num_examples, subject.batch_size
        if single_images:
            count, size = min(_SINGLE_IMAGES, count), self.workers.replicas
        return evaluator.run(
            subject.columns, batch_size=size, num_examples=count, **settings
        )


def _slopes_of_attacked(cell: Cell, evaluation: Evaluation) -> np.ndarray:
    """The gradients of the images with any attacked place, `[N, H, W, C]`.

    Args:
      cell: The attack.
      evaluation: As `_Evaluations.slopes` returns it.
    """
    examples = present(evaluation.examples, "images")
    slopes = present(examples.adversarial, "gradients")
    rows = evaluation.aimed or evaluation.wanted or evaluation.attacked
    weights = dict(cell.objective.weights)
    tasks = [task for task in cell.tasks if weights.get(task, 1.0)]
    valid = [worst_case.loss_rows(cell, task, rows)[:, 1] > 0 for task in tasks]
    return slopes[np.any(valid, axis=0)]


def _harm(cell: Cell, evaluation: Evaluation) -> np.ndarray:
    """The score by which the attack's points are judged, of each image."""
    rows = (evaluation.attacked, evaluation.wanted, evaluation.aimed)
    return worst_case.score(cell, *rows, evaluation.before)


def zero_gradients(
    slopes: np.ndarray, cell: Cell, model: keras.Model
) -> tuple[str, dict[str, float]]:
    """Returns what is wrong, empty if nothing is, and the numbers behind it.

    Args:
      slopes: Gradients of the images that have something to attack, `[N, H, W, C]`.
      cell: The attack; one on a part of the output leaves pixels without a gradient.
      model: The attacked model; its precision is named as a likely cause.
    """
    if cell.threat.channels:  # Gradients of the others do not matter.
        slopes = slopes[..., list(cell.threat.channels)]
    count, zeros = len(slopes), slopes == 0
    if not count:
        return "", {_COUNT_KEY: 0}
    images = float(np.mean(np.all(zeros, axis=(1, 2, 3))))
    entries = float(np.mean(zeros))  # Of all numbers, as a single colour may be zero.
    restricted = cell.objective.restricted
    reason = ""
    if images or (entries > _MOST_ZEROS and not restricted):
        reason = (
            "the gradient is exactly zero for some images, or for over a tenth of the "
            f"entries; gradient attacks see nothing there{_cause(model)}"
        )
    return reason, {"images": images, "entries": entries, _COUNT_KEY: count}


def _cause(model: keras.Model) -> str:
    """A clause about the model's precision; empty if that cannot be the cause."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    half_types = [name for name in _SMALLEST if name in dtypes]
    if not half_types:
        return ""
    name = half_types[0]
    return (
        f"; gradients are in {name}, where everything below {_SMALLEST[name]:g} is "
        "zero: before you conclude anything, use float32 (no --fast, and "
        "--precision=float32 for a run)"
    )


def _is_larger(larger: np.ndarray, smaller: np.ndarray, tolerance: float = 0.0) -> bool:
    """Whether some scores are larger than others of the same images, beyond chance.

    Their mean difference must be over the tolerance and over twice its standard error,
    so that the answer is no if the images disagree, or if there is only one.
    """
    if len(larger) < 2:
        return False
    change = larger - smaller
    error = float(np.std(change, ddof=1)) / math.sqrt(len(change))
    return float(np.mean(change)) > max(tolerance, 2 * error)


def _order_check(
    name: str, holds: bool | np.bool_, reason: str, **harms: np.ndarray
) -> Check:
    """A check that compares mean scores."""
    measured = {key: float(np.mean(v)) for key, v in harms.items() if v.size}
    return Check(name, "" if holds else reason, measured)


def _floor_check(
    cell: Cell, base: np.ndarray, far: np.ndarray, evaluation: Evaluation, farther: bool
) -> Check:
    """At a radius of 64 levels, accuracy under attack must be near 0.

    This applies where `_all_pixels_of_classes` holds. Otherwise harm must be no less
    there than at the attack's radius, if that is smaller (`farther`).
    """
    measured = {"rise": float(np.mean(base)), "rise_eps_64": float(np.mean(far))}
    problem = ""
    if _all_pixels_of_classes(cell):
        task = cell.all_tasks[cell.tasks[0]]
        correct, count = evaluation.attacked[task.name][task.harm.name].sum(axis=0)
        measured["accuracy"] = float(correct / max(count, 1))
        if measured["accuracy"] > _MOST_ACCURACY:
            problem = (
                "at eps 64 over two fifths of the pixels are still classified right"
            )
    elif farther and _is_larger(base, far):
        problem = "at eps 64 PGD does less harm than at the radius itself"
    reason = (
        f"{problem}; more steps may be needed, or the gradients are masked"
        if problem
        else ""
    )
    return Check("large_eps", reason, measured)


def _is_comparable(cell: Cell, attack: Cell) -> bool:
    """Whether results of an attack may be compared with those of the cell."""
    get_settings = operator.attrgetter(
        "tasks", "eps", "objective.balance", "objective.judge"
    )
    is_bounded = attack.attack.kind.bounded  # Unbounded attacks are stronger.
    return is_bounded and get_settings(attack) == get_settings(cell)


def _all_pixels_of_classes(cell: Cell) -> bool:
    """Whether all of the input is changed to harm all pixels of one task with classes.

    Its harm must be the accuracy: `masked_ce` leaves a pixel once it is wrong, although
    its class may still be among the first k.
    """
    is_part = cell.objective.restricted or cell.objective.targeted
    keeps_inputs = bool(cell.threat.channels) or cell.packed
    by_accuracy = cell.all_tasks[cell.tasks[0]].harm.is_accuracy
    return by_accuracy and len(cell.tasks) == 1 and not (is_part or keeps_inputs)


def _transfer_check(
    evaluate: _Evaluations, attack: Cell, result: Result | None, base: np.ndarray
) -> Check:
    """Compares images made on another model with those of attacks on the model itself.

    Args:
      evaluate: Evaluations on the model itself.
      attack: The attack that made the images. It may be stronger than PGD; so if they
        do more harm, it is run on the model itself, too.
      result: Its result; None on workers other than the chief.
      base: The harm that PGD does to each image, `[N]`.
    """
    harm = base
    if result is not None:
        harm = worst_case.score_of(evaluate.cell, result)[: len(base)]
    transfer, white_box = worst_case.finite(harm, base)
    if evaluate.workers.of_chief(_is_larger(transfer, white_box)):
        strongest = np.maximum(base, evaluate.harm_of(attack))
        transfer, white_box = worst_case.finite(harm, strongest)
    return _order_check(
        "transfer",
        not _is_larger(transfer, white_box),
        f"{attack.label} made on another model does more harm than the same attack "
        "and PGD on the model itself; its gradients are masked",
        white_box=white_box,
        transfer=transfer,
    )
