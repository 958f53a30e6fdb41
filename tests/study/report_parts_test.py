# SPDX-License-Identifier: Apache-2.0
"""The parts of a study's report: numbers, curves, plots, examples."""

from __future__ import annotations

import json

import numpy as np
import pytest
import study_fixture

from mtr_tf.show import style
from mtr_tf.show import text
from mtr_tf.study.claim_file import Claim
from mtr_tf.study.claim_file import Point
from mtr_tf.study.claim_file import Term
from mtr_tf.study.report import curves
from mtr_tf.study.report import evidence
from mtr_tf.study.report import gallery
from mtr_tf.study.report import plots
from mtr_tf.study.report import verdicts

# Numbers.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "0.500"),
        (0.123456, "0.123"),
        (-0.0123456, "−0.0123"),
        (12.3456, "12.3"),
        (123.456, "123"),
        (1234.5, "1234"),
        (99999.0, "99999"),
        (123456.0, "1.23e5"),
        (0.00012345, "0.000123"),
        (0.000012345, "1.23e−5"),
        (0.0, "0.00"),
        (-1e-17, "0.00"),
        (None, "–"),
        (np.nan, "–"),
        (np.inf, "–"),
    ],
)
def test_three_digits(value, expected):
    assert text.number(value) == expected


def test_signs_percents_and_probabilities():
    assert [text.signed(v) for v in (0.5, -0.5, 1e-17)] == ["+0.500", "−0.500", "0.00"]
    assert text.points(0.1234) == "+12.3 points"
    assert text.points(-1.5) == "−150 points"
    assert [text.probability(p) for p in (1 / 32, 0.0001, 1.0)] == [
        "0.031",
        "< 0.001",
        "1",
    ]
    assert text.interval((-0.1, 0.25), text.signed) == "−0.100 to +0.250"
    assert text.interval((None, 0.25)) == "–"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.5, "0.500 s"), (59.4, "59.4 s"), (120, "2 min"), (7500, "2 h 5 min")],
)
def test_seconds(seconds, expected):
    assert text.seconds(seconds) == expected


def test_identifiers_are_fit_for_files_and_links():
    assert text.identifier("a", "s+d/A b", "ü") == "a-s_and_d_A_b-ü"


# Curves.


def record(variant, seed, eps, value, clean=1.0, **fields):
    return {
        "variant": variant,
        "seed": seed,
        "spec": "pgd50",
        "attack": "pgd",
        "attacked": ["seg"],
        "task": "seg",
        "metric": "miou",
        "norm": "linf",
        "unit": "",
        "better": "higher",
        "eps": eps,
        "clean": clean,
        "attacked_value": value,
        "warnings": [],
        "n": 96,
        "dataset": "rooms",
        "split": "validation",
        **fields,
    }


def test_curves_have_clean_values_at_0_and_nan_where_nothing_is():
    records = [
        record("b", 7, 4, 0.1, 0.9),
        record("b", 7, 2, 0.2, 0.9),
        record("a", 3, 2, 0.3, 0.8),
        record("a", 3, 4, None, 0.8),
        record("a", 3, 4, 5.0, 6.0, metric="loss"),
    ]
    miou, loss = curves.make(records, ("a", "b", "c"), (3, 7))
    np.testing.assert_array_equal(miou.eps, [0, 2, 4])
    assert list(miou.values) == ["a", "b"]
    nan = np.nan
    np.testing.assert_array_equal(miou.values["a"], [[0.8, 0.3, nan], [nan, nan, nan]])
    np.testing.assert_array_equal(miou.values["b"], [[nan, nan, nan], [0.9, 0.2, 0.1]])
    assert (miou.headline, loss.headline) == (True, False)
    np.testing.assert_array_equal(loss.values["a"], [[6, 5], [nan, nan]])


