# SPDX-License-Identifier: Apache-2.0
"""Pages about the published studies say what the studies found."""

from __future__ import annotations

import collections
import csv
import gzip
import json
import pathlib
import re

import numpy as np
import pytest

from mtr_tf.show import text
from mtr_tf.study import claims
from mtr_tf.study.claim_file import Claim

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/claims.json"))
VERDICTS = {
    "What holds": "holds",
    "What does not hold": "does not hold",
    "What is undecided": "undecided",
}


def verdicts(study):
    """{claim: verdict} from the study's report."""
    entries = json.loads((RESULTS / study / "claims.json").read_text("utf-8"))
    return {verdict["claim"]["id"]: verdict for verdict in entries}


def rows(page, width):
    """The cells of a page's table rows with `width` cells, without the heads."""
    lines = re.findall(r"^\| (.*) \|\n", page, re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    heads = ("study", "claim", "---")
    return [row for row in cells if len(row) == width and row[0] not in heads]


def test_there_are_studies():
    assert {"rooms", "artefact", "rooms-epochs"} <= {*STUDIES}


def test_the_index_counts_verdicts():
    index = (RESULTS / "README.md").read_text("utf-8")
    counts = {}
    for link, _, *numbers in rows(index, 6):
        name = re.fullmatch(r"\[(.+)\]\((.+)/README.md\)", link)
        assert name[1] == name[2]
        counts[name[1]] = [int(number) for number in numbers]
    expected = {}
    for study in STUDIES:
        count = collections.Counter(v["verdict"] for v in verdicts(study).values())
        expected[study] = [count.total(), *(count[v] for v in VERDICTS.values())]
    assert counts == expected


@pytest.mark.parametrize("heading", VERDICTS)
def test_quoted_claims_are_as_found(heading):
    index = (RESULTS / "README.md").read_text("utf-8")
    section = index.split(f"## {heading}\n")[1].split("\n## ")[0]
    quotes = rows(section, 5)
    assert len(quotes) == sum(
        verdict["verdict"] == VERDICTS[heading]
        for study in STUDIES
        for verdict in verdicts(study).values()
    )
    for *claim, effect, interval in quotes:
        check(*claim, VERDICTS[heading], effect, interval)


def test_the_front_page_counts_all_claims():
    page = (ROOT / "README.md").read_text("utf-8")
    assert f"all {sum(len(verdicts(study)) for study in STUDIES)} claims" in page


def margin_of(claim):
    """.01 of mean IoU, .05 of relative vulnerability; 0 for all else."""
    if claim["measure"] or claim.get("algebra"):
        return 0.0
    if claim["relative"]:
        return 0.05
    return 0.01 if claim["metric"] == "miou" else 0.0


def with_margins(study):
    """{claim: verdict with the margins}, from the published numbers of its seeds."""
    by_claim = verdicts(study)
    comparisons = [
        v for v in by_claim.values() if v["claim"]["measure"].get("within") is None
    ]
    effects = [np.array(v["by_seed"], float) for v in comparisons]
    margins = [margin_of(v["claim"]) for v in comparisons]
    differences = [e - m for m, e in zip(margins, effects, strict=True)]
    p_values, opposite_p_values = (
        claims.tests(differences)[1],
        claims.tests([-e for e in differences])[1],
    )
    words = {}
    for v, margin, p, opposite in zip(
        comparisons, margins, p_values, opposite_p_values, strict=True
    ):
        claim = Claim(v["claim"]["id"], "", "", margin=margin)
        numbers = (v["effect"], tuple(v["interval"]), v["n"], p, opposite)
        words[claim.id] = claims.judge(claim, *numbers)[0]
    return words


def test_verdicts_with_margins_are_what_the_kept_numbers_give():
    index = (RESULTS / "README.md").read_text("utf-8")
    section = index.split("## With a smallest effect that matters\n")[1]
    section = section.split("\n## ")[0]
    quotes = {(row[0], row[1]): row[2:] for row in rows(section, 7)}
    expected, counts = {}, collections.Counter()
    for study in ("adversarial", "artefact", "rooms", "rooms-epochs", "rooms-quick"):
        for claim, word in with_margins(study).items():
            verdict = verdicts(study)[claim]
            if verdict["claim"]["measure"]:
                continue
            counts[word] += 1
            if word != verdict["verdict"]:
                margin = "5 points" if verdict["claim"]["relative"] else ".01"
                write = text.points if verdict["claim"]["relative"] else text.signed
                ends = text.interval(verdict["interval"], write)
                numbers = [margin, write(verdict["effect"]), ends]
                expected[study, claim] = [*numbers, verdict["verdict"], word]
    assert quotes == expected
    match = re.search(r"margins (\d+) hold, (\d+) do not hold and (\d+) are", section)
    words = ("holds", "does not hold", "undecided")
    assert [int(n) for n in match.groups()] == [counts[word] for word in words]


def check(study, claim, statement, verdict, effect, interval):
    """Compares a quoted row with that of the study's own page."""
    entry = verdicts(study)[claim]
    assert (statement, verdict) == (entry["claim"]["statement"], entry["verdict"])
    page = (RESULTS / study / "README.md").read_text("utf-8")
    (row,) = (row for row in rows(page, 10) if row[0] == claim)
    assert [effect, interval] == row[4:6]


@pytest.mark.parametrize("study", STUDIES)
def test_verdicts_of_a_report_agree_with_its_numbers(study):
    """The Markdown and the JSON of one study."""
    page = (RESULTS / study / "README.md").read_text("utf-8")
    table = {row[0]: row for row in rows(page, 10)}
    by_claim = verdicts(study)
    assert [*table] == [*by_claim]
    for claim, verdict in by_claim.items():
        assert table[claim][3] == f"**{verdict['verdict']}**"
        assert table[claim][8] == str(verdict["n"])
        effect = verdict["effect"]
        if effect is None:  # No seed has been run yet.
            assert (table[claim][4], verdict["n"]) == ("–", 0)
            continue
        number = table[claim][4].split(" ")[0].replace("−", "-")
        percent = "points" in table[claim][4]
        assert float(number) == pytest.approx(
            effect * (100 if percent else 1), rel=6e-3
        )


@pytest.mark.parametrize("study", STUDIES)
def test_plots_are_there(study):
    page = (RESULTS / study / "README.md").read_text("utf-8")
    links = re.findall(r"\]\((plots/[^)]+)\)", page)
    files = {f"plots/{path.name}" for path in (RESULTS / study / "plots").iterdir()}
    assert files
    assert {*links} == files


@pytest.mark.parametrize("study", STUDIES)
def test_values_that_claims_compare_are_in_the_kept_results(study):
    """The clean values of every seed in the claims' file."""
    with gzip.open(RESULTS / study / "results.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    csv_values = collections.defaultdict(set)
    for row in rows:
        csv_values[row["variant"]].add(row["clean"])
    claim_values = [verdict["clean"] for verdict in verdicts(study).values()]
    assert any(claim_values)
    for clean in claim_values:
        for variant, values in clean.items():
            assert {str(value) for value in values if value is not None} <= csv_values[
                variant
            ]


def test_generated_tables_are_small():
    files = [path for path in RESULTS.rglob("*") if path.suffix in (".json", ".gz")]
    assert not list(RESULTS.rglob("*.csv"))
    assert all(path.stat().st_size < 100_000 for path in files)
