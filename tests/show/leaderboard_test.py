# SPDX-License-Identifier: Apache-2.0
"""Leaderboards: records that others can collect, and the page made from them."""

from __future__ import annotations

import json

import pytest
from html_fixture import parse

from mtr_tf import compare
from mtr_tf.compare import CompareConfig
from mtr_tf.errors import InputError
from mtr_tf.show import leaderboard


def result(attack, value, task="seg", eps=2, **changes):
    """A record as in results.json."""
    record = {"attack": attack, "norm": "linf", "eps": eps, "steps": 20, "n": 7}
    record |= {"attacked": [task], "task": task, "metric": "miou", "better": "higher"}
    record |= {"clean": 0.5, "attacked_value": value, "dataset": "rooms"}
    return record | {"split": "validation", "loss": "own"} | changes


def records(name, seed, *results, tasks=("seg",), commit="abcdef0123", **train):
    train = {"tasks": list(tasks), "model": "small", "image_size": "64", **train}
    config = {"train": train}
    settings = {"commit": commit, "versions": {"mtr_tf": "1"}, "platform": "here"}
    return leaderboard.of_results(name, seed, results, config, settings)


def test_seeds_of_a_model_are_together_and_none_counts_twice():
    seed_0 = records("s", 0, result("pgd", 0.2), result("apgd", 0.1))
    seed_1 = records("s", 1, result("pgd", 0.4), commit="123")
    collection = leaderboard.together([*seed_0, *seed_1, *seed_0])
    assert [(r["attack"], r["seeds"]) for r in collection] == [
        ("pgd", [0, 1]),
        ("apgd", [0]),
    ]
    assert collection[0]["attacked_value"] == [0.2, 0.4]
    assert collection[0]["clean"] == [0.5, 0.5]
    assert collection[0]["commit"] == ["abcdef0123", "123"]
    assert collection[0]["architecture"] == {"model": "small", "image_size": "64"}
    assert leaderboard.together(collection) == collection


def test_nets_that_share_other_parts_are_models_of_their_own():
    defaults = {"decoders": "separate", "shared_stages": -1}
    default_records = records("s+d", 0, result("pgd", 0.2), **defaults)
    assert default_records == records("s+d", 0, result("pgd", 0.2))
    for change in ({"decoders": "shared"}, {"shared_stages": 0}):
        changed_records = records("s+d", 1, result("pgd", 0.4), **defaults | change)
        collection = leaderboard.together([*default_records, *changed_records])
        assert [r["seeds"] for r in collection] == [[0], [1]]
        assert change.items() <= collection[1]["architecture"].items()


def test_what_differs_in_settings_stays_apart():
    weak, strong = result("pgd", 0.2), result("pgd", 0.1, steps=50)
    assert len(leaderboard.together(records("s", 0, weak, strong))) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"source_fingerprint": "f"},
        {"attack_classes": [3]},
        {"fast": True},
        {"step_size": 0.1},
        {"targeted": True},
    ],
)
def test_the_worst_of_two_attacks_counts_whichever_comes_first(changes):
    weak, strong = result("pgd", 0.25, **changes), result("pgd", 0.1)
    for pair in ((weak, strong), (strong, weak)):
        (board,) = leaderboard.boards(records("s+d", 0, *pair))
        assert [(row.attacked, row.tried) for row in board.rows] == [("0.100", 2)]


def test_an_attack_on_some_seeds_alone_does_not_stand_for_all():
    """Else an unlucky seed would rank a model below another one with equal seeds."""
    groups = [records("a", s, result("apgd", v)) for s, v in ((0, 0.2), (1, 0.36))]
    groups.append(records("a", 0, result("sea", 0.19)))
    groups += [records("b", s, result("apgd", 0.25)) for s in (0, 1)]
    (board,) = leaderboard.boards(leaderboard.together(sum(groups, [])))
    assert [(row.name, row.attacked, row.tried, row.seeds) for row in board.rows] == [
        ("a", "0.280 ± 0.11", 2, 2),
        ("b", "0.250 ± 0", 1, 2),
    ]


