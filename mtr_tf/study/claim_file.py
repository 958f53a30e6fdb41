# SPDX-License-Identifier: Apache-2.0
"""Claims in a study's file, and the number that each gives per seed.

    [[claims]]
    id = "E4"                       # what plots and files call it
    source = "Mao et al. 2020"      # who claims it
    statement = "..."               # what is claimed
    attack = "pgd"                  # an attack of the study; then radii, task, metric
    eps = [2, 4]
    task = "seg"
    metric = "miou"
    better = ["s+d", "s+A"]         # one of: better and than, terms, measure
    than = ["s"]                    # or { matched = ["s", "s early"] }

A positive effect supports the claim. Metrics where lower is better are negated, so that
higher is always better. With `relative`, minus the relative vulnerability, (attacked -
clean) / clean, takes the place of the metric.

- `better` and `than`: the mean over the models of `better` and radii, minus the mean
  over those of `than`. With `matched`, each model of `better` is compared, per seed,
  with the one of the matched models whose clean value is nearest to its own: the
  control for clean accuracy.
- `terms`: a sum of such means, each times its `weight`. Each term has `variant` (one or
  several) and the fields in which it differs from the claim.
- `measure`: `sign` times (`quantity` of measures.json minus `reference`); metrics where
  lower is better are negated here, too. Its other keys choose records. A list of
  values is averaged over; each value must be there, and metrics must agree in their
  direction. `field` names the field to read (value), which is divided by the field
  `ratio_to` if that is given. `minus` is a table of keys, and of `variants`, that
  choose what is subtracted. With `within`, the claim is that the number is that near
  to `reference`, and there is no `margin`.
- `margin`: the smallest effect that matters; for `relative` claims, as a share.
- `main`: whether the report leads with this claim; without one, it leads with the first
  claim that algebra does not decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.study.claim_checks import MEASURE
from mtr_tf.study.claim_checks import check_attack
from mtr_tf.study.claim_checks import check_measure
from mtr_tf.study.claim_checks import metrics_of
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study
from mtr_tf.study.results import CHOICES
from mtr_tf.study.toml_table import Table

_POINT = ("attack", "eps", "task", "metric", "attacked", *CHOICES)
_CLAIM = ("id", "source", "statement", *_POINT, "better", "than", "terms", "measure")
_KEYS = (*_CLAIM, "relative", "margin", "algebra", "main")
_TERM = ("weight", "variant", *_POINT)
# Keys of a measure beside `MEASURE`: where its records are, and how they are used.
_USE_KEYS = ("attack", "variants", "sign", "reference", "within", "field", "ratio_to")
_WAYS = ("better", "terms", "measure")


@dataclasses.dataclass(frozen=True)
class Point:
    """One number per seed: a metric of a model under an attack; at eps 0, clean."""

    variant: str
    attack: str
    eps: float
    task: str
    metric: str
    attacked: tuple[str, ...]
    choice: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Term:
    """The mean over some points, with a weight."""

    weight: float
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim; see the module.

    Attributes:
      id: Its name.
      source: Who claims it.
      statement: What is claimed.
      attack: Name of the first attack of the claim.
      task: The first task.
      metric: The first metric.
      attacked: The first group of attacked tasks.
      better: Variants that are claimed to be more robust.
      than: Variants that they are compared with.
      matched: Instead of `than`, the variants from which the one of the nearest clean
        value is taken.
      terms: What is added up; empty for a measure. With `matched`, terms come in pairs:
        one model of `better`, then all candidates.
      measure: The measure; empty if there is none.
      relative: Whether relative vulnerabilities are compared.
      margin: The smallest effect that matters, at least 0.
      algebra: Whether algebra alone decides it, so that its number is the finding.
      main: Whether the report leads with it.
    """

    id: str
    source: str
    statement: str
    attack: str = ""
    task: str = ""
    metric: str = ""
    attacked: tuple[str, ...] = ()
    better: tuple[str, ...] = ()
    than: tuple[str, ...] = ()
    matched: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    measure: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    relative: bool = False
    margin: float = 0.0
    algebra: bool = False
    main: bool = False

    @property
    def within(self) -> float | None:
        """How near a measure is claimed to be to its reference; None if it is not."""
        return self.measure.get("within")

    @property
    def variants(self) -> tuple[str, ...]:
        """All variants that the claim is about, each once."""
        names = [point.variant for term in self.terms for point in term.points]
        names += self.measure.get("variants", ())
        return tuple(dict.fromkeys(names))


