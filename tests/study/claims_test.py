# SPDX-License-Identifier: Apache-2.0
"""Effects and verdicts of hand-made studies, with numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import numpy as np
import pytest
import scipy.stats
import study_fixture

from mtr_tf.errors import InputError
from mtr_tf.evaluation import resampling
from mtr_tf.study import claim_file
from mtr_tf.study import claims
from mtr_tf.study import design
from mtr_tf.study import effects
from mtr_tf.study import statistics
from mtr_tf.study import study_file
from mtr_tf.study.claim_file import Claim
from mtr_tf.study.report import verdicts
from mtr_tf.study.results import Results
from mtr_tf.tasks import TASKS

STUDY = """
about = "By hand."
seeds = [0, 1, 2, 3, 4]
[variants."s"]
tasks = ["seg"]
[variants."early"]
tasks = ["seg"]
[variants."s+d"]
tasks = ["seg", "depth", "reshading", "curvature"]
[attacks."pgd"]
attack = ["pgd", "apgd"]
attack_tasks = ["seg"]
eps = [2, 4]
[attacks."theory"]
attack = ["none"]
measure = ["tasks", "pixels", "corruptions"]
variants = ["s+d"]
"""
CLAIM = """
[[claims]]
id = "E4"
source = "someone"
statement = "depth helps"
"""
COMPARED = """
attack = "pgd"
algorithm = "pgd"
eps = [2, 4]
task = "seg"
metric = "miou"
better = ["s+d"]
"""
# Mean IoU by (variant, eps), then by seed.
MIOU = {
    ("s", 0): [0.60, 0.60, 0.60, 0.60, 0.60],
    ("s", 2): [0.30, 0.31, 0.32, 0.33, 0.34],
    ("s", 4): [0.10, 0.11, 0.12, 0.13, 0.14],
    ("early", 0): [0.50, 0.50, 0.50, 0.50, 0.61],
    ("early", 2): [0.32, 0.32, 0.32, 0.32, 0.35],
    ("early", 4): [0.12, 0.12, 0.12, 0.12, 0.15],
    ("s+d", 0): [0.52, 0.52, 0.52, 0.52, 0.62],
    ("s+d", 2): [0.33, 0.33, 0.36, 0.36, 0.37],
    ("s+d", 4): [0.11, 0.13, 0.12, 0.15, 0.17],
}


def study_with(tmp_path, claim, study=STUDY):
    file = tmp_path / "hand.toml"
    file.write_text(study + claim)
    return study_file.load(str(file))


def write(workdir, study, missing_models=()):
    """Writes a study; cells of the (variant, seed) in `missing_models` are missing."""
    cells = []
    for variant in study.variants:
        for i, seed in enumerate(study.seeds):
            for spec in study.attacks:
                if variant.name not in spec.variants:
                    continue
                folder = f"{variant.name}-{seed}-{spec.name}"
                state = "missing" if (variant.name, seed) in missing_models else "done"
                fields = {"variant": variant.name, "seed": seed, "attack": spec.name}
                cells.append(
                    {"kind": "attack", "folder": folder, "state": state} | fields
                )
                (workdir / folder).mkdir(parents=True)
                if spec.name == "theory":
                    content, name = measures(variant.name, seed), "measures.json"
                else:
                    content, name = records(variant.name, i), "results.json"
                (workdir / folder / name).write_text(json.dumps(content))
    (workdir / "study.json").write_text(json.dumps(study.to_dict()))
    (workdir / "index.json").write_text(json.dumps({"study": "hand", "cells": cells}))
    return Results.read(workdir)


def records(variant, i):
    return [
        {
            "algorithm": algorithm,
            "eps": eps,
            "attacked": ["seg"],
            "task": "seg",
            "metric": "miou",
            "clean": MIOU[variant, 0][i],
            "attacked_value": MIOU[variant, eps][i] - 0.01 * (algorithm == "apgd"),
        }
        for algorithm in ("pgd", "apgd")
        for eps in (2, 4)
    ]


def measures(variant, seed):
    slope = -0.40 - 0.01 * seed - 0.02 * (variant == "s") * seed
    norms = {"measure": "tasks", "norm": "l2", "normalisation": "unit"}
    sizes = norms | {"quantity": "norm_by_size"}
    pixels = {
        "measure": "pixels",
        "tasks": ["seg"],
        "norm": "l2",
        "quantity": "gradient_norm",
    }
    return [
        norms | {"quantity": "slope", "value": slope},
        sizes | {"count": 2, "value": 0.8, "predicted": 0.8},
        sizes | {"count": 3, "value": 0.6, "predicted": 0.5},
        norms | {"quantity": "slope", "norm": "l1", "value": -0.2},
        pixels | {"count": 1, "value": 3.0 + seed},
        pixels | {"count": 64, "value": 1.0},
    ]


def effect(tmp_path, text, **settings):
    study = study_with(tmp_path, CLAIM + text)
    results = write(tmp_path / "work", study, **settings)
    (claim,) = claim_file.read(study)
    return effects.of(claim, results)


def test_better_than_is_a_mean_over_models_and_radii(tmp_path):
    result = effect(tmp_path, COMPARED + 'than = ["s"]')
    # In seed 0: 0.22 minus 0.20.
    np.testing.assert_allclose(result.by_seed, [0.02, 0.02, 0.02, 0.025, 0.03])
    assert result.mean == pytest.approx(0.023)
    assert set(result.clean) == {"s", "s+d"}
    np.testing.assert_allclose(result.clean["s"], 0.6)


def test_matched_takes_the_model_that_is_as_good_on_clean_images(tmp_path):
    result = effect(tmp_path, COMPARED + 'than = { matched = ["s", "early"] }')
    # 0.52 is nearer to 0.50 than to 0.60; 0.62 is nearer to 0.61.
    np.testing.assert_allclose(result.by_seed, [0.0, 0.01, 0.02, 0.035, 0.02])


def test_matched_waits_for_all_candidates(tmp_path):
    text = COMPARED + 'than = { matched = ["s", "early"] }'
    result = effect(tmp_path, text, missing_models=[("early", 1)])
    np.testing.assert_allclose(result.by_seed, [0.0, np.nan, 0.02, 0.035, 0.02])


@pytest.mark.parametrize("before", ['[variants."s"]', 'attack = ["pgd", "apgd"]'])
def test_models_that_agree_with_themselves_cannot_be_matched(tmp_path, before):
    """Their clean values are the best possible; for all attacks, or for one."""
    table = "[attack]\n" if "variants" in before else ""
    study = STUDY.replace(before, f'{table}targets = "own"\n{before}', 1)
    text = CLAIM + COMPARED + 'than = { matched = ["s", "early"] }'
    with pytest.raises(InputError, match="than must not be matched where .* 'pgd'"):
        claims.check(study_with(tmp_path, text, study))
    claims.check(study_with(tmp_path, CLAIM + COMPARED + 'than = ["s"]', study))


def test_a_misspelt_variant_of_a_matched_claim_is_named(tmp_path):
    text = CLAIM + COMPARED + 'than = { matched = ["s", "early"] }'
    with pytest.raises(InputError, match="claim 'E4'.* 'sd'"):
        claims.check(study_with(tmp_path, text.replace("s+d", "sd")))


@pytest.mark.parametrize("again", [False, True])
def test_a_claim_on_images_made_on_several_models_is_undecided(tmp_path, again):
    attack = '[attacks."moved"]\nsource = "s"\nattack_tasks = ["seg"]\neps = [2]\n'
    text = COMPARED.replace('"pgd"', '"moved"', 1).replace("[2, 4]", "[2]")
    text = text.replace('algorithm = "pgd"\n', "") + 'than = ["early"]'
    study = study_with(tmp_path, attack + CLAIM + text)
    (claim,) = claim_file.read(study)
    sources = {"s+d": "first", "early": "second" if again else "first"}
    records = tuple(
        {"spec": "moved", "seed": 3, "variant": name, "source_fingerprint": source}
        for name, source in sources.items()
    )
    reason = "Its numbers of s, seed 3, are of several models." if again else ""
    assert claims._mixture_reason(claim, Results(study, tmp_path, records)) == reason


def test_what_is_only_rounding_is_no_effect(tmp_path):
    """A sum that is 0 except for -1e-16 of rounding, the same in every seed."""
    points = ("weight = 0.3", "weight = 0.8", "weight = -1.1")
    terms = ", ".join(f'{{ {weight}, variant = "s", eps = 0 }}' for weight in points)
    text = f'attack = "pgd"\ntask = "seg"\nmetric = "miou"\nterms = [{terms}]'
    assert 0.3 * 0.6 + 0.8 * 0.6 - 1.1 * 0.6 != 0
    result = effect(tmp_path, text)
    assert not result.by_seed.any()


def test_relative_vulnerability(tmp_path):
    result = effect(tmp_path, COMPARED + 'than = ["s"]\nrelative = true')
    vulnerability = np.mean([(0.52 - 0.33) / 0.52, (0.52 - 0.11) / 0.52])
    reference = np.mean([(0.60 - 0.30) / 0.60, (0.60 - 0.10) / 0.60])
    assert result.by_seed[0] == pytest.approx(reference - vulnerability)


def test_terms_inherit_the_claims_fields(tmp_path):
    text = """