@pytest.mark.parametrize("seeds", [(0, 1), (1, 2, 3)])
def test_an_attack_that_lacks_a_seed_counts_where_it_does_more_harm(seeds):
    """Harm is compared on shared seeds; where there are none, by the mean."""
    weak = [records("a", s, result("fgsm", 0.4 + s / 100)) for s in (0, 1, 2)]
    strong = [records("a", s, result("apgd", 0.01)) for s in seeds]
    other_seed = records("a", 7, result("sea", 0.3))
    for attacks in ((weak, strong), (strong, weak), (weak, strong, [other_seed])):
        collection = leaderboard.together(sum(sum(attacks, []), []))
        (board,) = leaderboard.boards(collection)
        (row,) = board.rows
        assert (row.attack, row.attacked) == ("apgd, 20 steps", "0.0100 ± 0")
        assert (row.seeds, row.tried) == (len(seeds), len(attacks))
    (board,) = leaderboard.boards(leaderboard.together(sum([*weak, other_seed], [])))
    assert board.rows[0].attack == "sea, 20 steps"


def test_scores_by_own_outputs_have_a_board_of_their_own():
    own_records = records("s", 0, result("pgd", 0.35, targets="own", clean=1.0))
    boards = leaderboard.boards([*own_records, *records("s+d", 0, result("pgd", 0.2))])
    assert [board.rows[0].attacked for board in boards] == ["0.350", "0.200"]
    assert boards[0].title.endswith("judged by the models' own clean outputs")


def test_clean_images_and_missing_numbers_make_no_record():
    assert not records("s", 0, result("pgd", 0.2, eps=0), result("pgd", None))


def test_models_are_ordered_by_what_the_worst_attack_leaves():
    weak = records("only weakly attacked", 0, result("pgd", 0.45))
    single = records("s", 0, result("pgd", 0.4), result("apgd", 0.1))
    joint = records("s+d", 0, result("pgd", 0.3), result("apgd", 0.2))
    (board,) = leaderboard.boards([*single, *joint, *weak])
    assert [(row.place, row.name, row.attacked, row.tried) for row in board.rows] == [
        (1, "only weakly attacked", "0.450", 1),
        (2, "s+d", "0.200", 2),
        (3, "s", "0.100", 2),
    ]
    assert board.rows[1].attack == "apgd, 20 steps"
    assert board.rows[1].commit == "abcdef0"


def test_errors_are_ordered_the_other_way_and_seeds_have_a_deviation():
    depth = {"metric": "mae", "better": "lower", "unit": "m"}
    good = [
        records("a", s, result("pgd", v, "depth", **depth)) for s, v in ((0, 1), (1, 3))
    ]
    bad = records("b", 0, result("pgd", 2.5, "depth", **depth))
    collection = leaderboard.together([*bad, *good[0], *good[1]])
    (board,) = leaderboard.boards(collection)
    assert [(row.name, row.attacked) for row in board.rows] == [
        ("a", "2.00 ± 1.4"),
        ("b", "2.50"),
    ]
    assert board.title == "depth mae [m], linf eps 2 (levels of 0-255)"


def test_other_units_and_other_data_of_ones_own_are_boards_of_their_own():
    depth = {"metric": "mae", "better": "lower"}
    metres = records("a", 0, result("pgd", 3.0, "depth", **depth, unit="m"))
    disparity = records("b", 0, result("pgd", 0.05, "depth", **depth, unit="px"))
    titles = [board.title for board in leaderboard.boards([*metres, *disparity])]
    eps = "linf eps 2 (levels of 0-255)"
    assert titles == [f"depth mae [m], {eps}", f"depth mae [px], {eps}"]
    for data, count in (("examples", 2), ("my_data:load", 2), ("rooms", 1)):
        pair = [
            records(name, 0, result("pgd", 0.2, dataset=data, images=f"8x8x3 {name}"))
            for name in ("a", "b")
        ]
        assert len(leaderboard.boards([*pair[0], *pair[1]])) == count


