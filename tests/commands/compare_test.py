# SPDX-License-Identifier: Apache-2.0
"""Side-by-side tables from hand-made results."""

import csv
import hashlib
import json
import os
import pathlib
import types

import pytest

from mtr_tf import compare
from mtr_tf.compare import CompareConfig
from mtr_tf.errors import InputError
from mtr_tf.show import side_by_side


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
    seg_records = [
        record(e, ["seg"], "seg", m, c, v)
        for e, m, c, v in (
            (2, "miou", 0.5, 0.25),
            (1, "miou", 0.5, 0.375),
            (1, "loss", 1.0, 2.0),
        )
    ]
    all_records = [
        *seg_records,
        record(1, ["depth"], "depth", "loss", 3.0, 7.0),
        record(1, ["seg", "depth"], "seg", "loss", 1.0, 1.5),
        record(1, ["seg", "depth"], "depth", "loss", 3.0, 6.0),
    ]
    return write(tmp_path / "a", seg_records), write(tmp_path / "b", all_records)


def lines_of(text):
    return [line.split() for line in text.splitlines()]


def test_tables(runs, capsys, tmp_path):
    plot = tmp_path / "plot.png"
    compare.main(CompareConfig(runs=runs, plot=str(plot)))
    text = capsys.readouterr().out
    lines = lines_of(text)
    assert "seg miou" in text.splitlines()[0]
    settings = "(linf, eps: levels of 0-255; 7 images of rooms validation"
    assert f"pgd on seg alone {settings}" in text
    assert "b, pgd (linf, eps: levels of 0-255): rise of each task's loss" in text
    values = ["0.375", "(0.365-0.385)"] * 2
    assert ["eps", "a", "b"] in lines
    assert ["clean", *["0.500", "(0.490-0.510)"] * 2] in lines
    assert ["1", *values] in lines
    # Joint against single rise: (1.5 - 1) / (2 - 1) and (6 - 3) / (7 - 3).
    assert ["1", "seg+depth", "0.50", "0.75"] in lines
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": ()}, "--runs must name"),
        ({"name": "slow"}, r"must be a finished attack of .* \(quick\); got 'slow'"),
        ({"attack": ("fgsm",)}, "no attack 'fgsm', only pgd"),
        ({"task": ("normal",)}, "--attack_tasks=normal"),
        ({"metric": "rmse"}, "--metric must be one of .*, got 'rmse'"),
        ({"plot": "x.txt"}, "--plot must end with .png"),
        ({"runs": ("missing",)}, "'missing' does not exist"),
        ({"runs": ("my.keras",)}, "--ckpt=my.keras first"),
    ],
)
def test_bad_input(runs, changes, message):
    with pytest.raises(InputError, match=message):
        compare.main(CompareConfig(**({"runs": runs} | changes)))