attack = "pgd"
task = "seg"
metric = "miou"
algorithm = "pgd"
eps = 4
terms = [
  { weight = 1, variant = "s+d" },
  { weight = -1, variant = "s" },
  { weight = -1, variant = "s+d", algorithm = "apgd" },
  { weight = 1, variant = "s", algorithm = "apgd", eps = [2, 4] },
]
"""
    result = effect(tmp_path, text)
    # Of s under APGD: 0.29 and 0.09.
    assert result.by_seed[0] == pytest.approx(0.01 - 0.10 + 0.19)


def measured(tmp_path, text):
    fields = f'attack = "theory", variants = ["s+d"], {text}'
    return effect(tmp_path, f"measure = {{ {fields} }}")


def test_measures(tmp_path):
    fields = 'norm = "l2", normalisation = "unit"'
    slope = f'measure = "tasks", quantity = "slope", {fields}'
    result = measured(tmp_path / "a", f"{slope}, sign = -1, reference = -0.1")
    np.testing.assert_allclose(result.by_seed, [0.30, 0.31, 0.32, 0.33, 0.34])
    assert -0.40 - 0.01 - -0.41 != 0  # In seed 1, by rounding alone.
    assert measured(tmp_path / "d", f"{slope}, reference = -0.41").by_seed[1] == 0
    norm = f'measure = "tasks", quantity = "norm_by_size", count = [2, 3], {fields}'
    result = measured(tmp_path / "b", f'{norm}, ratio_to = "predicted", reference = 1')
    np.testing.assert_allclose(result.by_seed, 0.1)  # (1 + 1.2) / 2 - 1
    pixels = 'measure = "pixels", quantity = "gradient_norm", count = 1, norm = "l2"'
    pixels += ', tasks = ["seg"]'
    result = measured(tmp_path / "c", f"{pixels}, minus = {{ count = 64 }}")
    np.testing.assert_allclose(result.by_seed, [2, 3, 4, 5, 6])


def test_a_measure_of_one_variant_less_that_of_another(tmp_path):
    study = STUDY.replace('variants = ["s+d"]', 'variants = ["s+d", "s"]')
    slope = 'measure = "tasks", quantity = "slope", norm = "l2", normalisation = "unit"'
    fields = f'attack = "theory", variants = ["s+d"], {slope}'
    text = f'measure = {{ {fields}, minus = {{ variants = ["s"] }} }}'
    results = write(tmp_path / "work", study_with(tmp_path, CLAIM + text, study))
    (claim,) = claim_file.read(study_with(tmp_path, CLAIM + text, study))
    by_seed = effects.of(claim, results).by_seed
    np.testing.assert_allclose(by_seed, [0, 0.02, 0.04, 0.06, 0.08], atol=1e-12)


def test_a_list_that_is_not_all_there_gives_no_number(tmp_path):
    fields = 'norm = "l2", normalisation = "unit"'
    norm = f'measure = "tasks", quantity = "norm_by_size", {fields}'
    assert measured(tmp_path / "a", f"{norm}, count = [2, 3]").n == 5
    assert measured(tmp_path / "b", f"{norm}, count = [2, 3, 4]").n == 0


def of_corruptions(tmp_path, metric, **directions):
    """(study, results) of a claim on depth; `directions` is {metric: better}."""
    text = (
        'measure = { attack = "theory", variants = ["s+d"], measure = "corruptions", '
        f'quantity = "mean_corrupted", tasks = ["depth"], metric = {metric} }}'
    )
    study = study_with(tmp_path, CLAIM + text)
    write(tmp_path / "work", study)
    fields = {
        "measure": "corruptions",
        "quantity": "mean_corrupted",
        "tasks": ["depth"],
    }
    records = [
        fields | {"metric": name, "better": direction, "value": i + 1.0}
        for i, (name, direction) in enumerate(directions.items())
    ]
    for path in (tmp_path / "work").rglob("measures.json"):
        path.write_text(json.dumps(records))
    return study, Results.read(tmp_path / "work")


def test_a_metric_of_errors_is_negated_in_measures_too(tmp_path):
    study, results = of_corruptions(tmp_path, '"mae"', mae="lower")
    (claim,) = claim_file.read(study)
    np.testing.assert_array_equal(effects.of(claim, results).by_seed, -1.0)
    reference_claim = dataclasses.replace(
        claim, measure={**claim.measure, "reference": 0.9}
    )
    np.testing.assert_allclose(effects.of(reference_claim, results).by_seed, -0.1)


def test_lists_of_metrics_are_averaged_and_said_in_words(tmp_path):
    directions = {"mae": "lower", "rmse": "lower"}
    _, results = of_corruptions(tmp_path, '["mae", "rmse"]', **directions)
    (verdict,) = claims.evaluate(results)
    assert (verdict.effect, verdict.negated) == (-1.5, True)
    text = verdicts._quantity(verdict, [])
    assert text == "corruptions: mean_corrupted depth mae and rmse, negated"


def test_words_go_by_what_records_say_of_a_metric(tmp_path):
    """A user's own metric may have any name."""
    _, results = of_corruptions(tmp_path, '"mae"', mae="higher")
    (verdict,) = claims.evaluate(results)
    assert verdict.effect == 1
    assert verdicts._quantity(verdict, []).endswith("depth mae")