def test_other_ignored_classes_are_a_board_of_their_own(tmp_path):
    all_classes = records("a", 0, result("pgd", 0.2))
    some_classes = records("b", 0, result("pgd", 0.3, ignored=[3]))
    leaderboard.write([*all_classes, *some_classes], tmp_path / "records.json")
    boards = leaderboard.boards(leaderboard.read(tmp_path / "records.json"))
    about = "7 images of rooms (validation) at 64x64 pixels{}; higher is better."
    assert [(board.about, board.rows[0].name) for board in boards] == [
        (about.format(""), "a"),
        (about.format(", without the classes numbered 3"), "b"),
    ]


def test_models_with_other_first_metrics_have_boards_of_their_own():
    miou_first = records("a", 0, result("pgd", 0.2), result("pgd", 0.3, metric="mine"))
    mine_only = records("b", 0, result("pgd", 0.4, metric="mine"))
    for sequence in ((*miou_first, *mine_only), (*mine_only, *miou_first)):
        boards = leaderboard.boards(sequence)
        assert {(b.title.split(",")[0], *(r.name for r in b.rows)) for b in boards} == {
            ("seg miou", "a"),
            ("seg mine", "b"),
        }


def test_the_attack_that_counts_is_named_with_what_is_not_usual():
    record = result("pgd", 0.2, attack_pixels=5, source_fingerprint="f", restarts=3)
    (board,) = leaderboard.boards(records("a", 0, record))
    name = "pgd, 20 steps, 3 restarts, 5 output pixels attacked, transferred"
    assert board.rows[0].attack == name


def test_attacks_that_leave_the_ball_do_not_count():
    pgd = result("pgd", 4.0, algorithm="pgd")
    pgd_released = result("pgd_released", 3.0, algorithm="pgd_released")
    (record,) = records("s", 0, pgd, pgd_released)
    assert record["attack"] == "pgd"
    old_record = record | {"attack": "pgd_released-dgba", "attacked_value": [1.0]}
    (board,) = leaderboard.boards([record, old_record])  # As from an older file.
    assert [(row.attack, row.tried) for row in board.rows] == [("pgd, 20 steps", 1)]


def test_joint_attacks_other_data_and_other_radii_are_no_part_of_a_board():
    joint = result("pgd", 0.1, attacked=["depth", "seg"])
    other_results = result("pgd", 0.3, eps=4), result("pgd", 0.2, n=8)
    boards = leaderboard.boards(
        records("s", 0, result("pgd", 0.4), joint, *other_results)
    )
    assert [[row.attacked for row in board.rows] for board in boards] == [
        ["0.400"],
        ["0.300"],
        ["0.200"],
    ]


def test_command_reads_runs_and_files_of_others_and_its_page_is_safe(tmp_path):
    run = tmp_path / "mine"
    (run / "attacks" / "quick").mkdir(parents=True)
    train = {"tasks": ["seg"], "seed": 3, "model": "small", "image_size": "64"}
    (run / "config.json").write_text(json.dumps({"train": train}))
    own_result = result("pgd", 0.3, clean_interval=[0, 1], attacked_interval=[0, 1])
    (run / "attacks" / "quick" / "results.json").write_text(json.dumps([own_result]))
    their_file = tmp_path / "theirs.json"
    leaderboard.write(records("<b>theirs</b>", 0, result("pgd", 0.2)), their_file)
    page = tmp_path / "board.html"
    compare.main(CompareConfig(runs=(str(run), str(their_file)), leaderboard=str(page)))
    board_records = leaderboard.read(tmp_path / "board.json")
    assert [(r["name"], r["seeds"]) for r in board_records] == [
        ("<b>theirs</b>", [0]),
        ("mine", [3]),
    ]
    settings = {"attack": {"out": "theirs"}, "train": train}
    (folder := tmp_path / "attacks" / "out").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"train": {"seed": 7}}))
    (folder / "results.json").write_text(json.dumps([own_result]))
    (folder / "settings.json").write_text(json.dumps(settings))
    assert leaderboard.of_folder("mine", folder) == leaderboard.of_folder(
        "mine", run / "attacks" / "quick"
    )
    tree = parse(page.read_text())
    words = " ".join("".join(tree.texts).split())
    assert words.index("1. mine") < words.index("2. <b>theirs</b>")
    assert "b" not in {tag for tag, _ in tree.found}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "other"}, "schema of record 1"),
        ({"clean": [0.5, 0.5]}, "not one value for each seed"),
        ({"eps": "2"}, "eps of record 1"),
        ({"seeds": []}, "seeds of record 1"),
        ({"attacked_value": [True]}, "attacked_value of record 1"),
        ({"name": None}, "name of record 1"),
        ({"better": "max"}, "better of record 1 must be higher or lower, got 'max'"),
        ({"attacked_value": [float("nan")]}, "must be a list of finite numbers, got"),
        ({"eps": float("inf")}, "eps of record 1 must be a finite number, got inf"),
        ({"commit": None}, "commit of record 1 must be a list of texts, got None"),
        ({"commit": "abc"}, "commit of record 1 must be a list of texts, got 'abc'"),
        ({"architecture": "resnet"}, "architecture of record 1 must be an object"),
        ({"unit": ["m"]}, "unit of record 1 must be a text"),
        ({"images": ["8x8x3"]}, "images of record 1 must be a text"),
        ({"step_size": float("nan")}, "Out of range float values"),
    ],
)
def test_damaged_records_are_refused(tmp_path, change, said):
    path = tmp_path / "records.json"
    (record,) = records("s", 0, result("pgd", 0.2))
    path.write_text(json.dumps([record | change]))
    with pytest.raises(InputError, match=said):
        leaderboard.read(path)