def test_differences_are_of_equal_seeds():
    values = {"a": (0.5, 0.4), "b": (0.7, 0.3), "c": (None, 0.9)}
    records = [
        record(variant, seed, 2, value, clean=seed + 1.0)
        for variant, row in values.items()
        for seed, value in enumerate(row)
    ] + [record("a", 0, 2, 0.3, metric="loss"), record("b", 0, 2, 0.3, metric="loss")]
    miou, difference, loss = curves.with_differences(
        curves.make(records, ("a", "b", "c"), (0, 1))
    )
    assert (difference.reference, list(difference.values)) == ("a", ["b", "c"])
    np.testing.assert_allclose(difference.values["b"], [[0, 0.2], [0, -0.1]])
    np.testing.assert_allclose(difference.values["c"], [[0, np.nan], [0, 0.5]])
    assert (miou.reference, loss.reference) == ("", "")
    assert len({miou.id, difference.id, loss.id}) == 3


def test_attacks_of_one_spec_are_curves_of_their_own():
    records = [
        record("a", 0, 2, 0.3),
        record("a", 0, 2, 0.3, attack="apgd"),
        record("a", 0, 2, 0.3, attacked=["seg", "depth"]),
        record("a", 0, 2, 0.3, spec="other"),
    ]
    all_curves = curves.make(records, ("a",), (0,))
    assert len({curve.id for curve in all_curves}) == 4


def test_curves_say_of_which_images_they_are_where_these_differ():
    records = [record("a", 0, 2, 0.3), record("a", 0, 2, 0.3, spec="other")]
    assert {curve.images for curve in curves.make(records, ("a",), (0,))} == {""}
    records.append(record("a", 0, 2, 0.4, clean=0.8, spec="few", n=8))
    records.append(record("a", 0, 2, 0.6, spec="own", targets="own"))
    titles = [curve.title for curve in curves.make(records, ("a",), (0,))]
    assert titles[1:] == [
        "seg miou under other (pgd on seg), 96 images of rooms (validation)",
        "seg miou under few (pgd on seg), 8 images of rooms (validation)",
        "seg miou under own (pgd on seg), 96 images of rooms (validation), against the "
        "model's own outputs",
    ]


def test_curves_of_pictures_of_two_sizes_say_so():
    small, large = ({"images": f"{size}x3 0.5 0.5 0.5"} for size in ("32x40", "64x80"))
    records = [record("a", 0, 2, 0.3, **small) for _ in range(2)]
    records[1]["spec"] = "other"
    assert {curve.images for curve in curves.make(records, ("a",), (0,))} == {""}
    prefix = "96 images of rooms (validation) at"
    assert curves.images(records) == f"{prefix} 32x40 pixels"
    records[1] |= large
    images = [curve.images for curve in curves.make(records, ("a",), (0,))]
    assert images == [f"{prefix} 32x40 pixels", f"{prefix} 64x80 pixels"]
    # Also where every curve has both.
    mixed_records = [record("a", 0, 2, 0.3, **small), record("b", 0, 2, 0.3, **large)]
    (curve,) = curves.make(mixed_records, ("a", "b"), (0,))
    assert curve.images == f"{prefix} 32x40 pixels or {prefix} 64x80 pixels"


def test_warnings_say_whose_they_are():
    records = [
        record(
            "a", seed, 2, 0.3, warnings=[f"more steps help (base {seed}.1, more 2)."]
        )
        for seed in (1, 0)
    ] + [record("b", 1, 2, 0.3, warnings=["more steps help (base 9, more 2)."])]
    (curve,) = curves.make(records, ("a", "b"), (0, 1))
    lines = curves.warning_lines(curve.warnings)
    assert lines == ["more steps help [a: seeds 0, 1; b: seed 1]"]


def test_warnings_bear_on_claims_of_that_attack_and_those_models():
    fields = {"algorithm": "sea", "warnings": ["weak."]}
    records = [
        record("a", 0, 2, 0.3, **fields),
        record("b", 0, 2, 0.3, **fields),
        record("a", 0, 2, 0.3, algorithm="pgd", attack="plain"),
    ]
    all_curves = curves.make(records, ("a", "b"), (0,))

    def lines(variant, attacked, **choice):
        choices = tuple(choice.items())
        point = Point(variant, "pgd50", 2, "seg", "miou", attacked, choices)
        claim = Claim("id", "source", "text", terms=(Term(1, (point,)),))
        return evidence.warnings_of(claim, all_curves)

    assert lines("a", ("seg",), algorithm="sea") == ["pgd50: weak. [a: seed 0]"]
    assert lines("a", ("seg",)) == ["pgd50: weak. [a: seed 0]"]
    assert not lines("a", ("seg",), algorithm="pgd")
    assert not lines("a", ("seg", "depth"), algorithm="sea")


