# SPDX-License-Identifier: Apache-2.0
"""Side-by-side tables from hand-made results."""

import json

import pytest

from mtr_tf import compare
from mtr_tf.compare import CompareConfig
from mtr_tf.errors import InputError


def record(eps, attacked, task, metric, clean, value):
    return {
        "attack": "pgd",
        "norm": "linf",
        "eps": eps,
        "attacked": attacked,
        "task": task,
        "metric": metric,
        "clean": clean,
        "attacked_value": value,
        "clean_interval": [clean - 0.01, clean + 0.01],
        "attacked_interval": [value - 0.01, value + 0.01],
        "n": 7,
        "dataset": "rooms",
        "split": "validation",
    }


def write(run, records):
    folder = run / "attacks" / "quick"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(records))
    return str(run)


@pytest.fixture
def runs(tmp_path):
    alone = [
        record(e, ["seg"], "seg", m, c, v)
        for e, m, c, v in (
            (2, "miou", 0.5, 0.25),
            (1, "miou", 0.5, 0.375),
            (1, "loss", 1.0, 2.0),
        )
    ]
    both = [
        *alone,
        record(1, ["depth"], "depth", "loss", 3.0, 7.0),
        record(1, ["seg", "depth"], "seg", "loss", 1.0, 1.5),
        record(1, ["seg", "depth"], "depth", "loss", 3.0, 6.0),
    ]
    return write(tmp_path / "a", alone), write(tmp_path / "b", both)


def lines_of(text):
    return [line.split() for line in text.splitlines()]


def test_tables(runs, capsys, tmp_path):
    plot = tmp_path / "plot.png"
    compare.main(CompareConfig(runs=runs, plot=str(plot)))
    lines = lines_of(capsys.readouterr().out)
    both = ["0.375", "(0.365-0.385)"] * 2
    assert ["eps", *runs] in lines
    assert ["clean", *["0.500", "(0.490-0.510)"] * 2] in lines
    assert ["1", *both] in lines
    # Joint against single rise: (1.5 - 1) / (2 - 1) and (6 - 3) / (7 - 3).
    assert ["1", "seg+depth", "0.50", "0.75"] in lines
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": ()}, "--runs must name"),
        ({"name": "slow"}, "--name must be a finished attack of .*quick; got 'slow'"),
        ({"attack": "fgsm"}, "no attack 'fgsm', only pgd"),
        ({"task": "normal"}, "--attack_tasks=normal"),
    ],
)
def test_bad_input(runs, changes, message):
    with pytest.raises(InputError, match=message):
        compare.main(CompareConfig(**({"runs": runs} | changes)))


def test_attacks_that_differ_are_not_compared(runs, tmp_path):
    other = write(
        tmp_path / "c", [record(1, ["seg"], "seg", "miou", 0.5, 0.1) | {"norm": "l2"}]
    )
    with pytest.raises(InputError, match="norm is linf in .*/a and l2 in .*/c"):
        compare.main(CompareConfig(runs=(runs[0], other)))


def test_a_damaged_file_is_explained(runs, tmp_path):
    (tmp_path / "a" / "attacks" / "quick" / "results.json").write_text("[{")
    with pytest.raises(InputError, match="damaged"):
        compare.main(CompareConfig(runs=runs))


def test_numbers_that_do_not_exist(tmp_path, capsys):
    nothing = record(1, ["seg"], "seg", "miou", 0.5, 0.5)
    gone = {"clean": None, "attacked_value": None}
    ends = {"clean_interval": [None] * 2, "attacked_interval": [None] * 2}
    run = write(tmp_path / "a", [nothing | gone | ends])
    plot = tmp_path / "plot.png"
    compare.main(CompareConfig(runs=(run,), plot=str(plot)))
    assert ["1", "-"] in lines_of(capsys.readouterr().out)
    assert plot.stat().st_size > 1000