def read(study: Study) -> tuple[Claim, ...]:
    """The claims of a study, checked against its variants and attacks.

    Raises:
      InputError: A claim has a mistake; the message names claim and key.
    """
    claims = []
    for number, content in enumerate(study.claims, start=1):
        name = content.get("id", f"number {number}")
        table = Table(f"{study.name}.toml, claim {name!r}", content)
        claims.append(_claim(table, study))
        if claims[-1].id in [claim.id for claim in claims[:-1]]:
            table.fail(
                "each claim must have its own id, but another claim has this one too."
            )
        if claims[-1].main and any(claim.main for claim in claims[:-1]):
            table.fail("only one claim must be main, but another one is, too.")
    return tuple(claims)


def _claim(table: Table, study: Study) -> Claim:
    table.check_keys(_KEYS)
    texts = {key: table.value(key, str) for key in ("id", "source", "statement")}
    ways = [key for key in _WAYS if key in table.content]
    if len(ways) != 1:
        table.fail(
            "a claim must have exactly one of better (with than), terms and measure; "
            f"got {' and '.join(ways) or 'none of them'}."
        )
    if "than" in table.content and ways != ["better"]:
        table.fail(f"than must not be given with {ways[0]}, only with better.")
    margin = table.value("margin", float, 0.0)
    if margin < 0:
        table.fail(f"margin must be 0 or more; got {margin}.")
    fields = texts | {"relative": table.value("relative", bool, False)}
    if fields["relative"] and margin >= 1:
        table.fail(
            "margin must be below 1 where relative is true, as a share of the clean "
            f"value (0.05 for 5 points); got {margin:g}."
        )
    fields |= {key: table.value(key, bool, False) for key in ("algebra", "main")}
    fields["margin"] = float(margin)
    if ways == ["measure"]:
        if fields["relative"]:
            table.fail("relative must not be given with measure; see ratio_to.")
        subtable = Table(f"{table.where}, measure", table.value("measure", dict))
        measure = _measure(subtable, study)
        if measure["within"] is not None and "margin" in table.content:
            table.fail(
                "margin must not be given with within, which itself says how near is "
                "near enough."
            )
        return Claim(**fields, attack=measure["attack"], measure=measure)
    sides = _comparison(table, study) if ways == ["better"] else _term_sum(table, study)
    point = sides["terms"][0].points[0]
    names = ("attack", "task", "metric", "attacked")
    return Claim(**fields, **sides, **{name: getattr(point, name) for name in names})


def _comparison(table: Table, study: Study) -> dict[str, Any]:
    """The fields of a claim with better and than."""
    better = table.values("better", str)
    candidates: tuple[str, ...] = ()
    if isinstance(table.content.get("than"), dict):
        subtable = Table(f"{table.where}, than", table.content["than"])
        subtable.check_keys(("matched",))
        candidates = than = subtable.values("matched", str)
    else:
        than = table.values("than", str)
    if not better or not than:
        table.fail("better and than must each name one or more variants.")

    def term(weight, *variants):
        points = [p for v in variants for p in _points(table, study, v)]
        return Term(weight, tuple(points))

    if candidates:
        share = 1 / len(better)
        pairs = [(term(share, v), term(-share, *candidates)) for v in better]
        terms = tuple(side for pair in pairs for side in pair)
        _check_matched(table, study, better[0])
        return {"better": better, "matched": candidates, "terms": terms}
    terms = (term(1.0, *better), term(-1.0, *than))
    return {"better": better, "than": than, "terms": terms}


def _check_matched(table: Table, study: Study, variant: str) -> None:
    """Refuses to match models by clean values that are the same for all models."""
    attack = table.value("attack", str)
    fields = study.attack_fields(attack, variant, study.seeds[0])
    if fields.get("targets") == OWN_TARGETS:
        table.fail(
            "than must not be matched where the attack has targets = "
            f'"{OWN_TARGETS}", because every model agrees with its own clean outputs; '
            f"got attack {attack!r}. Name variants in than, or an attack with targets "
            '= "data".'
        )