@pytest.mark.parametrize(
    ("metric", "more"),
    [('["mae", "delta1"]', ""), ('"mae"', ', minus = { metric = "delta1" }')],
)
def test_metrics_of_both_directions_are_refused(tmp_path, metric, more):
    study, results = of_corruptions(tmp_path, '"mae"', mae="lower", delta1="higher")
    (claim,) = claim_file.read(study)
    changes = tomllib.loads(f"metric = {metric}{more.replace(',', chr(10), 1)}")
    mixed_claim = dataclasses.replace(claim, measure={**claim.measure, **changes})
    with pytest.raises(InputError, match="'E4': the metrics .* must agree in whether"):
        effects.of(mixed_claim, results)
    content = study.to_dict()
    content["attack"]["metrics"] = ["delta1"]
    content["claims"][0]["measure"] |= changes
    with pytest.raises(InputError, match="measure.*: the metrics .* must agree"):
        claims.check(design.Study.from_dict(content))


def test_models_that_are_no_control_for_clean_accuracy_decide_nothing(tmp_path):
    text = CLAIM + COMPARED + 'than = { matched = ["s", "early"] }\nmargin = '
    # Clean, s+d is .02 better than early, and .01 in the last seed.
    for margin, differs in ((0.0181, False), (0.0179, True)):
        study = study_with(tmp_path, text + str(margin))
        (tmp_path / str(margin)).mkdir()
        results = write(tmp_path / str(margin), study)
        (verdict,) = claims.evaluate(results)
        np.testing.assert_allclose(verdict.gaps, [0.02, 0.02, 0.02, 0.02, 0.01])
        claim, effect = verdict.claim, effects.of(verdict.claim, results)
        reason = claims._gap_reason(claim, effect)
        assert reason.startswith("No model has the same clean accuracy") == differs
        (row,) = verdicts.rows([verdict], results.seeds, [], ())
        assert row.gaps.endswith(
            "models, by seed: 0.0200, 0.0200, 0.0200, 0.0200, 0.0100"
        )
        relative_claim = dataclasses.replace(claim, relative=True)
        gaps = effects.of(relative_claim, results).gaps
        np.testing.assert_allclose(gaps[[0, 4]], [0.02 / 0.50, 0.01 / 0.61])