def test_a_run_without_attacks_and_one_run_twice(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no finished attack; run python"):
        compare.main(CompareConfig(runs=(str(tmp_path / "empty"),)))
    with pytest.raises(InputError, match="must all be different"):
        compare.main(CompareConfig(runs=(runs[0], runs[0])))


def test_attacks_that_differ_are_not_compared(runs, tmp_path):
    other_run = write(
        tmp_path / "c", [record(1, ["seg"], "seg", "miou", 0.5, 0.1) | {"norm": "l2"}]
    )
    with pytest.raises(InputError, match="norm is linf in .*/a and l2 in .*/c"):
        compare.main(CompareConfig(runs=(runs[0], other_run)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attack_channels": [0, 1]}, r"attack_channels is \[\] in .* and \[0, 1\] in"),
        ({"fast": True}, "fast is False in .* and True in"),
        ({"targets": "own"}, "targets is data in .* and own in"),
        ({"source_fingerprint": "abc"}, "source_fingerprint is None in .* and abc in"),
    ],
)
def test_what_older_results_do_not_say_is_as_it_was(tmp_path, capsys, change, said):
    entry = record(1, ["seg"], "seg", "miou", 0.5, 0.4)
    old_run = write(tmp_path / "a", [entry])
    default_run = write(
        tmp_path / "b", [entry | {"fast": False, "source_fingerprint": None}]
    )
    other_run = write(tmp_path / "c", [entry | change])
    compare.main(CompareConfig(runs=(old_run, default_run)))
    assert lines_of(capsys.readouterr().out)[2] == ["eps", "a", "b"]
    with pytest.raises(InputError, match=said):
        compare.main(CompareConfig(runs=(old_run, other_run)))


def test_attacks_are_matched_by_settings_in_whatever_folders(tmp_path, capsys):
    """Each run has two attacks, of which they share one; folder names differ."""

    def make_entry(value, steps):
        entry = record(1, ["seg"], "seg", "miou", 0.5, value)
        return entry | {"steps": steps, "better": "higher"}

    write(tmp_path / "a", [make_entry(0.4, 20)])
    write(tmp_path / "b", [make_entry(0.2, 20)])
    for run, value in (("a", 0.1), ("b", 0.3)):
        folder = tmp_path / run / "attacks" / f"other_{run}"
        folder.mkdir()
        steps = 50 if run == "a" else 60
        (folder / "results.json").write_text(json.dumps([make_entry(value, steps)]))
    compare.main(CompareConfig(runs=(str(tmp_path / "a"), str(tmp_path / "b"))))
    text = capsys.readouterr().out
    assert ["1", "0.400", "(0.390-0.410)", "0.200", "(0.190-0.210)"] in lines_of(text)
    assert "20 steps" in text
    assert "50 steps" not in text


def test_several_tasks_and_attacks_are_several_tables_and_plots(
    tmp_path, capsys, monkeypatch
):
    records = [
        record(1, [task], task, metric, 0.5, 0.4) | {"attack": attack}
        for attack in ("pgd", "fgsm")
        for task, metric in (("seg", "miou"), ("depth", "mae"))
    ]
    run = write(tmp_path / "a", records)
    monkeypatch.chdir(tmp_path)
    compare.main(CompareConfig(runs=(run,), plot="all.png"))
    text = capsys.readouterr().out
    assert text.count("alone (linf") == 4
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"all-{attack}-{task}.png"
        for attack in ("pgd", "fgsm")
        for task in ("seg", "depth")
    }
    compare.main(CompareConfig(runs=(run,), attack=("fgsm",), task=("depth",)))
    assert capsys.readouterr().out.count("alone (linf") == 1


def test_plots_are_numbered_where_attack_and_task_are_the_same():
    tasks = ("depth_euclidean", "depth", "depth", "seg", "depth")
    comparisons = [
        types.SimpleNamespace(facts={"attack": "pgd"}, task=t) for t in tasks
    ]
    paths = compare._paths(pathlib.Path("plots/all.png"), comparisons)
    assert [str(path) for path in paths] == [
        f"plots/all-pgd-{name}.png"
        for name in ("depth_euclidean", "depth", "depth-2", "seg", "depth-3")
    ]


ONES_OWN = {"algorithm": "pgd", "random_start": True, "source_fingerprint": None}
VARIANTS = {
    "": {},
    "by transfer from model 0123abcd": {"source_fingerprint": "0123abcdef"},
    "by transfer from model 9123abcd": {"source_fingerprint": "9123abcdef"},
    "gradients in bfloat16 (--fast)": {"fast": True},
    "gradients in float16 (--fast)": {"fast": "float16"},
    "from the image": {"random_start": False},
    "5 output pixels attacked": {"attack_pixels": 5},
    "output pixels 16x32+8+0 attacked": {"attack_block": [16, 32, 8, 0]},
    "only pixels of the classes numbered 3, 5 attacked": {"attack_classes": [3, 5]},
    "against the model's own clean outputs": {"targets": "own"},
    "the worst of apgd, square, 500 queries": {
        "ensemble": ["apgd", "square"],
        "queries": 500,
    },
    "weights seg:2.0": {"weights": {"seg": 2.0}},
}


def test_titles_say_what_tells_attacks_apart(tmp_path):
    records = [
        {**record(1, ["seg"], "seg", "miou", 0.5, 0.4), **ONES_OWN, **change}
        for change in VARIANTS.values()
    ]
    models = side_by_side.read([write(tmp_path / "a", records)])
    comparisons = side_by_side.compare(models)
    pairs = [("; ".join(side_by_side.details(c.facts)), c.title) for c in comparisons]
    assert [detail for detail, _ in pairs] == list(VARIANTS)
    assert all(detail in title for detail, title in pairs)
    assert len({title for _, title in pairs}) == len(VARIANTS)