def _term_sum(table: Table, study: Study) -> dict[str, Any]:
    """The fields of a claim with terms, which inherit the claim's own."""
    claim_fields = {key: table.content[key] for key in _POINT if key in table.content}
    terms = []
    for number, content in enumerate(table.values("terms", dict), start=1):
        subtable = Table(f"{table.where}, term {number}", {**claim_fields, **content})
        subtable.check_keys(_TERM)
        variants = _values(subtable, "variant", str)
        if not variants:
            subtable.fail("variant must name one or more.")
        points = [p for v in variants for p in _points(subtable, study, v)]
        terms.append(Term(float(subtable.value("weight", float)), tuple(points)))
    if not terms:
        table.fail("terms must hold one or more tables.")
    return {"terms": tuple(terms)}


def _values(table: Table, key: str, kind: type) -> tuple[Any, ...]:
    """The values of a key that holds one value or a list of them."""
    if isinstance(table.content.get(key), list):
        return table.values(key, kind)
    return (table.value(key, kind),)


def _points(table: Table, study: Study, variant: str) -> list[Point]:
    """The points of one variant, one per radius."""
    table.one_of("variant", variant, [v.name for v in study.variants])
    spec = _spec(table, study)
    attack = spec.name
    table.one_of(f"variant of attack {attack!r}", variant, spec.variants)
    config = study.train_config(variant, study.seeds[0])
    with table.explained():
        task = study.names([table.value("task", str)])[0]
        attacked = study.names(table.values("attacked", str, [task]))
    for name in (task, *attacked):
        table.one_of(f"task of variant {variant!r}", name, config.tasks)
    metric = table.value("metric", str)
    if not study.has_own_data:  # Else only results tell.
        metrics = metrics_of(study, attack, variant, task)
        table.one_of(f"metric of {task}", metric, [m.name for m in metrics])
    radii = [float(eps) for eps in _values(table, "eps", float)]
    if not radii:
        table.fail("eps must hold one or more radii.")
    choice = {
        k: table.value(k, kind) for k, kind in CHOICES.items() if k in table.content
    }
    for eps in radii:
        fields = {"eps": eps, "attacked": list(attacked)} if eps else {}
        fields |= {"task": task, **choice}
        check_attack(table, study, attack, variant, fields)
    choices = tuple(choice.items())
    return [
        Point(variant, attack, eps, task, metric, attacked, choices) for eps in radii
    ]


def _measure(table: Table, study: Study) -> dict[str, Any]:
    """The measure of a claim, with defaults for keys that are left out."""
    table.check_keys((*_USE_KEYS, *MEASURE, "minus"))
    spec = _spec(table, study)
    variants = _variants(table, spec)
    table.value("measure", str)
    table.value("quantity", str)
    minus = Table(f"{table.where}, minus", table.value("minus", dict, {}))
    minus.check_keys(("variants", *MEASURE))
    if "variants" in minus.content:
        _variants(minus, spec)
    within = table.value("within", float, 0.0) if "within" in table.content else None
    if within is not None and within < 0:
        table.fail(f"within must be 0 or more; got {within:g}.")
    sign = float(table.value("sign", float, 1.0))
    if not sign:
        table.fail("sign must not be 0, which makes every effect 0; give 1 or -1.")
    measure: dict[str, Any] = {
        **_checked_content(table, study),
        "variants": variants,
        "sign": sign,
        "reference": float(table.value("reference", float, 0.0)),
        "within": within,
        "field": table.value("field", str, "value"),
        "ratio_to": table.value("ratio_to", str, ""),
        "minus": _checked_content(minus, study),
    }
    check_measure(table, study, measure)
    if measure["minus"]:
        check_measure(minus, study, {**measure, **measure["minus"]})
    return measure


def _spec(table: Table, study: Study) -> AttackSpec:
    """The attack that a table names."""
    names = [attack.name for attack in study.attacks]
    return study.spec(table.one_of("attack", table.value("attack", str), names))


def _variants(table: Table, spec: AttackSpec) -> tuple[str, ...]:
    """The variants of a measure; its attack must be run on all of them."""
    variants = table.values("variants", str)
    for variant in variants:
        table.one_of(f"variant of {spec.name!r}", variant, spec.variants)
    if not variants:
        table.fail("variants must name one or more.")
    return variants


def _checked_content(table: Table, study: Study) -> dict[str, Any]:
    """What a table holds, with the keys of `MEASURE` checked and tasks' full names."""
    for key, kind in MEASURE.items():
        if key in table.content and not _values(table, key, kind):
            table.fail(f"{key} must hold one or more.")
    if "tasks" not in table.content:
        return dict(table.content)
    with table.explained():
        tasks = study.names(table.values("tasks", str))
    return {**table.content, "tasks": list(tasks)}