def test_clean_values_above_and_below_those_of_the_nearest_do_not_cancel(
    tmp_path, monkeypatch
):
    """Signed gaps average to 0 over seeds of s+d, and over both models of a seed."""
    monkeypatch.setitem(MIOU, ("s+d", 0), [0.65, 0.55, 0.65, 0.55, 0.60])
    monkeypatch.setitem(MIOU, ("early", 0), [0.55, 0.65, 0.55, 0.65, 0.60])
    for number, better in enumerate(('["s+d"]', '["s+d", "early"]')):
        comparison = COMPARED.replace('["s+d"]', better)
        for margin, differs in ((0.039, True), (0.041, False)):
            text = comparison + f'than = {{ matched = ["s"] }}\nmargin = {margin}'
            study = study_with(tmp_path, CLAIM + text)
            folder = tmp_path / f"{number}-{margin}"
            folder.mkdir()
            results = write(folder, study)
            (claim,) = claim_file.read(study)
            effect = effects.of(claim, results)
            np.testing.assert_allclose(effect.gaps, [0.05, 0.05, 0.05, 0.05, 0])
            assert bool(claims._gap_reason(claim, effect)) == differs


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in "abcd":
        (tmp_path / name).mkdir()


def test_cells_that_are_not_done_leave_seeds_out(tmp_path):
    result = effect(
        tmp_path, COMPARED + 'than = ["s"]', missing_models=[("s", 1), ("s+d", 3)]
    )
    np.testing.assert_allclose(result.by_seed, [0.02, np.nan, 0.02, np.nan, 0.03])
    assert result.n == 3


def test_several_records_of_a_measure_that_fit_are_refused(tmp_path):
    """`claims.check` finds this first, unless records are of another version."""
    results = write(tmp_path / "work", study_with(tmp_path, ""))
    measure = {"attack": "theory", "variants": ("s+d",), "measure": "tasks"}
    measure |= {"quantity": "slope", "sign": 1.0, "reference": 0.0, "minus": {}}
    measure |= {"field": "value", "ratio_to": ""}
    with pytest.raises(InputError, match=r"E4.*norm \(l1, l2\)"):
        effects.of(claim(measure=measure), results)
    factor_measure = measure | {"norm": "l2", "field": "factor"}
    assert effects.of(claim(measure=factor_measure), results).n == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('better = ["s+d"]', 'better = ["s+D"]'), "did you mean 's\\+d'"),
        (('attack = "pgd"', 'attack = "pdg"'), "did you mean 'pgd'"),
        (('task = "seg"', 'task = "depth"'), "no metric of depth 'miou'"),
        (('metric = "miou"', 'metric = "iou"'), "did you mean 'miou'"),
        (("eps = [2, 4]", "eps = [2, 3]"), "no eps of attack 'pgd' 3; there are 2, 4"),
        (('metric = "miou"', 'metrics = "miou"'), "did you mean 'metric'"),
        (('better = ["s+d"]', ""), "one of better"),
        (('attack = "pgd"', 'attack = "theory"'), "'theory' of the study only meas"),
        (('better = ["s+d"]', 'attacked = ["depth"]\nbetter = ["s+d"]'), "attacked of"),
        (('algorithm = "pgd"', 'algorithm = "mim"'), "there are pgd, apgd"),
        (
            ('algorithm = "pgd"\n', ""),
            r"several .* choose one with algorithm \(apgd, pgd\)",
        ),
        (('algorithm = "pgd"', 'algorithm = "pgd"\nsteps = 7'), "no steps of"),
        (('algorithm = "pgd"', 'algorithm = "pgd"\nsteps = [50]'), r"got \[50\]"),
        (("eps = [2, 4]", "eps = []"), "eps must hold one or more"),
        (('better = ["s+d"]', "measure = 3"), "than must not be given with measure"),
        (('better = ["s+d"]', "terms = []"), "than must not be given with terms"),
    ],
)
def test_mistakes_in_a_claim_are_found_before_anything_runs(tmp_path, change, message):
    text = COMPARED.replace(*change) + 'than = ["s"]'
    study = study_with(tmp_path, "")
    study = design.Study.from_dict(
        study.to_dict() | {"claims": tomllib_claims(CLAIM + text)}
    )
    with pytest.raises(InputError, match=f"hand.toml, claim 'E4': .*{message}"):
        claims.check(study)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("measure = 3", "measure must be a table, got 3"),
        ("terms = [{ weight = 1, variant = [] }]", "variant must name one or more"),
    ],
)
def test_mistakes_in_the_way_of_a_claim(tmp_path, way, message):
    text = COMPARED.replace('better = ["s+d"]', way)
    with pytest.raises(InputError, match=message):
        claims.check(study_with(tmp_path, CLAIM + text))