def test_plots_and_joint_tables_say_which_attack_they_are_of(tmp_path):
    transfer = {"source_fingerprint": "0123abcdef", "norm": "l2"}
    records = [
        record(1, tasks, task, "loss", 1.0, 2.0) | transfer
        for tasks in (["seg"], ["depth"], ["seg", "depth"])
        for task in tasks
    ]
    models = side_by_side.read([write(tmp_path / "a", records)])
    (comparison, _) = side_by_side.compare(models)
    title = comparison.figure().get_suptitle().replace("\n", " ")
    assert title == "seg under pgd on seg alone; by transfer from model 0123abcd"
    settings = "l2, eps: plain l2 norm; by transfer from model 0123abcd"
    assert f"a, pgd ({settings}): rise of each task's loss" in side_by_side.text(
        [comparison], models
    )
    assert f"**a, pgd ({settings}): rise" in side_by_side.markdown([comparison], models)


def test_joint_attacks_with_other_balances_and_weights_are_shown(tmp_path):
    """Attacks on one task have neither, so their settings differ."""
    all_tasks = ["seg", "depth"]

    def rises(tasks, rise, **facts):
        fields = {"algorithm": "pgd", "balance": "sum", "weights": {}} | facts
        return [record(1, tasks, t, "loss", 1.0, 1.0 + rise) | fields for t in tasks]

    weights = {"seg": 1.0, "depth": 0.5}
    records = rises(["seg"], 2.0) + rises(["depth"], 4.0)
    records += rises(all_tasks, 1.0)
    records += rises(all_tasks, 3.0, attack="pgd-dgba", balance="dgba")
    records += rises(all_tasks, 0.5, weights=weights)
    records += rises(
        all_tasks, 9.0, attack="apgd-dgba", balance="dgba", algorithm="apgd"
    )
    models = side_by_side.read([write(tmp_path / "a", records)])
    text = side_by_side.text(side_by_side.compare(models), models)
    rows = [line.split() for line in text.splitlines() if "seg+depth" in line]
    ratios = [("0.50", "0.25"), ("1.50", "0.75"), ("0.25", "0.12")]
    assert rows == [["1", "seg+depth", *pair] for pair in ratios]
    assert "a, pgd-dgba (linf, eps: levels of 0-255): rise of each" in text
    assert "levels of 0-255; weights seg:1.0, depth:0.5): rise of each" in text


def test_records_have_units_and_directions(tmp_path, capsys):
    entry = record(1, ["depth"], "depth", "mae", 0.5, 0.6)
    run = write(tmp_path / "a", [entry | {"unit": "m", "better": "lower"}])
    compare.main(CompareConfig(runs=(run,), format="json"))
    records = json.loads(capsys.readouterr().out)
    assert {(r["unit"], r["better"]) for r in records} == {("m", "lower")}


def test_formats_have_equal_values(runs, capsys):
    outputs = {}
    for form in ("markdown", "csv", "json"):
        compare.main(CompareConfig(runs=runs, format=form))
        outputs[form] = capsys.readouterr().out
    records = json.loads(outputs["json"])
    b_records = [r for r in records if r["model"] == "b"]
    assert [(r["eps"], r["value"]) for r in b_records] == [
        (0, 0.5),
        (1, 0.375),
        (2, 0.25),
    ]
    rows = list(csv.DictReader(outputs["csv"].splitlines()))
    assert [float(row["value"]) for row in rows] == [r["value"] for r in records]
    assert "| eps | a | b |" in outputs["markdown"]
    assert "| 2 | 0.250 (0.240-0.260) | 0.250 (0.240-0.260) |" in outputs["markdown"]


