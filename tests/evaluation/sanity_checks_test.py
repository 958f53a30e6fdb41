# SPDX-License-Identifier: Apache-2.0
"""The checks of an attack, on models made to fail one of them."""

from __future__ import annotations

import dataclasses
import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.evaluation import sanity_checks
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.runs import store
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import metrics

COMPARED = [name for name, kind in KINDS.items() if kind.for_comparison]

SIZE, COUNT = 6, 6
INFO = DatasetInfo(
    name="made_up",
    image_shape=(SIZE, SIZE, 3),
    classes=("dark", "bright"),
    colors=((0, 0, 0), (255, 255, 255)),
    tasks=("seg",),
    splits={"validation": COUNT},
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    ranges={},
)


@keras.saving.register_keras_serializable(package="trust_test")
class Reversed(keras.layers.Layer):
    """The identity, with the gradient's sign turned round."""

    def call(self, x):
        """Returns x."""
        return 2 * tf.stop_gradient(x) - x


def honest(x):
    return x


def dead(x):
    return keras.layers.ReLU()(x - 2.0) + 0.5


def turned(x):
    return Reversed()(x)


def mixing(x):
    return x - 0.9 * keras.ops.mean(x, axis=0, keepdims=True) + 0.4


def half_broken(x):
    """NaN for the images whose first value is low."""
    return keras.ops.where(x[:, :1, :1, :1] < 0.48, np.nan, x)


def broken(x):
    return x + 0 * keras.ops.log(x - 2)