PIXELS = 'measure = "pixels", quantity = "gradient_norm", tasks = ["seg"]'
COSINE = 'measure = "tasks", quantity = "mean_cosine"'
CORRUPTED = (
    'measure = "corruptions", quantity = "corrupted", tasks = ["seg"], metric = "miou"'
)
ATTACKED = (
    'measure = "pixels", quantity = "attacked_pixels", tasks = ["seg"], count = 4'
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('measure = "taks", quantity = "slope"', "did you mean 'tasks'"),
        ('measure = "tasks", quantity = "sloep"', "did you mean 'slope'"),
        ('measure = "tasks", quantity = "slope"', "norm must be given .* slope is"),
        ('measure = "pixels", quantity = "rho", norm = "l1"', "tasks must be given"),
        (
            'measure = "tasks", quantity = "mean_cosine", field = "valeu"',
            "field of mean_cosine 'valeu'; there are value; did you",
        ),
        (
            'measure = "tasks", quantity = "cosine", tasks = ["seg", "normal"]',
            "no task of variant 's\\+d' 'normal'",
        ),
        (
            'measure = "tasks", quantity = "mean_cosine", minus = { variants = ["s"] }',
            "no variant of 'theory' 's'; there are s\\+d",
        ),
        (
            'measure = "tasks", quantity = "rho", variant = "s"',
            "did you mean 'variants'",
        ),
        (
            f'{CORRUPTED}, severity = 1, corruption = ["jpg"]',
            "no corruption 'jpg'; .*did you mean 'jpeg'",
        ),
        (
            'measure = "tasks", quantity = "slope", normalisation = "unit", '
            'norm = "linf"',
            "no norm 'linf'; there are l2, l1",
        ),
        (
            'measure = "tasks", quantity = "slope", norm = "l2", '
            'normalisation = "units"',
            "no normalisation 'units'; .*did you mean 'unit'",
        ),
        (
            f'{CORRUPTED}, severity = [5, 6], corruption = "jpeg"',
            "no severity 6; there are 1, 2, 3, 4, 5",
        ),
        # Keys that no record of the quantity has, so that none would ever fit.
        (f'{COSINE}, normalisation = "unit"', "normalisation .* no mean_cosine has"),
        (f'{COSINE}, norm = "l1"', "no norm 'l1'; there are l2"),
        (f"{COSINE}, count = 2", "count must not be given, for no mean_cosine has one"),
        (f'{COSINE}, tasks = ["seg"]', "tasks of mean_cosine seg; there are none"),
        (
            'measure = "tasks", quantity = "cosine", tasks = ["seg"]',
            "no group of tasks of cosine seg; there are depth\\+seg, reshading\\+seg, ",
        ),
        (
            PIXELS.replace("]", ', "depth"], norm = "l2", count = 4'),
            "tasks of gradient_norm depth\\+seg; there are seg, depth, reshading",
        ),
        (f'{PIXELS}, norm = "l2", count = "all"', "count must be a number, got 'all'"),
        (f'{PIXELS}, norm = "l2", count = []', "count must hold one or more"),
        (f"{COSINE}, minus = {{ variants = [] }}", "variants must name one or more"),
        (
            'measure = "tasks", quantity = "norm_by_size", count = 5, norm = "l2", '
            'normalisation = "unit"',
            "no count 5; there are 1, 2, 3, 4",
        ),
        (f'{PIXELS}, norm = "l2", count = 3', "no count 3; there are 1, 4, 16, 64"),
        (f'{PIXELS}, norm = "linf", count = 4', "no norm 'linf'; there are l2, l1"),
        (
            'measure = "pixels", quantity = "slope", tasks = ["seg"], norm = "linf"',
            "no norm 'linf'; there are l2, l1",
        ),
        (f'{ATTACKED}, metric = "mIoU"', "no metric 'mIoU'; there are pixel_accuracy"),
        (f"{COSINE}, within = -0.1", "within must be 0 or more; got -0.1"),
        (f"{COSINE}, sign = 0", "sign must not be 0, which makes every effect 0"),
        (f'{ATTACKED}, metric = "loss", norm = "l2"', "no norm 'l2'; there are linf"),
    ],
)
def test_mistakes_in_a_measure_are_found_before_anything_runs(
    tmp_path, fields, message
):
    text = f'measure = {{ attack = "theory", variants = ["s+d"], {fields} }}'
    with pytest.raises(
        InputError, match=f"hand.toml, claim 'E4', measure.*: .*{message}"
    ):
        claims.check(study_with(tmp_path, CLAIM + text))


