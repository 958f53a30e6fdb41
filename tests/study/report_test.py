# SPDX-License-Identifier: Apache-2.0
"""The report of a study: its page, its files, and what it says of unfinished ones."""

from __future__ import annotations

import contextlib
import csv
import gzip
import html
import json
import pathlib
import re

import numpy as np
import pytest
import study_fixture
import tensorflow as tf
from html_fixture import parse
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.show import leaderboard
from mtr_tf.show import text
from mtr_tf.study import claims
from mtr_tf.study import report
from mtr_tf.study.report import export
from mtr_tf.study.results import Results

WARNING = "twice the steps do less harm (base 1, more 0.5)."


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """(folder, printed lines) of the report of a study with two attacks."""
    workdir = tmp_path_factory.mktemp("study")
    study_fixture.example(
        workdir,
        study_fixture.EXAMPLE.replace('"pixels", ', ""),
        warnings=lambda variant, seed, attack: [WARNING] if seed == 2 else [],
    )
    (workdir / "report" / "plots").mkdir(parents=True)
    (workdir / "report" / "plots" / "of_another_report.png").write_bytes(b"")
    return workdir / "report", report.write(workdir, workdir / "kept")


@pytest.fixture(scope="module")
def exported(written) -> pathlib.Path:
    """The folder that the report was exported to."""
    return written[0].parent / "kept"


@pytest.fixture(scope="module")
def page(written) -> str:
    return (written[0] / "index.html").read_text()


def shown(page: str) -> str:
    """All text of a page, with single spaces."""
    return " ".join(" ".join(parse(page).texts).split())