def test_page_needs_its_ending(tmp_path):
    with pytest.raises(InputError, match="must end with .html"):
        compare.main(CompareConfig(runs=("a",), leaderboard=str(tmp_path / "board")))


def of_model(fingerprint, value, name="a", **changes):
    return records(
        name, 0, result("pgd", value, model_fingerprint=fingerprint, **changes)
    )


def test_a_model_trained_again_takes_the_place_of_the_one_before(caplog):
    """As when a board is kept and the same run is attacked again."""
    old_records = of_model("old", 0.9) + of_model("old", 0.2, steps=100)
    collection = leaderboard.together([*old_records, *of_model("new", 0.3)])
    assert [(r["attacked_value"], r["models"]) for r in collection] == [
        ([0.3], ["new"])
    ]
    assert "of a (seed 0) only the records of the one" in caplog.text
    caplog.clear()
    assert leaderboard.together([*old_records, *old_records]) == leaderboard.together(
        old_records
    )
    assert not caplog.text


def test_of_two_results_of_one_attack_the_worse_counts():
    """As with images made on two other models, or with two random starts."""
    for values in ((0.28, 0.05), (0.05, 0.28)):
        pair = [of_model("m", value, source_fingerprint=str(value)) for value in values]
        (record,) = leaderboard.together(sum(pair, []))
        assert record["attacked_value"] == [0.05]
        loss_pair = [
            of_model("m", value, metric="loss", better="lower") for value in values
        ]
        (record,) = leaderboard.together(sum(loss_pair, []))
        assert record["attacked_value"] == [0.28]


def test_pictures_of_another_size_are_another_board():
    small = of_model("m", 0.1, name="s", images="64x64x3 0.5 0.5 0.5")
    large = of_model("n", 0.4, name="l", images="128x128x3 0.5 0.5 0.5")
    older = of_model("", 0.2, name="o")  # Its run says 64.
    boards = leaderboard.boards(leaderboard.together([*small, *large, *older]))
    assert [(b.about, [row.name for row in b.rows]) for b in boards] == [
        (f"7 images of rooms (validation) at {size} pixels; higher is better.", names)
        for size, names in (("64x64", ["o", "s"]), ("128x128", ["l"]))
    ]


def test_records_of_before_that_name_no_size_go_with_those_that_do():
    older = records("a", 0, result("pgd", 0.3))
    del older[0]["models"]
    newer = records("a", 1, result("pgd", 0.2, images="64x64x3 0.5 0.5 0.5"))
    (record,) = leaderboard.together([*older, *newer, *newer])
    assert (record["seeds"], record["attacked_value"]) == ([0, 1], [0.3, 0.2])
    other_size = records("a", 1, result("pgd", 0.1, images="32x32x3 0.5 0.5 0.5"))
    assert len(leaderboard.together([*newer, *other_size])) == 2