def test_a_claim_of_nearness_has_no_margin(tmp_path):
    text = f'measure = {{ attack = "theory", variants = ["s+d"], {COSINE}, %s }}\n'
    claims.check(study_with(tmp_path, CLAIM + text % "within = 0"))
    claims.check(study_with(tmp_path, CLAIM + text % "sign = -1" + "margin = 0.1"))
    study = study_with(tmp_path, CLAIM + text % "within = 0.1" + "margin = 0.1")
    with pytest.raises(InputError, match="margin must not be given with within"):
        claims.check(study)


@pytest.mark.parametrize(
    ("size", "count", "known"),
    [
        ("", 12288, True),  # All pixels of images of unknown size.
        ("24x32", 768, True),
        ("24x32", 1024, False),
        ("24x32", 256, True),
    ],
)
def test_numbers_of_pixels_are_those_of_the_images(tmp_path, size, count, known):
    study = STUDY.replace("measure =", f'image_size = "{size}"\nmeasure =')
    fields = f'attack = "theory", variants = ["s+d"], {ATTACKED}, metric = "loss"'
    text = f"measure = {{ {fields.replace('count = 4', f'count = {count}')} }}"
    study = study_with(tmp_path, CLAIM + text, study)
    if known:
        claims.check(study)
        return
    with pytest.raises(InputError, match="no count 1024; there are 1, .*, 256, 768"):
        claims.check(study)


def test_the_margin_of_a_relative_claim_is_a_share(tmp_path):
    text = CLAIM + COMPARED + 'than = ["s"]\nmargin = 1.0\n'
    (claim,) = claim_file.read(study_with(tmp_path, text))
    assert claim.margin == 1
    with pytest.raises(InputError, match=r"margin must be below 1 .* got 1\."):
        claim_file.read(study_with(tmp_path, text + "relative = true"))


def tomllib_claims(text):
    return tomllib.loads(text)["claims"]


def test_images_are_resampled_together(tmp_path):
    """In a study with rows, against a plain loop over resamples and seeds."""
    text = (
        study_fixture.EXAMPLE
        + CLAIM.replace("E4", "mine")
        + 'attack = "pgd50"\neps = [1, 4]\n'
    )
    text += 'task = "seg"\nmetric = "miou"\nbetter = ["s+d"]\nthan = ["s"]\n'
    study = study_fixture.example(tmp_path / "work", text)
    results = Results.read(tmp_path / "work")
    claim = claim_file.read(study)[-1]
    result = effects.of(claim, results)
    assert result.over == "seeds and images"
    images = statistics.resampled_images(12, effects.RESAMPLES, 0).astype(int)
    seeds = statistics.resampled_seeds(5, effects.RESAMPLES, 0).astype(int)
    (miou,) = [m for m in TASKS["seg"].metrics if m.name == "miou"]
    for i in range(5):
        indices = np.repeat(np.arange(12), images[i])
        by_seed = []
        for seed in study.seeds:
            value = {}
            for variant in ("s", "s+d"):
                value[variant] = np.mean(
                    [
                        miou.value(
                            study_fixture.rows_of(results, variant, seed, eps)[
                                indices
                            ].sum(axis=0)
                        )
                        for eps in (1, 4)
                    ]
                )
            by_seed.append(value["s+d"] - value["s"])
        assert result.draws[i] == pytest.approx(np.repeat(by_seed, seeds[i]).mean())


def test_groups_of_images_are_resampled_whole(tmp_path):
    """Against a plain loop, on images in groups of three per city."""
    text = (
        study_fixture.EXAMPLE
        + CLAIM.replace("E4", "mine")
        + 'attack = "pgd50"\neps = 4\ntask = "seg"\nmetric = "miou"\n'
        + 'better = ["s+d"]\nthan = ["s"]\n'
    )
    study = study_fixture.example(tmp_path / "work", text)
    units = np.arange(12) % 4
    for path in (tmp_path / "work").glob("**/results.json"):
        records = json.loads(path.read_text())
        for record in records:
            record["interval_over"] = "4 cities"
        path.write_text(json.dumps(records))
    for path in (tmp_path / "work").glob("**/cells/*.npz"):
        with np.load(path) as arrays:
            arrays = dict(arrays)
        np.savez(path, unit=units, **arrays)
    results = Results.read(tmp_path / "work")
    claim = claim_file.read(study)[-1]
    result = effects.of(claim, results)
    assert (result.over, result.units) == ("seeds and 4 cities", 4)
    cities = statistics.resampled_images(4, effects.RESAMPLES, 0).astype(int)
    seeds = statistics.resampled_seeds(5, effects.RESAMPLES, 0).astype(int)
    (miou,) = [m for m in TASKS["seg"].metrics if m.name == "miou"]
    for i in range(3):
        by_seed = []
        for seed in study.seeds:
            rows, reference_rows = (
                sum(
                    study_fixture.rows_of(results, v, seed, 4)[units == city].sum(0)
                    for city in np.repeat(np.arange(4), cities[i])
                )
                for v in ("s+d", "s")
            )
            by_seed.append(miou.value(rows) - miou.value(reference_rows))
        assert result.draws[i] == pytest.approx(np.repeat(by_seed, seeds[i]).mean())
    low, high = np.percentile(result.draws, (2.5, 97.5))
    expected = resampling.widened((low, high), result.mean, 4, 0.95)
    np.testing.assert_allclose(result.interval, expected)