def test_page_is_one_sound_file(page):
    tree = parse(page)
    tags = [tag for tag, _ in tree.found]
    assert not {"script", "iframe", "object"} & {*tags}
    for tag, attributes in tree.found:
        if tag in ("img", "link"):
            address = attributes.get("src") or attributes.get("href")
            assert address.startswith("data:"), address[:80]
        if tag == "img":
            assert attributes["alt"]
    assert "url(" not in page
    ids = [attributes["id"] for _, attributes in tree.found if "id" in attributes]
    assert len(ids) == len({*ids})
    links = [a["href"] for tag, a in tree.found if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= {*ids}


def test_order_of_sections(page):
    """The answer comes first, then verdicts, curves, clean metrics and so on."""
    tags = [(tag, a.get("id")) for tag, a in parse(page).found]
    assert [name for tag, name in tags if tag == "h2"] == [
        "answer",
        "verdicts",
        "curves",
        "clean",
        "theory",
        "examples",
        "settings",
        "provenance",
        "commands",
    ]


def test_every_verdict_stands_in_page_files_and_terminal(written, page):
    folder, output = written
    verdicts = claims.evaluate(Results.read(folder.parent))
    assert verdicts
    page_text = shown(page)
    page_rows = re.findall(r'<tr role="row" id=.*?</tr>', page, re.DOTALL)
    page_rows = [shown(row) for row in page_rows]
    entries = json.loads((folder / "claims.json").read_text())
    with open(folder / "claims.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for verdict, entry, row in zip(verdicts, entries, rows, strict=True):
        claim = verdict.claim
        for part in (claim.id, claim.source, claim.statement, verdict.reason):
            assert part in page_text
        (page_row,) = [row for row in page_rows if row.startswith(f"{claim.id} ")]
        assert claim.statement in page_row
        # The sign before it is for those who do not see colours.
        assert page_row.split(f"{claim.source} ")[1][2:].startswith(verdict.verdict)
        form = text.points if claim.relative else text.signed
        assert f"{form(verdict.effect)} {form(verdict.interval[0])} to" in page_row
        line = next(line for line in output.splitlines() if line.startswith(claim.id))
        assert verdict.verdict in line
        assert (entry["claim"]["id"], row["id"]) == (claim.id, claim.id)
        assert entry["effect"] == pytest.approx(verdict.effect)
        assert float(row["effect"]) == pytest.approx(verdict.effect)
        low, high = verdict.interval
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
        assert entry["verdict"] == row["verdict"] == verdict.verdict


def test_results_csv_has_every_record(written):
    folder, _ = written
    records = Results.read(folder.parent).records()
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records) > 0
    names = ("variant", "spec", "task", "metric")
    for row, expected in zip(rows, records, strict=True):
        assert [row[name] for name in names] == [expected[name] for name in names]
        assert float(row["attacked_value"]) == expected["attacked_value"]
        assert (int(row["seed"]), float(row["eps"])) == (
            expected["seed"],
            expected["eps"],
        )


def test_plots_are_files_too(written, page):
    folder, _ = written
    figures = {a["id"] for tag, a in parse(page).found if tag == "figure" and "id" in a}
    files = {path.stem for path in (folder / "plots").iterdir()}
    assert figures <= files
    assert files - figures == {"gallery-seg"}
    for path in (folder / "plots").iterdir():
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, path


def test_warnings_stand_at_curves_and_verdicts(page):
    curve = page.split('<figure id="curve-pgd50-pgd-seg-seg-miou"')[1]
    curve = curve.split("</figure>")[0]
    line = "twice the steps do less harm [s: seed 2; s+d: seed 2]"
    assert line in shown(curve)
    table = page.split('id="curves"')[0]
    assert f"pgd50: {line}" in table


def test_tensorboard_has_the_plots_and_the_verdicts(written):
    folder, _ = written
    events = EventAccumulator(str(folder / "tensorboard"), {"tensors": 0}).Reload()
    tags = events.Tags()["tensors"]
    plot_names = {path.stem for path in (folder / "plots").iterdir()}
    assert {tag.replace("/", "-", 1) for tag in tags} == {*plot_names, "verdicts"}
    (value,) = tf.make_ndarray(events.Tensors("verdicts")[0].tensor_proto).ravel()
    assert value.decode().splitlines()[1].startswith("| ---")


def test_export_has_the_verdicts_and_all_that_its_page_shows(written, exported):
    folder, _ = written
    words = (exported / "README.md").read_text()
    table, section = words.split("### What would decide the rest")
    for verdict in claims.evaluate(Results.read(folder.parent)):
        start = f"| {verdict.claim.id} "
        (line,) = (x for x in table.splitlines() if x.startswith(start))
        undecided = verdict.verdict == "undecided" and verdict.power is not None
        assert (f"\n{start}" in section) == undecided
        assert f"**{verdict.verdict}**" in line
        assert verdict.claim.statement in line
        assert f"{verdict.n} |" in line
    plot_links = set(re.findall(r"\]\((plots/[^)]+)\)", words))
    files = {
        str(path.relative_to(exported))
        for path in exported.rglob("*")
        if path.is_file()
    }
    assert plot_links
    assert files == plot_links | {
        "README.md",
        "claims.json",
        "records.json",
        "results.csv.gz",
    }
    for name in files - {"results.csv.gz"}:
        assert (exported / name).read_bytes() == (folder / name).read_bytes()
    assert (
        "twice the steps do less harm [s: seed 2; s+d: seed 2] This affects E4, F1."
        in words
    )
    assert str(folder.parent) not in words  # Nothing of this machine.
    counts = {line.count("|") for line in words.split("## Clean")[0].splitlines()}
    assert len(counts) == 4  # No table, and the tables of origin, verdicts and power.


def test_results_of_an_export_are_those_of_the_report(written, exported, tmp_path):
    """Compressed, without derived columns, and with the same bytes each time."""
    folder, _ = written
    with open(folder / "results.csv", newline="") as file:
        expected = list(csv.DictReader(file))
    for row in expected:
        del row["relative_vulnerability"]
    archive = exported / "results.csv.gz"
    with gzip.open(archive, "rt", newline="") as file:
        assert list(csv.DictReader(file)) == expected
    export.write(folder, tmp_path / "again", [])
    assert (tmp_path / "again" / "results.csv.gz").read_bytes() == archive.read_bytes()


def test_values_of_an_export_are_means_over_seeds(written, exported):
    folder, _ = written
    results = Results.read(folder.parent)
    words = (exported / "README.md").read_text()
    table = words.split("### seg miou under pgd50")[1].split("###")[0]
    row = next(line for line in table.splitlines() if line.startswith("| s+d "))
    cells = [cell.strip().split(" ± ") for cell in row.split("|")[2:-1]]
    assert len(cells) == 3  # Clean, eps 1, eps 4.
    for (mean, spread), eps in zip(cells, (0, 1, 4), strict=True):
        values = results.values("s+d", "pgd50", eps, "seg", "miou")
        assert float(mean) == pytest.approx(values.mean(), rel=5e-3)
        assert float(spread) == pytest.approx(values.std(ddof=1), rel=5e-2)


@pytest.mark.parametrize("over", [False, True])
def test_an_export_that_was_stopped_can_be_repeated(
    written, exported, tmp_path, monkeypatch, over
):
    """After any of its files, whether they are new or take the place of others."""
    plots = sorted(path.stem for path in (exported / "plots").iterdir())
    expected = sorted(path.name for path in exported.rglob("*") if path.is_file())
    whole_file, count = files.whole_file, len(expected)
    for writes in range(count):
        folder = tmp_path / str(writes)
        if over:  # Claims and a plot of another study.
            (folder / "plots").mkdir(parents=True)
            (folder / "claims.json").write_text("[]")
            (folder / "README.md").write_text("![It was](plots/former.png)")
            (folder / "plots" / "former.png").write_bytes(b"")
        budget = [None] * writes

        @contextlib.contextmanager
        def stopping(path, budget=budget):
            with whole_file(path) as temporary:
                yield temporary
                temporary.with_name(files.name_beside(path.name)).write_bytes(b"")
                budget.pop()  # An error, where none is left.

        monkeypatch.setattr(files, "whole_file", stopping)
        with pytest.raises(IndexError):
            export.write(written[0], folder, plots)
        monkeypatch.setattr(files, "whole_file", whole_file)
        export.write(written[0], folder, plots)
        names = sorted(path.name for path in folder.rglob("*") if path.is_file())
        assert names == expected


def test_export_leaves_what_is_not_its_own_alone(written, exported, tmp_path):
    stray = exported / "plots" / "of_an_earlier_one.png"
    stray.write_bytes(b"")
    plots = sorted(
        path.stem for path in (exported / "plots").iterdir() if path != stray
    )
    with pytest.raises(InputError, match="contains 'of_an_earlier_one.png'"):
        export.write(written[0], exported, plots)
    with (exported / "README.md").open("a") as page:
        page.write("![It was](plots/of_an_earlier_one.png)")
    old_results = exported / "results.csv"  # As of 0.1.
    old_results.write_bytes(b"")
    export.write(written[0], exported, plots)
    assert not stray.exists()
    assert not old_results.exists()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match="--export must be a new folder.*'README.md'"):
        export.write(written[0], tmp_path, plots)
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(InputError, match="--export must be"):
        export.check(tmp_path / "README.md")