def test_warnings_of_several_metrics_keep_all_seeds():
    records = [
        record("a", seed, 2, 0.3, metric=metric, warnings=["weak."])
        for metric, seeds in (("miou", (0, 2)), ("loss", (1, 2)))
        for seed in seeds
    ]
    all_curves = curves.make(records, ("a",), (0, 1, 2))
    point = Point("a", "pgd50", 2, "seg", "miou", ("seg",), ())
    claim = Claim("id", "source", "text", terms=(Term(1, (point,)),))
    lines = evidence.warnings_of(claim, all_curves)
    assert lines == ["pgd50: weak. [a: seeds 0, 1, 2]"]
    assert all_curves[0].warnings == {"weak.": {"a": [0, 2]}}


# Plots.


def test_curves_have_the_look_of_their_place_and_one_seed_its_interval():
    records = [record("a", 0, eps, 0.5 / eps, 0.8) for eps in (1, 2)]
    ends = {"clean_interval": [0.7, 0.9], "attacked_interval": [0.1, 0.6]}
    (curve,) = curves.make([r | ends for r in records], ("z", "a"), (0,))
    np.testing.assert_array_equal(
        curve.ends["a"][:, 0], [[0.7, 0.1, 0.1], [0.9, 0.6, 0.6]]
    )
    (plot,) = plots.curves([curve], ("z", "a"))
    axes = plot.draw().axes[0]
    np.testing.assert_allclose(
        axes.lines[0].get_xydata(), [[0, 0.8], [1, 0.5], [2, 0.25]]
    )
    assert axes.lines[0].get_color() == style.COLORS[1]  # By its place in the study.
    assert axes.get_legend().get_texts()[0].get_text() == "a"
    assert axes.collections


def test_caption_has_the_mean_slope():
    fields = {"measure": "tasks", "spec": "t", "variant": "v", "norm": "l2"}
    fields |= {"normalisation": "unit", "predicted": -0.5}
    rows = [
        {**fields, "quantity": quantity, "seed": seed, "value": value, "count": 1}
        for seed, value in enumerate((-0.3, -0.4))
        for quantity in ("slope", "norm_by_size")
    ]
    (plot,) = plots.norms(rows)
    assert plot.caption == "Slope −0.350, by theory −0.500; seeds 0, 1."


# Examples.


def shot(workdir, number, **fields):
    """A record, with pictures of its cell in which every pixel is `number`."""
    entry = record("a", 0, 2, 0.3, folder="cell", **fields)
    entry |= {"rows": f"cells/{number}.npz", "clean_rows": f"cells/{number}clean.npz"}
    tile = np.full((1, 4, 4, 3), number, np.uint8)
    names = ("image", "adversarial", "perturbation", "target/seg", "output/seg")
    (workdir / "cell" / "cells").mkdir(parents=True, exist_ok=True)
    for name in (entry["rows"], entry["clean_rows"]):
        arrays = {f"picture/{name}": tile for name in names}
        np.savez(workdir / "cell" / name, **arrays)
    return entry


def test_gallery_is_of_the_attack_on_the_task_alone_at_its_largest_radius(tmp_path):
    joint = {"attacked": ["seg", "depth"], "spec": "joint"}
    records = [
        shot(tmp_path, 1, **joint),
        shot(tmp_path, 2, metric="loss"),
        shot(tmp_path, 3),
        shot(tmp_path, 4) | {"eps": 4},
        shot(tmp_path, 5) | {"eps": 4, "seed": 1},
        shot(tmp_path, 6, task="depth", **joint),
    ]
    (seg_gallery,) = gallery.make(records, tmp_path)
    assert [shots.pictures[0][0, 0, 0, 0] for shots in seg_gallery.shots] == [4]
    assert "eps 4" in seg_gallery.attack


def test_gallery_goes_on_without_damaged_pictures(tmp_path):
    records = [shot(tmp_path, 1), shot(tmp_path, 2) | {"eps": 4}]
    (tmp_path / "cell" / "cells" / "2.npz").write_bytes(b"PK nonsense")
    (seg_gallery,) = gallery.make(records, tmp_path)
    assert seg_gallery.shots[0].pictures[0][0, 0, 0, 0] == 1