def claim(**fields):
    return Claim("E4", "someone", "something", **fields)


@pytest.mark.parametrize(
    ("n", "interval", "p", "opposite", "margin", "verdict", "reason"),
    [
        (6, (0.1, 0.3), 0.03, 1.0, 0.0, "holds", "Positive over 6 seeds"),
        (6, (0.1, 0.3), 0.03, 1.0, 0.09, "holds", "Above 0.09 over 6 seeds"),
        (6, (0.1, 0.3), 0.03, 1.0, 0.1, "undecided", "includes 0.1, the smallest"),
        (6, (0.1, 0.3), 0.03, 1.0, 0.25, "undecided", "includes 0.25, the smallest"),
        (6, (0.1, 0.3), 0.06, 1.0, 0.0, "undecided", "p is 0.06 after correction"),
        (6, (0.1, 0.3), 0.06, 1.0, 0.09, "undecided", "above 0.09, but p is 0.06"),
        (6, (-0.1, 0.3), 0.03, 1.0, 0.0, "undecided", "The interval includes 0"),
        (4, (0.1, 0.3), 1 / 16, 1.0, 0.0, "undecided", "5 are needed"),
        (3, (0.1, 0.3), 0.01, 1.0, 0.0, "undecided", "3 of the 4 seeds"),
        (6, (-0.3, -0.1), 1.0, 0.03, 0.0, "does not hold", "Negative over 6 seeds"),
        (6, (-0.3, -0.1), 1.0, 0.06, 0.0, "undecided", "below 0, but p is 0.06"),
        (6, (-0.1, 0.02), 0.5, 0.02, 0.05, "does not hold", "): too small to matter."),
        (
            6,
            (-0.2, -0.1),
            0.5,
            0.02,
            0.05,
            "does not hold",
            "whole interval is below -0.05",
        ),
        (6, (-0.2, -0.04), 0.5, 0.02, 0.05, "does not hold", "Below 0.05 over 6 seeds"),
        (6, (-0.1, 0.02), 0.5, 0.06, 0.05, "undecided", "below 0.05, but p is 0.06"),
    ],
)
def test_verdicts_at_their_borders(n, interval, p, opposite, margin, verdict, reason):
    effect = sum(interval) / 2
    word, text = claims.judge(claim(margin=margin), effect, interval, n, p, opposite)
    assert word == verdict
    assert reason in text


def test_reasons_of_relative_claims_are_in_points():
    relative_claim = claim(margin=0.05, relative=True)
    for interval, p, text in (
        (
            (-0.2, -0.1),
            0.02,
            "Below 5 points over 6 seeds (p 0.02); the whole interval is below -5",
        ),
        (
            (-0.2, 0.02),
            0.02,
            "Below 5 points over 6 seeds (p 0.02): too small to matter.",
        ),
        ((-0.2, 0.06), 0.06, "The interval includes 5 points, the smallest effect"),
    ):
        assert text in claims.judge(relative_claim, -0.1, interval, 6, 0.9, p)[1]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.05, 0.09), "holds"),
        ((-0.05, 0.11), "undecided"),
        ((0.11, 0.2), "does not hold"),
        ((-0.3, -0.11), "does not hold"),
    ],
)
def test_nearness(interval, verdict):
    near_claim = claim(measure={"within": 0.1, "reference": 1.0})
    assert claims.judge(near_claim, 0.0, interval, 4, 1.0, 1.0)[0] == verdict
    assert claims.judge(near_claim, 0.0, interval, 3, 1.0, 1.0)[0] == "undecided"


def test_nothing_to_go_by():
    assert claims.judge(claim(), None, None, 0, 1.0, 1.0) == (
        "undecided",
        "No seed has all the numbers that this claim needs.",
    )


def test_evaluate_corrects_over_all_claims(tmp_path):
    text = CLAIM + COMPARED + 'than = ["s"]'
    second = CLAIM.replace("E4", "E5") + COMPARED.replace("s+d", "s") + 'than = ["s+d"]'
    study = study_with(tmp_path, text + second)
    first, opposite = claims.evaluate(write(tmp_path / "work", study))
    assert (first.n, first.p) == (5, 1 / 32)
    # The opposite claim counts, too: with all signs flipped, its t is as large.
    assert first.p_corrected == 2 / 32
    assert first.verdict == opposite.verdict == "undecided"
    assert first.effect == pytest.approx(-opposite.effect) == pytest.approx(0.023)