def make_subject(front) -> sweep.Subject:
    """Classes by brightness, through a front that makes trouble."""
    rng = np.random.default_rng(0)
    images = rng.integers(100, 156, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
    bright = images.mean(axis=-1) > 127.5
    image = keras.Input((SIZE, SIZE, 3))
    mean = keras.ops.mean(front(image), axis=-1, keepdims=True) - 0.5
    logits = keras.ops.concatenate([-20 * mean, 20 * mean], axis=-1)
    return sweep.Subject(
        model=keras.Model(image, {"seg": logits}),
        tasks=("seg",),
        info=INFO,
        columns=Columns(images, {"seg": bright.astype(np.uint8)}, {}),
        num_examples=COUNT,
        workers=Workers(tf.distribute.get_strategy()),
        batch_size=COUNT,
        seed=0,
    )


def a_cell(**settings):
    config = AttackConfig(ckpt="x", eps=(2.0,), steps=12, **settings)
    return sanity_checks.probe(make_cells(config, ("seg",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("front", "failing"),
    [
        (honest, set()),
        (dead, {"zero_gradients", "large_eps"}),
        (turned, {"black_box", "large_eps"}),
        (mixing, {"batch_size"}),
        (half_broken, {"zero_gradients"}),
    ],
)
def test_what_is_wrong_is_found(front, failing):
    checks = sanity_checks.run(make_subject(front), a_cell())
    names = {check.name for check in checks if check.reason}
    assert names >= failing if failing else not names
    assert len({check.name for check in checks}) == 8
    json.dumps([check.measured for check in checks], allow_nan=False)
    warnings = sanity_checks.warnings(checks)
    assert len(warnings) == len(names)
    assert all(w.endswith(").") and "nan" not in w for w in warnings)


def test_more_harm_by_chance_says_nothing():
    zeros = np.zeros(8)
    trend, chance = 0.1 + 0.01 * np.arange(8), np.array([1.0, -0.9] * 4)
    assert np.mean(chance) > 0.04
    assert sanity_checks._is_larger(trend, zeros, 0.1)
    assert not sanity_checks._is_larger(trend, zeros, 0.2)  # Within the tolerance.
    assert not sanity_checks._is_larger(chance, zeros)
    assert not sanity_checks._is_larger(trend[:1], zeros[:1])  # A single image.


def precise(policy):
    """A model whose layers compute in that precision."""
    layer = keras.layers.Conv2D(2, 1, dtype=policy)
    image = keras.Input((4, 4, 3))
    return keras.Model(image, {"seg": layer(image)})


def test_zero_gradients_are_counted_by_entry_and_the_precision_is_named():
    # One colour without a gradient: no pixel is dead, a third of the entries is.
    slopes = np.ones((2, 4, 4, 3), np.float32)
    slopes[..., 2] = 0
    channel_cell = a_cell(attack_channels=(0, 1))
    assert not sanity_checks.zero_gradients(slopes, channel_cell, precise("float32"))[0]
    reason, numbers = sanity_checks.zero_gradients(slopes, a_cell(), precise("float32"))
    assert numbers == {"images": 0, "entries": pytest.approx(1 / 3), "of_images": 2}
    assert "over a tenth of the entries" in reason
    assert "gradients are in" not in reason
    for policy, phrase in (
        (
            "mixed_float16",
            "gradients are in float16, where everything below 6e-08 is zero",
        ),
        ("mixed_bfloat16", "gradients are in bfloat16"),
    ):
        assert (
            phrase in sanity_checks.zero_gradients(slopes, a_cell(), precise(policy))[0]
        )
    pixel_cell = a_cell(attack_pixels=3)
    assert not sanity_checks.zero_gradients(slopes, pixel_cell, precise("float32"))[0]


@pytest.mark.parametrize("settings", [{}, {"attack_classes": ("bright",)}])
def test_images_with_nothing_to_attack_have_no_gradient_to_miss(settings):
    """With the model's own outputs as targets, no loss has a gradient at the image."""
    subject = make_subject(honest)
    outputs = subject.model(subject.columns.images / np.float32(255))["seg"].numpy()
    labels = np.argmax(outputs, axis=-1).astype(np.uint8)
    masks = np.ones_like(labels)
    if settings:
        labels[0] = 0
    else:
        masks[0] = 0
    targets, masks = {"seg": labels, "depth": outputs[..., :1]}, {"seg": masks}
    masks["depth"] = masks["seg"]
    (logits,) = subject.model.outputs
    attacked = "seg" if settings else "depth"
    subject = dataclasses.replace(
        subject,
        model=keras.Model(
            subject.model.inputs[0], {"seg": logits, "depth": logits[..., :1]}
        ),
        tasks=(attacked,),
        columns=Columns(subject.columns.images, targets, masks),
    )
    config = AttackConfig(ckpt="x", eps=(2.0,), attack_tasks=(attacked,), **settings)
    cells = make_cells(config, ("seg", "depth"), ("dark", "bright"))
    cell = sanity_checks.probe(cells)
    all_slopes = sanity_checks._Evaluations(subject, cell).slopes(cell.numbers[0])
    slopes = sanity_checks._slopes_of_attacked(cell, all_slopes)
    assert slopes.shape == (COUNT - 1, SIZE, SIZE, 3)
    assert np.all(np.any(slopes != 0, axis=(1, 2, 3)))
    result = sanity_checks.zero_gradients(np.ones((0, 4, 4, 3)), cells[0], None)
    assert result == ("", {"of_images": 0})


def test_an_image_that_is_wrong_everywhere_needs_no_gradient():
    """Losses that leave out wrong pixels have no gradient there; the task's own has."""
    for loss in ("segpgd", "masked_ce", "houdini_released"):
        cell = a_cell(attack_loss=(loss,))
        assert cell.objective.losses == (loss,)
        assert sanity_checks._full_losses(cell) == ()  # The task's own loss.
    subject = make_subject(honest)
    seg = subject.columns.targets["seg"].copy()
    seg[:2] = 1 - seg[:2]
    columns = Columns(subject.columns.images, {"seg": seg}, {})
    subject = dataclasses.replace(subject, columns=columns)
    all_slopes = sanity_checks._Evaluations(subject, cell).slopes(cell.numbers[0])
    slopes = sanity_checks._slopes_of_attacked(cell, all_slopes)
    assert len(slopes) == COUNT
    assert sanity_checks.zero_gradients(slopes, cell, subject.model)[0] == ""


def test_less_harm_at_eps_64_says_nothing_of_a_larger_radius():
    cell = a_cell(attack_pixels=3)  # For which accuracy is not checked.
    base, far = 2 + 0.1 * np.arange(8), np.ones(8)
    checks = [
        sanity_checks._floor_check(cell, base, far, None, f) for f in (True, False)
    ]
    assert [bool(check.reason) for check in checks] == [True, False]


def a_task(metric):
    """A task of classes with the metric, as cells hold it."""
    return TaskSet([Task("seg", kind="classes", places=2, metrics=(metric,))])


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        (dict, True),
        (lambda: {"all_tasks": a_task(metrics.accuracy())}, True),
        (lambda: {"all_tasks": a_task(metrics.top(2))}, False),
        (lambda: {"all_tasks": a_task(metrics.image_miou())}, False),
        (
            lambda: {"all_tasks": a_task(keras.metrics.SparseCategoricalAccuracy())},
            True,
        ),
        (
            lambda: {
                "all_tasks": a_task(keras.metrics.SparseTopKCategoricalAccuracy(k=2))
            },
            False,
        ),
        (lambda: {"packed": True}, False),
        (lambda: {"threat": a_cell(attack_channels=(2,)).threat}, False),
    ],
)
def test_accuracy_at_eps_64_is_asked_where_all_that_is_right_may_become_wrong(
    change, asked
):
    cell = dataclasses.replace(a_cell(), **change())
    name = cell.all_tasks["seg"].harm.name
    hits = np.full((COUNT, 2), SIZE * SIZE)
    evaluation = types.SimpleNamespace(attacked={"seg": {name: hits}})
    harm = 0.1 * np.arange(COUNT)
    check = sanity_checks._floor_check(cell, harm, harm, evaluation, farther=True)
    assert bool(check.reason) == asked == ("accuracy" in check.measured)
    harm_check = sanity_checks._floor_check(
        cell, harm + 1, harm, evaluation, farther=True
    )
    assert harm_check.reason  # Harm must be no less than at the radius.


@pytest.mark.parametrize(
    ("settings", "anew"),
    [
        ({"eps": (8.0,)}, []),
        ({"eps": (64.0,)}, ["large_eps"]),
        ({"eps": (2.0,), "norm": "l2"}, []),
        ({"eps": (3.0,), "norm": "l2"}, ["large_eps"]),
        ({"eps": (8.0,), "attack_loss": ("js",)}, []),
        ({"eps": (8.0,), "attack_loss": ("masked_ce",)}, ["zero_gradients"]),
        ({"eps": (8.0,), "attack_channels": (0, 1)}, ["large_eps part"]),
    ],
)
def test_checks_that_may_have_warned_for_nothing_are_made_again(settings, anew):
    cell = sanity_checks.probe(make_cells(AttackConfig(ckpt="x", **settings), ("seg",)))
    subject = make_subject(honest)
    assert sanity_checks._mended_checks(cell, subject) == anew
    transfer_subject = dataclasses.replace(subject, surrogate=subject.model)
    assert sanity_checks._mended_checks(cell, transfer_subject) == [*anew, "transfer"]


def test_kept_checks_are_made_again_where_a_mended_one_warns(tmp_path):
    path = tmp_path / "checks.json"
    for name, reason, mended, rerun in (
        ("large_eps", "less harm", [], True),
        ("large_eps", "less harm", ["large_eps"], False),
        ("large_eps", "", [], False),
        ("finite", "some", [], False),
    ):
        check = sanity_checks.Check(name, reason, {})
        content = {"about": {}, "mended": mended, "checks": [dataclasses.asdict(check)]}
        content["warnings"] = sanity_checks.warnings([check])
        store.write_file(path, content)
        result = sanity_checks._read_checks(path, ["large_eps"])
        assert result == ({} if rerun else content)


def test_kept_warnings_of_images_that_may_have_had_nothing_are_checked_again(tmp_path):
    shares = {"images": 0.5, "entries": 0.5}
    for measured, reason in (
        (shares, "zero"),
        (shares, ""),
        (shares | {"of_images": 4}, "zero"),
    ):
        check = sanity_checks.Check("zero_gradients", reason, measured)
        content = {"about": {}, "checks": [dataclasses.asdict(check)]}
        content["warnings"] = sanity_checks.warnings([check])
        store.write_file(tmp_path / "checks.json", content)
        rerun = "of_images" not in measured and reason
        result = sanity_checks._read_checks(tmp_path / "checks.json", [])
        assert result == ({} if rerun else content)


@pytest.mark.slow
def test_nothing_is_known_where_nothing_is_finite():
    (check,) = sanity_checks.run(make_subject(broken), a_cell())
    assert (check.name, check.measured) == ("finite", {"images": 0})
    assert sanity_checks.warnings([check])


@pytest.mark.slow
def test_a_transfer_that_does_more_harm():
    cell = a_cell()
    rows = {"seg": {"loss": np.full((COUNT, 2), 9.0, np.float32)}}
    transfer_result = Result(cell, {}, COUNT, {}, rows)
    checks = sanity_checks.run(make_subject(honest), cell, [(cell, transfer_result)])
    (warning,) = sanity_checks.warnings(checks)
    assert "made on another model does more harm" in warning
    assert "transfer 9" in warning


@pytest.mark.parametrize(
    ("pgd", "same", "runs", "warns"),
    [(0.5, 0.9, 1, False), (0.5, 0.6, 1, True), (0.95, 0.6, 0, False)],
)
def test_a_transfer_is_compared_with_the_same_attack_if_it_does_more_harm_than_pgd(
    pgd, same, runs, warns
):
    calls = []

    def harm_of(attack):
        calls.append(attack)
        return spread + same

    (attack,) = make_cells(
        AttackConfig(ckpt="x", eps=(2.0,), attack=("apgd",)), ("seg",)
    )
    spread = 0.01 * np.arange(COUNT)
    rows = {"seg": {"loss": np.stack([spread + 0.9, np.ones(COUNT)], axis=1)}}
    result = Result(attack, {}, COUNT, {}, rows)
    workers = types.SimpleNamespace(of_chief=lambda value: value)
    evaluate = types.SimpleNamespace(cell=a_cell(), workers=workers, harm_of=harm_of)
    check = sanity_checks._transfer_check(evaluate, attack, result, spread + pgd)
    assert bool(check.reason) == warns
    white_box = np.mean(spread) + max(pgd, same)
    assert check.measured["white_box"] == pytest.approx(white_box)
    assert calls == [attack] * runs
    # Another worker, which has no result, takes part if the chief says so.
    calls.clear()
    workers.of_chief = lambda value: bool(runs)
    sanity_checks._transfer_check(evaluate, attack, None, spread + pgd)
    assert calls == [attack] * runs


@pytest.mark.slow
def test_an_ensemble_stronger_than_pgd_says_nothing_by_transfer_from_a_twin():
    keras.utils.set_random_seed(0)
    size, count = 12, 8
    rng = np.random.default_rng(0)
    images = rng.integers(60, 196, (count, size, size, 3)).astype(np.uint8)
    image = keras.Input((size, size, 3))
    layers = keras.layers
    settings = {"padding": "same", "kernel_initializer": "he_normal"}
    x = layers.Conv2D(12, 5, activation="gelu", **settings)(image - 0.5)
    model = keras.Model(image, {"seg": 20 * layers.Conv2D(4, 3, **settings)(x)})
    twin = keras.models.clone_model(model)
    twin.set_weights([1.01 * weights for weights in model.get_weights()])
    seg = model.predict(images / np.float32(255), verbose=0)["seg"].argmax(-1)
    subject = dataclasses.replace(
        make_subject(honest),
        model=model,
        info=dataclasses.replace(
            INFO,
            image_shape=(size, size, 3),
            classes=tuple("abcd"),
            colors=((0, 0, 0),) * 4,
        ),
        columns=Columns(images, {"seg": seg.astype(np.uint8)}, {}),
        num_examples=count,
        batch_size=count,
    )
    config = AttackConfig(ckpt="x", attack=("sea",), eps=(16.0,), steps=20)
    (sea,) = make_cells(config, ("seg",))
    transfer_subject = dataclasses.replace(subject, surrogate=twin)
    evaluator = sweep.make_evaluator(
        transfer_subject,
        sea,
        lambda objective, x, seed, *_: attacks.SEA(16 / 255, 20)(objective, x, seed),
    )
    evaluation = evaluator.run(
        subject.columns, batch_size=count, num_examples=count, numbers=sea.numbers
    )
    result = Result(sea, {}, count, {}, evaluation.attacked)
    probe = sanity_checks.probe([sea])
    evaluate = sanity_checks._Evaluations(subject, probe)
    pgd = sanity_checks._harm(probe, evaluate.pgd(16 / 255, 4 / 255, 20))
    check = sanity_checks._transfer_check(evaluate, sea, result, pgd)
    assert check.reason == ""
    assert check.measured["transfer"] > pgd.mean() + 0.1
    assert check.measured["white_box"] == pytest.approx(
        check.measured["transfer"], abs=0.01
    )


def test_a_transfer_that_leaves_the_ball_says_nothing_of_gradients(
    tmp_path, monkeypatch
):
    names = []

    def run(subject, cell, transferred):
        names.extend(c.attack.name for c, result in transferred if result)
        return []

    monkeypatch.setattr(sanity_checks, "run", run)
    config = AttackConfig(ckpt="x", eps=(2.0,), attack=("mim", *COMPARED))
    scale = ((0.5,) * 3, (0.25,) * 3)
    cells = make_cells(config, ("seg",), (), scale)
    results = [Result(cell, {}, COUNT, {}) for cell in cells]
    path = tmp_path / "checks.json"
    settings = {"examples": 4, "transfer": True}
    sanity_checks.check_once(make_subject(honest), cells, results, {}, path, **settings)
    assert names == ["mim", "pgd_released_start"]


def test_checks_are_run_once_and_kept(tmp_path, monkeypatch):
    calls = []

    def run(subject, cell, transferred):
        calls.append((subject.num_examples, subject.batch_size, cell.attack.name))
        return [sanity_checks.Check("fgsm", "it is odd", {"pgd": 1.0, "fgsm": 2.0})]

    monkeypatch.setattr(sanity_checks, "run", run)
    config = AttackConfig(ckpt="x", eps=(0.0, 2.0), attack=("square", "pgd"))
    cells = make_cells(config, ("seg",))
    results = [Result(cell, {}, COUNT, {}) for cell in cells]
    path = tmp_path / "checks.json"
    for facts, examples in (({"a": 1}, 4), ({"a": 1}, 4), ({"a": 2}, 99)):
        warnings = sanity_checks.check_once(
            make_subject(honest), cells, results, facts, path, examples=examples
        )
        assert warnings == ["it is odd (pgd 1, fgsm 2)."]
    assert calls == [(4, 4, "pgd"), (COUNT, COUNT, "pgd")]
    assert json.loads(path.read_text())["warnings"] == warnings


@pytest.mark.parametrize("sealed", [True, False])
def test_changed_checks_are_run_again(tmp_path, monkeypatch, sealed):
    calls = []

    def run(subject, cell, transferred):
        calls.append(cell)
        return [sanity_checks.Check("fgsm", "it is odd", {"pgd": 1.0})]

    monkeypatch.setattr(sanity_checks, "run", run)
    cells = make_cells(AttackConfig(ckpt="x", eps=(2.0,)), ("seg",))
    results = [Result(cell, {}, COUNT, {}) for cell in cells]
    path = tmp_path / "checks.json"

    def check():
        settings = {"examples": 4}
        subject = make_subject(honest)
        return sanity_checks.check_once(subject, cells, results, {}, path, **settings)

    check()
    if not sealed:  # As versions before 0.2 wrote it.
        content = json.loads(path.read_text())
        del content["checksum"]
        path.write_text(json.dumps(content))
    assert check() == ["it is odd (pgd 1)."]
    assert len(calls) == 1
    damages = [
        lambda text: text.replace("pgd 1", "pgd 2"),
        lambda text: text.replace('"checks"', '"cheques"'),
        lambda text: text.replace('"warnings"', '"warning"'),
        lambda text: text[:50],
        lambda text: "[" * 100_000,
        lambda text: "[1]",
    ]
    for number, damage in enumerate(damages):
        path.write_text(damage(path.read_text()))
        assert check() == ["it is odd (pgd 1)."]
        assert len(calls) == 2 + number


def test_the_probe_is_pgd_at_the_largest_radius():
    config = AttackConfig(
        ckpt="x", attack=("fgsm",), eps=(1.0, 8.0), steps=7, attack_loss=("js",)
    )
    cell = sanity_checks.probe(make_cells(config, ("seg", "depth")))
    assert (cell.attack.name, cell.eps, cell.attack.step_size) == ("pgd", 8.0, 2.0)
    assert (cell.attack.steps, cell.tasks, cell.objective.losses) == (
        20,
        ("seg",),
        ("js",),
    )
    zero_cells = make_cells(AttackConfig(ckpt="x", eps=(0.0,)), ("seg",))
    assert sanity_checks.probe(zero_cells) is None


@pytest.mark.parametrize(
    ("attack", "steps", "losses"),
    [
        (("noise", "square", "fgsm", "apgd"), 180, ("cospgd",)),
        (("apgd", "noise", "fgsm"), 180, ("cospgd",)),
        (("square", "sea"), 180, ()),
        (("square", "noise"), 20, ("cospgd",)),
        (("noise",), 20, ()),
    ],
)
def test_the_probe_is_like_an_attack_that_takes_steps(attack, steps, losses):
    """In any order of the attacks; if none takes steps, it is like the first."""
    config = AttackConfig(
        ckpt="x",
        attack=attack,
        eps=(8.0, 1.0),
        steps=180,
        attack_loss=("cospgd",),
        balance=("dgba",),
        attack_tasks=("all",),
    )
    cell = sanity_checks.probe(make_cells(config, ("seg", "depth")))
    assert (cell.attack.steps, cell.objective.losses) == (steps, losses)
    assert cell.objective.balance == ("sum" if attack == ("noise",) else "dgba")