def test_a_model_of_ones_own_is_found_by_its_file(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "runs" / "mine-0123abcd",
        [record(1, ["seg"], "seg", "miou", 0.5, 0.125)],
    )
    folder = tmp_path / "runs" / "mine-0123abcd" / "attacks" / "quick"
    settings = {"attack": {"ckpt": str(tmp_path / "mine.keras")}}  # As until 0.2.
    (folder / "settings.json").write_text(json.dumps(settings))
    config = CompareConfig(runs=(runs[0], "mine.keras"), task=("seg",))
    compare.main(config)
    assert ["eps", "a", "mine.keras"] in lines_of(capsys.readouterr().out)
    (tmp_path / "mine.keras").write_bytes(b"weights")
    settings["ckpt_sha256"] = hashlib.sha256(b"weights").hexdigest()
    (folder / "settings.json").write_text(json.dumps(settings))
    compare.main(config)
    assert ["eps", "a", "mine.keras"] in lines_of(capsys.readouterr().out)
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine.keras").write_bytes(b"other weights")
    with pytest.raises(InputError, match="no attack results for q/mine.keras"):
        compare.main(CompareConfig(runs=("mine.keras", "q/mine.keras")))
    old_folder = folder.parent / "a"  # Equal weights, saved at another time.
    old_folder.mkdir()
    settings["ckpt_sha256"] = hashlib.sha256(b"saved before").hexdigest()
    (old_folder / "settings.json").write_text(json.dumps(settings))
    compare.main(config)
    (tmp_path / "mine.keras").write_bytes(b"trained again")
    with pytest.raises(InputError, match=r"no attack results for mine.keras"):
        compare.main(config)


def test_results_of_other_weights_in_one_folder_are_left_out(
    tmp_path, capsys, monkeypatch
):
    """Left out are a checkpoint, another precision and another range of images."""
    lines = []
    monkeypatch.setattr(
        side_by_side.logging, "warning", lambda *args: lines.append(args[0] % args[1:])
    )
    last_facts = {"model_fingerprint": "last", "precision": "float32"}
    for number, (name, eps, value, facts) in enumerate(
        [
            ("one", 1, 0.4, last_facts),
            ("early", 2, 0.05, {"model_fingerprint": "early", "precision": "float32"}),
            ("half", 3, 0.06, last_facts | {"precision": "mixed_float16"}),
            ("other_range", 5, 0.07, last_facts | {"input": [[255.0], [0.0]]}),
            ("older", 6, 0.2, {"model_fingerprint": "last"}),
            ("newest", 4, 0.3, last_facts),
        ]
    ):
        folder = tmp_path / "a" / "attacks" / name
        folder.mkdir(parents=True)
        entry = record(eps, ["seg"], "seg", "miou", 0.5, value) | facts
        (folder / "results.json").write_text(json.dumps([entry]))
        os.utime(folder / "results.json", (number, number))
    run = str(tmp_path / "a")
    compare.main(CompareConfig(runs=(run,), format="json"))
    records = json.loads(capsys.readouterr().out)
    assert [(r["eps"], r["value"]) for r in records] == [
        (0, 0.5), (1, 0.4), (4, 0.3), (6, 0.2)
    ]  # fmt: skip
    (line,) = lines
    assert "than the newest, newest; left out: early, half, other_range" in line
    compare.main(CompareConfig(runs=(run,), name="early", format="json"))
    records = json.loads(capsys.readouterr().out)
    assert [(r["eps"], r["value"]) for r in records] == [(0, 0.5), (2, 0.05)]
    compare.main(CompareConfig(runs=(run,), leaderboard=str(tmp_path / "board.html")))
    board = json.loads((tmp_path / "board.json").read_text())
    assert board == []  # Its records do not say which direction is better.


def test_models_are_compared_by_one_metric_on_the_same_images(runs, tmp_path, caplog):
    entry = record(1, ["seg"], "seg", "miou", 0.5, 0.4)
    run = write(tmp_path / "c", [entry | {"images": "8x8x3 0.5 0.4 0.41234"}])
    other_metric = write(tmp_path / "d", [entry | {"metric": "mine"}])
    with pytest.raises(InputError, match="first is not in the results of all models"):
        compare.main(CompareConfig(runs=(run, other_metric)))
    other_images = write(tmp_path / "e", [entry | {"images": "8x8x3 0.5 0.4 0.41284"}])
    with pytest.raises(InputError, match="c and e were attacked on other images of"):
        compare.main(CompareConfig(runs=(run, other_images)))
    larger_images = write(tmp_path / "f", [entry | {"images": "16x16x3 0.6 0.4 0.5"}])
    same_images = write(tmp_path / "g", [entry | {"images": "8x8x3 0.5 0.4 0.41233"}])
    compare.main(
        CompareConfig(runs=(run, larger_images, same_images, runs[0]), task=("seg",))
    )
    assert "pictures are 8x8 in c and 16x16 in f" in caplog.text