@pytest.mark.parametrize("name", list(study_file.shipped()))
def test_studies_that_come_with_the_package_can_be_judged(name):
    study = study_file.load(name)
    claims.check(study)
    assert len(study.seeds) >= 5  # Fewer could never say that a claim holds.


def test_power_of_a_claim_against_scipy():
    by_seed = np.array([0.02, np.nan, -0.01, 0.03, 0.0, 0.01, 0.02, -0.02, 0.01])
    values = by_seed[~np.isnan(by_seed)]
    result = claims.power(by_seed, 0.01, claims=10)
    assert result.deviation == pytest.approx(values.std(ddof=1))
    # 2/2^6 is the first below .05: with all signs flipped, another t may be as large.
    assert (result.least, len(values)) == (6, 8)
    critical = scipy.stats.t.ppf(1 - 0.005, 7)  # A tenth of .05 for each of ten claims.
    shift = (result.detectable - 0.01) * np.sqrt(8) / values.std(ddof=1)
    assert scipy.stats.nct.sf(critical, 7, shift) == pytest.approx(0.9, abs=1e-5)
    n, ratio = result.seeds_needed, 0.01 / values.std(ddof=1)
    for count, suffices in ((n - 1, False), (n, True)):
        critical = scipy.stats.t.ppf(1 - 0.005, count - 1)
        power = scipy.stats.nct.sf(critical, count - 1, ratio * np.sqrt(count))
        assert (power >= 0.9) == suffices


def test_power_needs_two_seeds_and_a_margin():
    assert claims.power(np.array([0.1, np.nan]), 0.01, 1) is None
    power = claims.power(np.array([0.1, 0.2]), 0.0, 1)
    assert (power.least, power.detectable, power.seeds_needed) == (5, None, None)


def test_five_seeds_are_enough_for_one_claim_but_not_among_several():
    by_seed = 0.1 + 1e-4 * np.arange(5)
    power_1, power_2 = (
        claims.power(by_seed, 0.01, 1),
        claims.power(by_seed, 0.01, 2),
    )
    assert (power_1.least, power_1.seeds_needed) == (5, 5)
    assert power_1.detectable > 0.01
    assert (power_2.least, power_2.seeds_needed) == (6, 6)
    assert power_2.detectable is None
    opposite = -0.1 - 1e-5 * np.arange(5)
    assert claims.tests([by_seed])[1, 0] <= claims.ALPHA
    assert claims.tests([by_seed, opposite])[1, 0] > claims.ALPHA


def test_what_seeds_find_is_found_as_often_as_is_said():
    """Random effects at `detectable` are found above the margin, those at 0 below."""
    rng, margin, n, claim_count = np.random.default_rng(0), 0.01, 8, 10
    deviation = 0.004
    by_seed = np.array([-1.0, 1.0] * 4) * deviation * np.sqrt(7 / 8)
    power = claims.power(by_seed, margin, claim_count)
    assert power.deviation == pytest.approx(deviation)
    for effect, sign in ((power.detectable, 1), (0.0, -1)):
        seeds = n if sign > 0 else power.seeds_needed
        count = 0
        for _ in range(60):
            draws = rng.normal(effect, deviation, (claim_count, seeds))
            p = claims.tests([sign * (row - margin) for row in draws])[1]
            count += np.sum(p <= claims.ALPHA)
        assert count / (60 * claim_count) > 0.85  # Nine times in ten, or more often.


def test_an_effect_at_the_margin_is_not_said_to_be_above():
    """At most 5 % of studies say so of one or more of ten such claims."""
    rng, margin = np.random.default_rng(1), 0.01
    errors = 0
    for _ in range(300):
        draws = rng.normal(margin, 0.003, (10, 6))
        errors += (claims.tests(list(draws - margin))[1] <= claims.ALPHA).any()
    assert errors / 300 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_claims_that_nothing_can_decide_do_not_stand_in_the_way_of_others():
    six_seeds = np.array([0.1, 0.11, 0.09, 0.1, 0.12, 0.1])
    two_seeds = np.array([0.1, 0.1001, *[np.nan] * 4])  # Two seeds, but a large t.
    p_values = claims.tests([six_seeds])
    (p, p_two), (corrected, corrected_two) = claims.tests([six_seeds, two_seeds])
    assert (p, corrected) == tuple(p_values[:, 0]) == (1 / 64, 1 / 64)
    assert (p_two, corrected_two) == (1 / 4, 1)


def test_main_claim_is_read_and_only_one(tmp_path):
    than = 'than = ["s"]\n'
    claim = CLAIM + COMPARED + than
    study = study_with(tmp_path, claim + claim.replace("E4", "E5") + "main = true\n")
    assert [c.main for c in claim_file.read(study)] == [False, True]
    text = claim + "main = true\n" + claim.replace("E4", "E5") + "main = true\n"
    with pytest.raises(InputError, match="only one claim must be main"):
        claim_file.read(study_with(tmp_path, text))