@pytest.mark.slow
def test_unfinished_study_says_what_is_missing(tmp_path):
    """Also with names that look like HTML, and to the same bytes when written again."""
    hostile = "<b>&s"
    file = study_fixture.EXAMPLE.replace('variants."s"', f'variants."{hostile}"')
    file = file.split("[[claims]]")[0].split('[attacks."theory"]')[0]

    def done(variant, seed, attack):
        return (seed, attack) in ((0, None), (0, "pgd50"), (1, None))

    study_fixture.example(tmp_path, file, done=done)
    report.write(tmp_path)
    path = tmp_path / "report" / "index.html"
    page = path.read_text()
    words = shown(page)
    assert "not finished: 6 of 20 cells are done" in words
    assert f"pgd50 on {hostile}: seeds 1, 2, 3, 4" in words
    assert f"training of {hostile}: seeds 2, 3, 4" in words
    report.write(tmp_path)
    assert path.read_text() == page


def test_claims_lead_to_plots_that_are_shown_at_once(page):
    """Not to plots that are folded away."""
    table, body = page.split('<h2 id="curves">')
    links = re.findall(r'href="#((?:curve|measure)-[^"]+)"', table)
    assert len(links) == 3
    details = "".join(re.findall(r"<details>.*?</details>", body, re.DOTALL))
    for link in links:
        assert f'<figure id="{link}">' in body
        assert link not in details


def test_the_answer_stands_first_with_its_numbers(written, page):
    folder, _ = written
    results = Results.read(folder.parent)
    verdict = next(v for v in claims.evaluate(results) if not v.claim.algebra)
    words = (folder / "README.md").read_text()
    answer = words.split("## Answer")[1].split("## Verdicts")[0]
    first = answer.strip().splitlines()[0]
    assert f"“{verdict.claim.statement}” ({verdict.claim.id})" in first
    assert text.signed(verdict.effect) in first or text.points(verdict.effect) in first
    assert f"over {verdict.n} seeds under" in first
    detectable = (text.signed if not verdict.claim.relative else text.points)(
        verdict.power.detectable
    )
    few_seeds = "So few seeds may miss any effect" in first
    is_decided = verdict.verdict != claims.OPEN
    assert few_seeds == (not is_decided and verdict.n < verdict.power.least)
    assert (
        is_decided
        or few_seeds
        or f"an effect of {detectable.lstrip('+')} nine times" in first
    )
    assert "(plots/effects.png)" in answer
    assert first in " ".join(html.unescape(page).split())


def test_records_for_others_are_those_of_the_results(written):
    """Every value of the study, with a model's seeds together, fit for leaderboards."""
    folder, _ = written
    records = leaderboard.read(folder / "records.json")
    pairs = {
        (r["name"], seed, r["attack"], r["eps"], r["task"], r["metric"]): pair
        for r in records
        if r["attacked"] == [r["task"]]
        for seed, *pair in zip(r["seeds"], r["clean"], r["attacked_value"], strict=True)
    }
    results = Results.read(folder.parent)
    expected = {
        (f"{results.study.name}: {r['variant']}", r["seed"], r["attack"], r["eps"])
        + (r["task"], r["metric"]): [r["clean"], r["attacked_value"]]
        for r in results.records()
        if r["eps"] and r["attacked"] == [r["task"]]
    }
    assert pairs.keys() == expected.keys()
    for key, pair in pairs.items():
        assert pair == pytest.approx(expected[key], rel=1e-5)
    assert {len(r["seeds"]) for r in records} == {len(results.seeds)}
    assert leaderboard.boards(records)