def test_after_a_copy_attacks_on_the_whole_model_count(tmp_path, capsys):
    """Files of a copy have equal times, or times in any order."""
    run = tmp_path / "a"
    for i, (name, step) in enumerate([("whole", None), ("early", 100)]):
        folder = run / "attacks" / name
        folder.mkdir(parents=True)
        entry = record(1, ["seg"], "seg", "miou", 0.5, 0.4 - i / 10)
        entry |= {"model_fingerprint": name, "precision": "float32"}
        (folder / "results.json").write_text(json.dumps([entry]))
        (folder / "settings.json").write_text(json.dumps({"checkpoint_step": step}))
        os.utime(folder / "results.json", (i, i))
    compare.main(CompareConfig(runs=(str(run),), format="json"))
    records = json.loads(capsys.readouterr().out)
    assert [r["value"] for r in records] == [0.5, 0.4]


@pytest.mark.parametrize(
    ("field", "value"),
    [("eps", None), ("eps", "1"), ("n", 1.5), ("attacked", "seg"), ("clean", "x")]
    + [("attacked_interval", [1]), ("task", 3), ("clean", float("nan"))]
    + [("weights", [1]), ("attack_block", 3), ("source_fingerprint", 3)]
    + [("images", 3), ("images", "8x8x3 0.5 x 0.4"), ("images", "8x8x3 0.5 nan 0.4")],
)
def test_a_record_that_is_none_is_explained(runs, tmp_path, field, value):
    path = tmp_path / "a" / "attacks" / "quick" / "results.json"
    records = json.loads(path.read_text())
    records[1][field] = value
    path.write_text(json.dumps(records))
    with pytest.raises(InputError, match=f"damaged .*{field} of record 2 is"):
        compare.main(CompareConfig(runs=runs))


@pytest.mark.parametrize("text", ["[{", '[{"attack": "pgd", "eps": 1}]', "[3]", "{}3"])
def test_a_damaged_file_is_explained(runs, tmp_path, text):
    (tmp_path / "a" / "attacks" / "quick" / "results.json").write_text(text)
    with pytest.raises(InputError, match="damaged"):
        compare.main(CompareConfig(runs=runs))


def test_numbers_that_do_not_exist(tmp_path, capsys):
    entry = record(1, ["seg"], "seg", "miou", 0.5, 0.5)
    values = {"clean": None, "attacked_value": None}
    intervals = {"clean_interval": [None] * 2, "attacked_interval": [None] * 2}
    run = write(tmp_path / "a", [entry | values | intervals])
    plot = tmp_path / "plot.png"
    compare.main(CompareConfig(runs=(run,), plot=str(plot)))
    assert ["1", "-"] in lines_of(capsys.readouterr().out)
    assert plot.stat().st_size > 1000


def test_curves_are_of_pictures_of_one_size(tmp_path, capsys, caplog):
    """Newer attacks at another size have other clean values, and other radii."""
    sizes = (("8x8x3", (1, 2), 0.3), ("16x16x3", (4,), 0.5))
    for number, (size, radii, clean) in enumerate(sizes):
        folder = tmp_path / "a" / "attacks" / str(number)
        folder.mkdir(parents=True)
        records = [
            record(eps, ["seg"], "seg", "miou", clean, clean / 2)
            | {"images": f"{size} 0.5 0.5 0.5"}
            for eps in radii
        ]
        (folder / "results.json").write_text(json.dumps(records))
        os.utime(folder / "results.json", (number, number))
    run = str(tmp_path / "a")
    compare.main(CompareConfig(runs=(run,), format="json"))
    records = json.loads(capsys.readouterr().out)
    assert [(r["eps"], r["value"]) for r in records] == [(0, 0.5), (4, 0.25)]
    assert "left out where there is a newer attack: 8x8" in caplog.text
    compare.main(CompareConfig(runs=(run,), name="0", format="json"))
    records = json.loads(capsys.readouterr().out)
    assert [(r["eps"], r["value"]) for r in records] == [(0, 0.3), (1, 0.15), (2, 0.15)]


def test_a_leaderboard_refuses_what_it_makes_no_use_of(runs, tmp_path):
    page = tmp_path / "b.html"
    config = CompareConfig(runs=runs, leaderboard=str(page), task=("x",), format="json")
    with pytest.raises(InputError, match="but --task, --format is given too"):
        compare.main(config)
    assert not page.exists()


def test_the_folder_where_one_is_has_a_label():
    assert side_by_side.labels_of(["."]) == ["."]
    assert side_by_side.labels_of([".", "b"]) == [".", "b"]
