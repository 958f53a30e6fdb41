# SPDX-License-Identifier: Apache-2.0
"""What is said of the kept studies is what they found."""

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
    """{claim: its verdict} as the study's report has it."""
    found = json.loads((RESULTS / study / "claims.json").read_text("utf-8"))
    return {verdict["claim"]["id"]: verdict for verdict in found}


def rows(page, width):
    """The cells of a page's table rows with so many of them, heads left out."""
    lines = re.findall(r"^\| (.*) \|\n", page, re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    others = ("study", "claim", "---")
    return [row for row in cells if len(row) == width and row[0] not in others]


def test_there_are_studies():
    assert {"rooms", "artefact", "rooms-epochs"} <= {*STUDIES}


def test_the_index_counts_verdicts():
    index = (RESULTS / "README.md").read_text("utf-8")
    counted = {}
    for link, _, *numbers in rows(index, 6):
        name = re.fullmatch(r"\[(.+)\]\((.+)/README.md\)", link)
        assert name[1] == name[2]
        counted[name[1]] = [int(number) for number in numbers]
    expected = {}
    for study in STUDIES:
        count = collections.Counter(v["verdict"] for v in verdicts(study).values())
        expected[study] = [count.total(), *(count[v] for v in VERDICTS.values())]
    assert counted == expected


@pytest.mark.parametrize("heading", VERDICTS)
def test_quoted_claims_are_as_found(heading):
    index = (RESULTS / "README.md").read_text("utf-8")
    section = index.split(f"## {heading}\n")[1].split("\n## ")[0]
    quoted = rows(section, 5)
    assert len(quoted) == sum(
        verdict["verdict"] == VERDICTS[heading]
        for study in STUDIES
        for verdict in verdicts(study).values()
    )
    for *claim, effect, interval in quoted:
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
    """{claim: its verdict with the margins}, from the kept numbers of its seeds."""
    found = verdicts(study)
    tested = [v for v in found.values() if v["claim"]["measure"].get("within") is None]
    effects = [np.array(v["by_seed"], float) for v in tested]
    margins = [margin_of(v["claim"]) for v in tested]
    above = [e - m for m, e in zip(margins, effects, strict=True)]
    ours, theirs = claims.tests(above)[1], claims.tests([-e for e in above])[1]
    words = {}
    for v, margin, p, opposite in zip(tested, margins, ours, theirs, strict=True):
        claim = Claim(v["claim"]["id"], "", "", margin=margin)
        numbers = (v["effect"], tuple(v["interval"]), v["n"], p, opposite)
        words[claim.id] = claims.judge(claim, *numbers)[0]
    return words


def test_verdicts_with_margins_are_what_the_kept_numbers_give():
    index = (RESULTS / "README.md").read_text("utf-8")
    section = index.split("## With a smallest effect that matters\n")[1]
    section = section.split("\n## ")[0]
    quoted = {(row[0], row[1]): row[2:] for row in rows(section, 7)}
    expected, counts = {}, collections.Counter()
    for study in ("adversarial", "artefact", "rooms", "rooms-epochs", "rooms-quick"):
        for claim, word in with_margins(study).items():
            found = verdicts(study)[claim]
            if found["claim"]["measure"]:
                continue
            counts[word] += 1
            if word != found["verdict"]:
                margin = "5 points" if found["claim"]["relative"] else ".01"
                write = text.points if found["claim"]["relative"] else text.signed
                ends = text.interval(found["interval"], write)
                numbers = [margin, write(found["effect"]), ends]
                expected[study, claim] = [*numbers, found["verdict"], word]
    assert quoted == expected
    said = re.search(r"margins (\d+) hold, (\d+) do not hold and (\d+) are", section)
    words = ("holds", "does not hold", "undecided")
    assert [int(n) for n in said.groups()] == [counts[word] for word in words]


def check(study, claim, statement, verdict, effect, interval):
    """A quoted row against the study's own."""
    found = verdicts(study)[claim]
    assert (statement, verdict) == (found["claim"]["statement"], found["verdict"])
    page = (RESULTS / study / "README.md").read_text("utf-8")
    (row,) = (row for row in rows(page, 10) if row[0] == claim)
    assert [effect, interval] == row[4:6]


@pytest.mark.parametrize("study", STUDIES)
def test_verdicts_of_a_report_agree_with_its_numbers(study):
    """The Markdown and the JSON of one study."""
    page = (RESULTS / study / "README.md").read_text("utf-8")
    table = {row[0]: row for row in rows(page, 10)}
    found = verdicts(study)
    assert [*table] == [*found]
    for claim, verdict in found.items():
        assert table[claim][3] == f"**{verdict['verdict']}**"
        assert table[claim][8] == str(verdict["n"])
        effect = verdict["effect"]
        if effect is None:  # No seed has been run yet.
            assert (table[claim][4], verdict["n"]) == ("–", 0)
            continue
        shown = table[claim][4].split(" ")[0].replace("−", "-")
        percent = "points" in table[claim][4]
        assert float(shown) == pytest.approx(effect * (100 if percent else 1), rel=6e-3)


@pytest.mark.parametrize("study", STUDIES)
def test_plots_are_there(study):
    page = (RESULTS / study / "README.md").read_text("utf-8")
    linked = re.findall(r"\]\((plots/[^)]+)\)", page)
    kept = {f"plots/{path.name}" for path in (RESULTS / study / "plots").iterdir()}
    assert kept
    assert {*linked} == kept


@pytest.mark.parametrize("study", STUDIES)
def test_values_that_claims_compare_are_in_the_kept_results(study):
    """The clean values of every seed, as the claims' file has them."""
    with gzip.open(RESULTS / study / "results.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = collections.defaultdict(set)
    for row in rows:
        kept[row["variant"]].add(row["clean"])
    compared = [verdict["clean"] for verdict in verdicts(study).values()]
    assert any(compared)
    for clean in compared:
        for variant, values in clean.items():
            assert {str(value) for value in values if value is not None} <= kept[
                variant
            ]


def test_generated_tables_are_small():
    files = [path for path in RESULTS.rglob("*") if path.suffix in (".json", ".gz")]
    assert not list(RESULTS.rglob("*.csv"))
    assert all(path.stat().st_size < 100_000 for path in files)
