# SPDX-License-Identifier: Apache-2.0
"""The sentences that a report leads with."""

from __future__ import annotations

import pytest

from mtr_tf.study.report import leading
from mtr_tf.study.report.verdicts import Row

TEXTS = {
    "claim": "E4",
    "statement": "Depth helps.",
    "source": "someone",
    "verdict": "undecided",
    "reason": "",
    "effect": "+0.0100",
    "interval": "+0.00200 to +0.0180",
    "quantity": "seg miou",
    "over": "seeds",
    "n": 6,
    "probability": "0.1",
    "by_seed": "",
    "probabilities": "",
    "clean": [],
    "plot": None,
    "warnings": [],
    "attack": "strong",
}
POWER = {"margin": "0.0100", "deviation": "0.00700", "seeds_needed": "9"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        (
            {**POWER, "detectable": "0.0120"},
            [
                "So many seeds find an effect of 0.0120 to be above the margin nine "
                "times in ten; to tell none from one of the margin, 0.0100, takes 9 "
                "seeds."
            ],
        ),
        (
            {"deviation": "0.00700"},
            ["So few seeds may miss any effect, however large."],
        ),
    ],
)
def test_three_sentences(changes, said):
    assert leading.sentences([Row(**TEXTS | changes)]) == [
        "“Depth helps.” (E4) is undecided: +0.0100, 95 % interval +0.00200 to +0.0180 "
        "(seg miou), over 6 seeds under strong.",
        *said,
        "Of 1 claim 1 is undecided.",
    ]


def test_what_is_decided_goes_without_what_could_be_seen():
    row = Row(**TEXTS | POWER | {"detectable": "–", "verdict": "does not hold"})
    first, last = leading.sentences([row])
    assert first.startswith("“Depth helps.” (E4) does not hold: +0.0100,")
    assert last == "Of 1 claim 1 does not hold."


def test_the_main_claim_leads_else_the_first_that_algebra_does_not_decide():
    algebra = Row(**TEXTS | {"claim": "T1", "algebra": True})
    first, main = Row(**TEXTS), Row(**TEXTS | {"claim": "E5", "main": True})
    assert leading.main_of([algebra, first, main]) is main
    assert leading.main_of([algebra, first]) is first
    assert leading.main_of([algebra]) is None


def test_nothing_measured_yet():
    sentences = leading.sentences([Row(**TEXTS | {"n": 0, "effect": "–"})])
    assert sentences[0] == "“Depth helps.” (E4) is undecided: nothing is measured yet."
