# SPDX-License-Identifier: Apache-2.0
"""Names and sentences may hold any characters on the report's page and in Markdown."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from html_fixture import parse

from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study
from mtr_tf.study.design import Variant
from mtr_tf.study.report import page
from mtr_tf.study.report.curves import Curve
from mtr_tf.study.report.plots import Plot
from mtr_tf.study.report.verdicts import Row

HOSTILE = "<script>alert('1')</script> & \"|\" &lt; \\| [a](javascript:b)\nnext `"


@pytest.fixture
def content() -> page.Content:
    """A report whose every text is hostile."""
    texts = {
        field.name: HOSTILE
        for field in dataclasses.fields(Row)
        if field.type in ("str", "str | None")
    }
    row = Row(**texts | {"verdict": "holds"}, n=5, clean=[HOSTILE], warnings=[HOSTILE])
    study = Study(
        name=HOSTILE,
        about=HOSTILE,
        seeds=(0, 1),
        train={HOSTILE: HOSTILE},
        attack={},
        variants=(Variant(HOSTILE, {"tasks": ["seg", HOSTILE]}, HOSTILE),),
        attacks=(AttackSpec(HOSTILE, {"eps": [1.0, 4.0]}, (HOSTILE,), HOSTILE),),
        claims=(),
    )
    cell = {"kind": "attack", "variant": HOSTILE, "seed": 1, "attack": HOSTILE}
    cell |= {"state": "failed", "error": HOSTILE, "log": HOSTILE, "seconds": None}
    cell |= {"command": HOSTILE, "environment": {"A": HOSTILE}}
    facts = {"unit": HOSTILE, "better": "higher"}
    values = {HOSTILE: np.array([[0.5, 0.4], [0.7, np.nan]])}
    curve = Curve(*[HOSTILE] * 2, (HOSTILE,), *[HOSTILE] * 2, True, facts, ..., {}, {})
    curve = dataclasses.replace(curve, eps=np.array([0.0, 2.0]), values=values)
    plot = Plot(curve.id, HOSTILE, HOSTILE, HOSTILE, None, notes=(HOSTILE,))
    return page.Content(
        study=study,
        cells=[cell],
        provenance={"command": HOSTILE, "versions": {"a": HOSTILE}},
        verdicts=[dataclasses.replace(row, plot=curve.id)],
        images=HOSTILE,
        mixed=HOSTILE,
        curves=[curve],
        curve_plots=[plot],
        theory={
            name: []
            for name in ("norms", "first_order", "pixels", "cosines", "resistance")
        },
        effects=[],
        galleries=[],
        gallery_plots=[],
    )


def test_no_text_becomes_an_element_of_the_page(content):
    html = page.html(content, {content.curves[0].id: b"<svg/>"})
    tree = parse(html)
    assert "script" not in {tag for tag, _ in tree.found}
    words = " ".join("".join(tree.texts).split())
    assert words.count(" ".join(HOSTILE.split())) > 20
    alts = [a["alt"] for tag, a in tree.found if tag == "img"]
    assert alts == [HOSTILE]


def test_no_text_becomes_html_a_link_or_a_column_of_the_markdown(content):
    words = page.markdown(content)
    assert "<script" not in words
    assert "](javascript" not in words
    assert "&amp;lt;" in words
    for table in re.findall(r"(?:^\|.*\n)+", words, re.MULTILINE):
        text = table.replace("\\\\", "")  # Each pair is one backslash on the page.
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()}
        assert len(bars) == 1, table
    assert len(re.findall(r"^\|( --- \|)+$", words, re.MULTILINE)) == 4


@pytest.mark.parametrize(
    "words",
    ["# heading", "- item", "+ item", "> quote", "```", "~~~", "1. item", "2) item"]
    + ["===", "---", "* * *", "[a]: javascript:b", "    code", "| a | b |", "<b>"],
)
def test_paragraphs_stay_paragraphs(content, words):
    study = dataclasses.replace(content.study, about=words)
    markdown = page.markdown(dataclasses.replace(content, study=study))
    (line,) = re.findall(r"^# Study .*\n\n(.*)\n\n## Answer", markdown)
    assert re.match(r"\d?\\|&lt;|[a-z]", line)
    unescaped = re.sub(r"\\(.)", r"\1", line).replace("&lt;", "<")
    assert unescaped == words.strip()  # What a reader sees.


@pytest.mark.parametrize(
    "given",
    [
        "--workdir=/mine --data_dir=/data --workers=2 --report --export=/mine/kept",
        "--workdir /mine --data_dir /data --workers 2 --noreport -export /mine/kept",
        "'--workdir=/mine or yours' '--data_dir=/my data' --executor=ray "
        "--executor_options=address=mine",
    ],
)
def test_a_command_is_shown_without_what_is_of_one_machine(given):
    command = f"python -m mtr_tf.reproduce --study=rooms {given} '--only=s, d'"
    expected = "python -m mtr_tf.reproduce --study=rooms --data_dir=DIR '--only=s, d'"
    assert page._command(command) == expected


def test_pictures_are_made_narrow():
    picture = page._picture(np.zeros((10, 1000, 3), np.uint8))
    assert (picture.width, picture.height) == (256, 3)
    assert picture.png.startswith(b"\x89PNG")


def test_clean_tables_are_of_one_set_of_images_and_of_the_targets_of_the_data(content):
    (curve,) = content.curves
    seg_curve = dataclasses.replace(curve, task="seg", images="96 images")
    few_images = dataclasses.replace(
        seg_curve, images="8 images", values={HOSTILE: EIGHTS}
    )
    own_targets = dataclasses.replace(
        seg_curve, facts={**curve.facts, "targets": "own"}, images="own", values={}
    )
    tables = dataclasses.replace(
        content, curves=[own_targets, seg_curve, few_images]
    ).clean_tables
    rows = [(table.task, [row[1] for row in table.rows]) for table in tables]
    assert rows == [
        ("seg, 96 images", ["0.600 ± 0.14"]),
        ("seg, 8 images", ["0.125 ± 0.0"]),
    ]


EIGHTS = np.full((2, 2), 0.125)