# What may be missing.

KINDS = (plots.norms, plots.pixels, plots.first_order, plots.cosines)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[tuple[str, ...], list[dict]]:
    """{tasks: records of all measures of one seed}."""
    by_tasks = {}
    for tasks in (("seg",), ("seg", "depth")):
        folder = tmp_path_factory.mktemp("measures")
        measures = ("tasks", "pixels", "first_order")
        study_fixture.write_measures(folder, measures, tasks, 0)
        records = json.loads((folder / "measures.json").read_text())
        by_tasks[tasks] = [r | {"variant": "v", "spec": "t"} for r in records]
    return by_tasks


@pytest.mark.parametrize("tasks", [("seg",), ("seg", "depth")])
def test_measures_of_one_seed_or_one_task_are_drawn(measured, tasks):
    for kind in KINDS:
        for plot in kind(measured[tasks]):
            assert "nan" not in plot.alt + plot.caption
            plot.draw()


def test_attacks_on_pixels_and_on_blocks_are_told_apart(tmp_path):
    """In one plot of both, also in its alternative text."""
    records = []
    for seed, measure in enumerate(("pixels", "blocks")):
        study_fixture.write_measures(tmp_path, (measure,), ("seg",), seed)
        measures = json.loads((tmp_path / "measures.json").read_text())
        records += [r | {"variant": "v", "spec": "t", "seed": 0} for r in measures]
    plot = next(p for p in plots.pixels(records) if "attacked_pixels" in p.id)
    numbers = {
        measure: [
            text.number(record["value"])
            for record in records
            if (record["measure"], record.get("metric")) == (measure, "pixel_accuracy")
        ]
        for measure in ("pixels", "blocks")
    }
    assert numbers["pixels"] != numbers["blocks"]
    for measure, values in numbers.items():
        assert f"seg of {measure} from {values[0]} to {values[-1]}" in plot.alt


def test_the_plot_of_a_claim_about_the_first_order_has_the_norm_of_its_attack():
    measure = {"measure": "first_order", "quantity": "rise", "attack": "theory"}
    claim = Claim("T", "source", "text", measure=measure | {"variants": ("s+d",)})
    for norm in ("linf", "l2"):
        ids = {plots.measure_id("theory", "s+d", "first_order", norm, "ratio")}
        assert evidence.plot_of(claim, [], ids) in ids


def test_numbers_that_do_not_exist_leave_plots_empty(measured):
    numbers = ("value", "predicted", "ratio", "clean", "factor")
    nulls = dict.fromkeys(numbers)
    records = [r | nulls for r in measured["seg", "depth"]]
    for kind in KINDS:
        for plot in kind(records):
            assert "nan" not in plot.alt + plot.caption
            plot.draw()
    empty_records = [record("a", 0, eps, None, None) for eps in (1, 2)]
    all_curves = curves.make(empty_records, ("a",), (0,))
    (plot,) = plots.curves(all_curves, ("a",))
    plot.draw()


def test_a_measure_less_that_of_another_variant_is_said_in_words():
    measure = {"measure": "corruptions", "quantity": "mean_corrupted", "field": "value"}
    measure |= {"ratio_to": "", "reference": 0.0, "sign": 1.0, "minus": {}}
    fields = measure | {"tasks": ["depth"], "metric": "mae", "sign": 1, "reference": 0}
    assert verdicts._measure_text(fields, negated=True).endswith("depth mae, negated")
    assert verdicts._measure_text(fields | {"sign": -1}, negated=True).endswith(
        "depth mae"
    )
    fields |= {"metric": "miou", "tasks": ["seg"], "reference": 0.5}
    assert verdicts._measure_text(fields).endswith("seg miou minus 0.5")
    words = verdicts._measure_text(measure | {"minus": {"variants": ["s", "d"]}})
    assert words == "corruptions: mean_corrupted minus that of s and d"
    words = verdicts._measure_text(measure | {"minus": {"count": 64}})
    assert words == "corruptions: mean_corrupted minus that of count 64"
