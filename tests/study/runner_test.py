# SPDX-License-Identifier: Apache-2.0
"""The runner of studies: folders, order, estimates, failures and kills.

Most tests use commands that only write files: modules made by the fixture `fake`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import process_fixture
import pytest
from absl import flags as absl_flags

import mtr_tf
from mtr_tf import executors
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.executors import command
from mtr_tf.executors import local
from mtr_tf.runs import directory
from mtr_tf.runs import store
from mtr_tf.study import commands
from mtr_tf.study import costs
from mtr_tf.study import runner as runner_lib
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study
from mtr_tf.study.design import Variant

STUDY = Study(
    name="mine",
    about="About.",
    seeds=(0, 1),
    train={"dataset": "rooms", "epochs": 3},
    attack={"num_examples": 8},
    variants=(
        Variant("s", {"tasks": ("seg",)}),
        Variant("s A", {"tasks": ("seg", "autoencoder"), "aux_weight": 0.1}),
    ),
    attacks=(
        AttackSpec("pgd", {"attack_tasks": ("seg",), "eps": (1.0, 2.5)}, ("s", "s A")),
        AttackSpec("moved", {"attack_tasks": ("seg",)}, ("s",), "s A"),
        AttackSpec("theory", {"attack": ("none",), "measure": ("tasks",)}, ("s A",)),
    ),
    claims=(),
)
ONE_SEED = dataclasses.replace(STUDY, seeds=(0,))
HERE = pathlib.Path("w")
ONE = ({"SLOT": "mine"},)  # One worker, and what is in its environment.
ENDED = command.Ended(0, 1.0, "", {}, "here")


def engine(*slots):
    """An executor with these slots."""
    return executors.Engine(local.LocalExecutor(slots), len(slots), len(slots))


def cells_of(study=STUDY, workdir=HERE):
    return commands.make_cells(study, workdir)


def changed(*path, **fields):
    """STUDY with fields changed in one place: `changed("train", epochs=4)`."""
    name, *index = path
    if not index:
        return dataclasses.replace(STUDY, **{name: getattr(STUDY, name) | fields})
    items = list(getattr(STUDY, name))
    field = {"variants": "train", "attacks": "attack"}[name]
    item = items[index[0]]
    items[index[0]] = dataclasses.replace(
        item, **{field: getattr(item, field) | fields}
    )
    return dataclasses.replace(STUDY, **{name: tuple(items)})


# Cells and their folders.


def test_cells_come_seed_by_seed_with_what_they_need():
    result = [(c.seed, c.kind, c.variant, c.attack) for c in cells_of()]
    seed_cells = [
        ("train", "s", None),
        ("train", "s A", None),
        ("attack", "s", "pgd"),
        ("attack", "s", "moved"),
        ("attack", "s A", "pgd"),
        ("attack", "s A", "theory"),
    ]
    assert result == [(seed, *cell) for seed in (0, 1) for cell in seed_cells]
    train, source, pgd, moved, *_ = cells_of()
    assert pgd.needs == (train.folder,)
    assert moved.needs == (train.folder, source.folder)
    assert source.folder == f"runs/s_A-seed0-{source.hash[:8]}"
    assert moved.folder == f"{train.folder}/attacks/moved-{moved.hash[:8]}"


def parsed(command, *records):
    """The settings that the binary makes of a command's flags."""
    values = absl_flags.FlagValues()
    for record in records:
        cli_flags.define(record, values)
    values(list(command))
    return [cli_flags.read(record, values) for record in records]


def test_the_commands_flags_say_what_the_study_says_and_no_more():
    study = changed("variants", 1, flip=False, weight_decay=1e-5, lr_epochs=(1, 2),
                    schedule="step", adversarial_tasks="main")  # fmt: skip
    study = dataclasses.replace(study, attack={"num_examples": 0, "checks": False})
    for cell in cells_of(study):
        if cell.kind == "train":
            config, place = parsed(cell.command, TrainConfig, RunPlace)
            assert config == study.train_config(cell.variant, cell.seed)
            assert place == RunPlace(workdir=f"w/{cell.folder}")
        else:
            (config,) = parsed(cell.command, AttackConfig)
            run, *source = cell.needs
            fields = study.attack_fields(cell.attack, cell.variant, cell.seed)
            assert config == AttackConfig(
                ckpt=f"w/{run}",
                source_ckpt=f"w/{source[0]}" if source else "",
                name=pathlib.PurePath(cell.folder).name,
                **fields,
            )
    first = cells_of()[0]
    assert first.shown == (
        f"python -m mtr_tf.train --tasks=seg --epochs=3 --workdir=w/{first.folder}"
    )


ALL = {"s/train", "s A/train", "s/pgd", "s A/pgd", "s/moved", "s A/theory"}


@pytest.mark.parametrize(
    ("other", "new"),
    [
        # Where a setting is given, and where and how fast cells run, does not matter.
        (changed("train", data_dir="d", replicas=1, keep_checkpoints=9), set()),
        (changed("train", learning_rate=2e-3), set()),  # The default.
        (changed("attack", batch_size=5, data_dir="d", replicas=2), set()),
        (changed("attacks", 0, num_examples=8), set()),
        # Settings that change results change the folders of these cells only.
        (changed("train", epochs=4), ALL),
        (changed("variants", 0, width=5), {"s/train", "s/pgd", "s/moved"}),
        (
            changed("variants", 1, width=5),
            {"s A/train", "s A/pgd", "s A/theory", "s/moved"},  # Moved from there.
        ),
        (changed("attack", num_examples=9), ALL - {"s/train", "s A/train"}),
        (changed("attacks", 1, steps=9), {"s/moved"}),
        (changed("attacks", 2, measure_draws=9), {"s A/theory"}),
    ],
)
def test_a_folder_stands_for_all_that_changes_results(other, new):
    pairs = list(zip(cells_of(), cells_of(other), strict=True))
    names = {
        f"{cell.variant}/{cell.attack or 'train'}"
        for cell, changed_cell in pairs
        if changed_cell.hash != cell.hash
    }
    assert names == new
    for cell, changed_cell in pairs:
        assert (cell.folder == changed_cell.folder) == (cell.hash == changed_cell.hash)


# In the file's order, which is not that of training.
TUNED = dataclasses.replace(
    STUDY,
    variants=(
        Variant("last", {"tasks": ("seg",), "epochs": 2}, init_from="tuned"),
        Variant("tuned", {"tasks": ("seg",), "epochs": 1}, init_from="s"),
        Variant("s", {"tasks": ("seg",)}),
    ),
    attacks=(AttackSpec("pgd", {"attack_tasks": ("seg",)}, ("s", "last")),),
)


def trainings(study=TUNED, workdir=HERE):
    """{(variant, seed): training cell}."""
    cells = [cell for cell in cells_of(study, workdir) if cell.kind == "train"]
    return {(cell.variant, cell.seed): cell for cell in cells}


def test_a_training_begins_with_the_other_ones_model_of_its_seed():
    result = [(c.seed, c.kind, c.variant) for c in cells_of(TUNED)]
    seed_cells = [
        ("train", "s"),
        ("train", "tuned"),
        ("train", "last"),
        ("attack", "last"),
        ("attack", "s"),
    ]
    assert result == [(seed, *cell) for seed in (0, 1) for cell in seed_cells]
    cells = trainings()
    for seed in (0, 1):
        s, tuned, last = (cells[name, seed] for name in ("s", "tuned", "last"))
        assert (s.needs, tuned.needs, last.needs) == ((), (s.folder,), (tuned.folder,))
        for cell, source in ((tuned, s), (last, tuned)):
            config, place = parsed(cell.command, TrainConfig, RunPlace)
            base_config = TUNED.train_config(cell.variant, seed)
            assert config == dataclasses.replace(base_config, init=f"w/{source.folder}")
            assert place == RunPlace(workdir=f"w/{cell.folder}")
    assert cells["s", 0].hash == trainings(STUDY)["s", 0].hash


def test_a_hash_covers_what_a_training_begins_with_but_not_where_that_is():
    def changed_cells(study=TUNED, workdir=HERE):
        """Names of the cells whose hash differs from that in TUNED."""
        pairs = zip(cells_of(TUNED), cells_of(study, workdir), strict=True)
        return {f"{a.variant}/{a.attack}" for a, b in pairs if a.hash != b.hash}

    def with_train(index, **fields):
        variants = list(TUNED.variants)
        train = variants[index].train | fields
        variants[index] = dataclasses.replace(variants[index], train=train)
        return dataclasses.replace(TUNED, variants=tuple(variants))

    assert not changed_cells(workdir=pathlib.Path("/else/where"))
    assert changed_cells(with_train(0, epochs=9)) == {"last/None", "last/pgd"}
    tuned_cells = {"tuned/None", "last/None", "last/pgd"}
    assert changed_cells(with_train(1, epochs=9)) == tuned_cells
    assert changed_cells(with_train(2, epochs=9)) == tuned_cells | {"s/None", "s/pgd"}
    assert changed_cells(with_train(2, data_dir="d")) == set()
    tuned = trainings()["tuned", 0]
    variants = [Variant("tuned", TUNED.variants[1].train)]
    study = dataclasses.replace(TUNED, variants=tuple(variants), attacks=())
    assert trainings(study)["tuned", 0].hash != tuned.hash


def test_a_tuned_run_is_done_wherever_the_study_is_now(tmp_path):
    cell = trainings(workdir=tmp_path / "before")["tuned", 0]
    folder = tmp_path / "before" / cell.folder
    directory.write_config(folder, cell.config)
    (folder / "model.keras").touch()
    (tmp_path / "before").rename(tmp_path / "now")
    moved_cell = trainings(workdir=tmp_path / "now")["tuned", 0]
    assert moved_cell.config.init != cell.config.init
    assert commands.is_done(moved_cell, tmp_path / "now")
    other_config = dataclasses.replace(cell.config, epochs=9)
    directory.write_config(tmp_path / "now" / cell.folder, other_config)
    assert not commands.is_done(moved_cell, tmp_path / "now")


def test_a_begun_run_goes_on_where_the_study_is_now(tmp_path):
    """Or begins anew if no checkpoint is left."""
    s, tuned = (trainings(workdir=tmp_path)[name, 0] for name in ("s", "tuned"))
    for cell in (s, tuned):
        directory.write_config(
            tmp_path / cell.folder,
            dataclasses.replace(cell.config, init="/before/s" if cell.needs else ""),
            facts={"init": "digest"},
        )
    config = tmp_path / tuned.folder / "config.json"
    checkpoint = tmp_path / tuned.folder / "checkpoints" / "ckpt-3.index"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    commands.renew_init(tuned, tmp_path)
    directory.check_workdir(tmp_path / tuned.folder, tuned.config, resume=True)
    assert json.loads(config.read_text())["init"] == "digest"  # Compared in training.
    checkpoint.unlink()
    for cell in (s, tuned):
        commands.renew_init(cell, tmp_path)
        exists = (tmp_path / cell.folder / "config.json").exists()
        assert exists == (cell.variant == "s")


def test_another_version_of_the_package_is_another_folder(monkeypatch):
    folders = {cell.folder for cell in cells_of()}
    monkeypatch.setattr(mtr_tf, "__version__", "9.9")
    assert folders.isdisjoint(cell.folder for cell in cells_of())


def test_a_new_setting_leaves_what_is_done_and_another_default_does_not(tmp_path):
    train, _, pgd, *_ = cells_of(workdir=tmp_path)
    for cell, file in ((train, "config.json"), (pgd, commands.MARKER)):
        folder = tmp_path / cell.folder
        folder.mkdir(parents=True)
        for name in cell.files:
            (folder / name).touch()
        if cell.kind == "train":
            directory.write_config(folder, cell.config)
        else:
            commands.write_marker(cell, tmp_path, ENDED, is_new=True)
        assert commands.is_done(cell, tmp_path)
        content = store.read_kept(folder / file)
        settings = content["train" if cell.kind == "train" else "settings"]
        name = "momentum" if cell.kind == "train" else "restarts"
        settings[name] += 1  # What the default was when it was done.
        store.write_file(folder / file, content)
        assert not commands.is_done(cell, tmp_path)
        del settings[name]  # There was no such setting.
        store.write_file(folder / file, content)
        assert commands.is_done(cell, tmp_path)
    # So a folder's name does not depend on a setting at its default.
    study = changed("attacks", 0, restarts=1)
    study = dataclasses.replace(study, train=STUDY.train | {"momentum": 0.9})
    assert [c.hash for c in cells_of(study)] == [c.hash for c in cells_of()]


def test_a_run_is_done_however_the_study_spells_its_tasks(tmp_path):
    """A run keeps the canonical name of each task."""
    variant = Variant("r", {"tasks": ("seg", "autoencoder"), "random_targets": ("A",)})
    study = dataclasses.replace(STUDY, seeds=(0,), variants=(variant,), attacks=())
    (cell,) = cells_of(study, tmp_path)
    directory.write_config(tmp_path / cell.folder, directory.canonical(cell.config))
    (tmp_path / cell.folder / "model.keras").touch()
    assert commands.is_done(cell, tmp_path)
    other_config = dataclasses.replace(cell.config, random_targets=("seg",))
    directory.write_config(tmp_path / cell.folder, other_config)
    assert not commands.is_done(cell, tmp_path)


def test_an_attack_is_done_only_with_its_files_and_a_marker_of_its_own(tmp_path):
    train, _, pgd, *_ = cells_of(workdir=tmp_path)
    theory = cells_of(workdir=tmp_path)[5]
    for cell, file in ((train, "model.keras"), (pgd, "results.json"),
                       (theory, "measures.json")):  # fmt: skip
        assert not commands.is_done(cell, tmp_path)
        (tmp_path / cell.folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / cell.folder / file).write_text("{}")
        assert commands.is_done(cell, tmp_path) == (cell.kind == "train")
        commands.write_marker(cell, tmp_path, ENDED, is_new=True)
        assert commands.is_done(cell, tmp_path)
    marker = tmp_path / pgd.folder / commands.MARKER
    for text in ("", "{", "[]", json.dumps({"hash": theory.hash})):
        marker.write_text(text)
        assert not commands.is_done(pgd, tmp_path)
    commands.write_marker(pgd, tmp_path, ENDED, is_new=True)
    content = marker.read_text()
    marker.write_text(content.replace('"seconds": 1.0', '"seconds": 2.0'))
    assert not commands.is_done(pgd, tmp_path)
    fields = json.loads(content)
    del fields["checksum"], fields["checksums"]
    for text, is_done in ((json.dumps(fields), False), (content, True)):
        marker.write_text(text)
        assert commands.is_done(pgd, tmp_path) == is_done
    (tmp_path / pgd.folder / "results.json").write_text("[]")
    assert not commands.is_done(pgd, tmp_path)
    (tmp_path / pgd.folder / "results.json").unlink()
    assert not commands.is_done(pgd, tmp_path)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("train", [["seed"], {"seed": []}, "seed", 3])
def test_a_config_of_another_form_is_done_again(train, tmp_path):
    cell = cells_of(workdir=tmp_path)[0]
    directory.write_config(tmp_path / cell.folder, cell.config)
    (tmp_path / cell.folder / "model.keras").touch()
    assert commands.is_done(cell, tmp_path)
    path = tmp_path / cell.folder / "config.json"
    path.write_text(json.dumps({"train": train}))
    assert not commands.is_done(cell, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", DEEP], ids=lambda text: text[:2])
def test_a_config_that_cannot_be_read_is_reported_by_what_reads_it(text, tmp_path):
    """The run counts as done: training it again would be refused."""
    cell = cells_of(workdir=tmp_path)[0]
    directory.write_config(tmp_path / cell.folder, cell.config)
    (tmp_path / cell.folder / "model.keras").touch()
    (tmp_path / cell.folder / "config.json").write_text(text)
    assert commands.is_done(cell, tmp_path)
    with pytest.raises(InputError, match="config.json is damaged"):
        directory.check_workdir(tmp_path / cell.folder, cell.config, resume=True)


@pytest.mark.parametrize(
    "change",
    [{"settings": ["steps"]}, {"settings": 3}, {"checksums": [1]}, {"hash": ["x"]}],
)
def test_a_marker_of_another_form_is_done_again(change, tmp_path):
    pgd = cells_of(workdir=tmp_path)[2]
    folder = tmp_path / pgd.folder
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("[]")
    commands.write_marker(pgd, tmp_path, ENDED, is_new=True)
    content = json.loads((folder / commands.MARKER).read_text())
    del content["checksum"]  # As of a version that kept none.
    (folder / commands.MARKER).write_text(json.dumps(content | change))
    assert not commands.is_done(pgd, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", DEEP, '{"cells": 3}', '{"cells": [3]}', '{"cells": [{}]}',
     '{"cells": [{"state": "failed"}]}'],
)  # fmt: skip
def test_an_index_of_another_form_is_no_traceback(text, tmp_path):
    (tmp_path / "index.json").write_text(text)
    assert runner_lib.Runner(STUDY, tmp_path).before == {}


# The time left.


def clock(costs_of_cells, durations):
    """A clock for cells with these costs, some of which took these `durations`."""
    result = costs.Clock({cell.folder: cost for cell, cost in costs_of_cells.items()})
    for cell, seconds in durations.items():
        result.add(cell, seconds)
    return result


def test_the_nearest_cells_say_how_long_one_takes():
    cells = cells_of()
    train, train_a, pgd, moved, pgd_a, _ = cells[:6]
    train_1, pgd_1 = cells[6], cells[8]
    prices = dict.fromkeys(cells, 1.0) | {train_a: 2.0, pgd_a: 3.0, pgd_1: 1.0}
    assert clock(prices, {}).seconds(train) is None
    timer = clock(prices, {train: 10 + 40})  # Ten seconds to start.
    assert timer.seconds(train_1) == 10 + 40
    assert timer.seconds(train_a) == 10 + 2 * 40  # By cost.
    assert timer.seconds(pgd) == 10 + 40  # As long as no attack is known.
    timer.add(pgd, 10 + 7)
    assert timer.seconds(pgd_a) == 10 + 3 * 7  # The same attack on another variant.
    assert timer.seconds(moved) == 10 + 7  # Another attack.
    timer.add(pgd_a, 10 + 60)
    assert timer.seconds(pgd_1) == 10 + 7  # The same with another seed.


def test_time_left_by_hand():
    cells = cells_of()
    train, train_a, pgd, moved, *_ = cells
    timer = clock(dict.fromkeys(cells, 1.0), {train: 10 + 20})  # 30 s each.
    assert clock({}, {}).left([train], [], 1) is None
    assert timer.left([], [], 2) == 0
    assert timer.left([train, train_a], [], 1) == 60
    assert timer.left([train, train_a], [], 2) == 30
    assert timer.left([train, train_a, pgd], [], 2) == 45
    assert timer.left([train, train_a, pgd, moved], [], 8) == 30  # One cell at least.
    assert timer.left([pgd], [(train, 25.0)], 1) == 5 + 30
    assert timer.left([], [(train, 100.0)], 2) == 3  # Late: a tenth of it still.
    assert timer.left([pgd, moved, train_a], [(train, 20.0)], 2) == 50


def test_costs_are_in_proportion():
    def cost(**fields):
        return costs.of_training(TrainConfig(**{"train_examples": 100, **fields}))

    assert cost(epochs=40) == 2 * cost(epochs=20)
    assert cost(image_size="128") == 4 * cost()
    assert cost(tasks=("seg", "depth", "normal")) == 2 * cost(tasks=("seg",))
    assert cost(adversarial_tasks="main", adversarial_steps=5) == 3 * cost()

    run = TrainConfig(tasks=("seg", "depth"))

    def attack_cost(**fields):
        return costs.of_attack(AttackConfig(ckpt="x", **fields), run)

    each_cost = attack_cost(attack_tasks=("each",), steps=10)
    assert attack_cost(attack_tasks=("each", "all"), steps=10) == pytest.approx(
        1.5 * each_cost
    )
    assert (
        attack_cost(attack_tasks=("each",), steps=10, eps=(0.0, 1.0)) == each_cost / 4
    )
    assert attack_cost(steps=100) > 8 * attack_cost(steps=10)
    no_attack = {"attack": ("none",), "measure": ("pixels",)}
    assert attack_cost(**no_attack, measure_draws=8) == 2 * attack_cost(
        **no_attack, measure_draws=4
    )


def test_a_cell_without_an_attack_takes_time_too():
    cells = cells_of()
    run = TrainConfig(tasks=("seg",))
    price = costs.of_attack(AttackConfig(ckpt="x", eps=(0.0,)), run)
    timer = clock({cell: price for cell in cells}, {cells[2]: 10 + 20})
    assert timer.seconds(cells[3]) == pytest.approx(10 + 20)


# Running.


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a runner whose cells run a test's Python code, with the names of MODULE."""
    old_path = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, [str(tmp_path / "modules"), old_path]))
    monkeypatch.setenv("PYTHONPATH", path)
    lines = []
    logger = runner_lib.logging
    monkeypatch.setattr(logger, "info", lambda line, *v: lines.append(line % v))
    monkeypatch.setattr(logger, "error", lambda line, *v: lines.append(line % v))

    def make(body, study=STUDY, variants=()):
        module = tmp_path / "modules" / "fake_command.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text(MODULE + textwrap.indent(textwrap.dedent(body), "    "))
        monkeypatch.setattr(commands, "make_cells", fake_cells)
        return runner_lib.Runner(study, tmp_path / "w", variants)

    make.workdir, make.logged = tmp_path / "w", lines
    return make


REAL_CELLS = commands.make_cells


def fake_cells(study, workdir):
    """The cells with a command that runs `fake_command`, as written by `fake`."""
    return [
        dataclasses.replace(cell, command=("fake_command", str(workdir), cell.folder))
        for cell in REAL_CELLS(study, workdir)
    ]


MODULE = """
import os, pathlib, sys, time

def run():
    root, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1], sys.argv[2])
    name = folder.name.rsplit("-", 1)[0]
    folder.mkdir(parents=True, exist_ok=True)
    with open(root / "order", "a") as file:
        print(folder.relative_to(root), file=file)
    def done():
        for name in ("model.keras", "results.json", "measures.json"):
            (folder / name).write_text("[]")
"""


def order(workdir):
    return (workdir / "order").read_text().split("\n")[:-1]


def index(workdir):
    content = json.loads((workdir / "index.json").read_text())
    assert content["study"] == "mine"
    return {
        (cell["seed"], cell["variant"], cell["attack"]): cell
        for cell in content["cells"]
    }


def test_one_worker_does_the_cells_in_order_and_each_once(fake):
    runner = fake("done()", ONE_SEED)
    runner.write()
    assert {cell["state"] for cell in index(fake.workdir).values()} == {"missing"}
    runner.run(engine(*ONE))
    cells = cells_of(ONE_SEED, fake.workdir)
    assert order(fake.workdir) == [cell.folder for cell in cells]
    for cell in cells:
        entry = index(fake.workdir)[cell.seed, cell.variant, cell.attack]
        assert (entry["kind"], entry["folder"]) == (cell.kind, cell.folder)
        assert (entry["state"], entry["error"]) == ("done", None)
        assert entry["environment"] == ONE[0]
        assert 0 < entry["seconds"] < 60
        assert (fake.workdir / entry["log"]).read_text() == f"$ {entry['command']}\n"
        assert entry["command"].startswith("python -m fake_command ")
    assert len({entry["log"] for entry in index(fake.workdir).values()}) == 6
    assert re.search(r"training of s, seed 0: \d+ s; 5 left, about", fake.logged[0])
    assert fake.logged[-1].endswith("; 0 left")
    content = json.loads((fake.workdir / "study.json").read_text())
    assert Study.from_dict(content) == ONE_SEED
    fake("done()", ONE_SEED).run(engine(*ONE))
    assert len(order(fake.workdir)) == 6


def test_two_workers_work_at_a_time_and_never_before_what_a_cell_needs(fake):
    runner = fake(
        """
        if name == "s-seed0":  # Waits for the other one, which starts beside it.
            while not list(root.glob("runs/s_A-seed0-*/model.keras")):
                time.sleep(0.01)
        if "attacks" in folder.parts:
            assert (folder.parents[1] / "model.keras").exists()
        if name == "moved":
            assert list(root.glob("runs/s_A-seed0-*/model.keras"))
        done()
        """,
        ONE_SEED,
    )
    runner.run(engine({}, {}))
    assert {cell["state"] for cell in index(fake.workdir).values()} == {"done"}
    assert len(order(fake.workdir)) == 6


def test_a_failed_cell_stops_only_what_needs_it_and_is_tried_again(fake):
    body = """
        print("12:00:00 working")
        if name == "s_A-seed0":
            raise ValueError("no good\\n  [Op:Nonsense]")
        if name == "pgd":
            print("error: --eps must be small.\\nsomething else")
            sys.exit(1)
        done()
        """
    last_attack = AttackSpec("fgsm", {"attack_tasks": ("seg",)}, ("s",))
    study = dataclasses.replace(ONE_SEED, attacks=(*STUDY.attacks, last_attack))
    runner = fake(body, study)
    runner.run(engine(*ONE))
    states = {key: cell["state"] for key, cell in index(fake.workdir).items()}
    bad_states = {key: state for key, state in states.items() if state != "done"}
    assert bad_states == {
        (0, "s A", None): "failed",
        (0, "s A", "pgd"): "missing",
        (0, "s A", "theory"): "missing",
        (0, "s", "moved"): "missing",  # Its images are made on s A.
        (0, "s", "pgd"): "failed",
    }
    assert runner.failures() == [
        "training of s A, seed 0: ValueError: no good",
        "pgd on s, seed 0: --eps must be small.",
    ]
    entry = index(fake.workdir)[0, "s A", None]
    assert entry["error"] == "ValueError: no good"
    assert any(str(fake.workdir / entry["log"]) in line for line in fake.logged)
    new_runner = fake("done()", study)
    assert new_runner.failures() == runner.failures()  # Until a cell is tried again.
    new_runner.queue.retry()
    new_runner.run(engine(*ONE))
    assert {cell["state"] for cell in index(fake.workdir).values()} == {"done"}
    assert not new_runner.failures()
    assert len(order(fake.workdir)) == 4 + 5


def test_a_command_that_ends_well_and_leaves_nothing_has_failed(fake):
    runner = fake("if name != 'pgd': done()\nelse: print('I have ended')", ONE_SEED)
    runner.run(engine(*ONE))
    assert len(runner.failures()) == 2
    assert "I have ended" in runner.failures()[0]


def test_only_some_variants_and_what_they_need(fake):
    fake("done()", ONE_SEED, ("s",)).run(engine(*ONE))
    cells = cells_of(ONE_SEED, fake.workdir)
    expected = [c for c in cells if c.variant == "s" or c.kind == "train"]
    assert order(fake.workdir) == [cell.folder for cell in expected]
    states = [cell["state"] for cell in index(fake.workdir).values()]
    assert (states.count("done"), states.count("missing")) == (4, 2)


def test_results_outlive_models(fake):
    """A study goes on from a copy without models; one is trained again if needed."""
    fake("done()", ONE_SEED).run(engine(*ONE))
    for model in fake.workdir.glob("runs/*/model.keras"):
        model.unlink()
    fake("done()", ONE_SEED).run(engine(*ONE))
    assert {cell["state"] for cell in index(fake.workdir).values()} == {"done"}
    assert {cell["seconds"] is None for cell in index(fake.workdir).values()} == {False}
    assert len(order(fake.workdir)) == 6
    train, _, pgd, *_ = cells_of(workdir=fake.workdir)
    (fake.workdir / pgd.folder / "results.json").unlink()
    fake("done()", ONE_SEED).run(engine(*ONE))
    assert order(fake.workdir)[6:] == [train.folder, pgd.folder]


def test_trainings_wait_for_the_model_that_they_begin_with(fake):
    body = """
        if name == "last-seed0":
            assert list(root.glob("runs/tuned-seed0-*/model.keras"))
        if name == "tuned-seed0":
            assert list(root.glob("runs/s-seed0-*/model.keras"))
        done()
        """
    fake(body, dataclasses.replace(TUNED, seeds=(0,))).run(engine({}, {}))
    assert {cell["state"] for cell in index(fake.workdir).values()} == {"done"}
    assert len(order(fake.workdir)) == 5


def test_a_failed_training_stops_those_that_begin_with_it(fake):
    runner = fake("if name == 's-seed0': sys.exit(1)\ndone()", TUNED)
    runner.run(engine(*ONE))
    states = {key: cell["state"] for key, cell in index(fake.workdir).items()}
    assert {key: state for key, state in states.items() if state != "done"} == {
        (0, "s", None): "failed",
        (0, "tuned", None): "missing",
        (0, "last", None): "missing",
        (0, "last", "pgd"): "missing",
        (0, "s", "pgd"): "missing",
    }
    assert not runner.queue.waiting()
    assert len(runner.failures()) == 1
    runner.queue.retry()
    assert len(runner.queue.waiting()) == 5


def test_only_a_variant_and_all_that_it_begins_with(fake):
    study = dataclasses.replace(TUNED, seeds=(0,))
    fake("done()", study, ("last",)).run(engine(*ONE))
    names = [path.rsplit("/", 1)[-1].rsplit("-", 1)[0] for path in order(fake.workdir)]
    assert names == ["s-seed0", "tuned-seed0", "last-seed0", "pgd"]


def test_models_that_others_began_with_are_not_trained_again(fake):
    """Results outlive models, also those of a line of trainings."""
    study = dataclasses.replace(TUNED, seeds=(0,))
    fake("done()", study).run(engine(*ONE))
    for model in fake.workdir.glob("runs/*/model.keras"):
        model.unlink()
    fake("done()", study).run(engine(*ONE))
    assert len(order(fake.workdir)) == 5
    cells = {(c.variant, c.kind): c for c in cells_of(study, fake.workdir)}
    (fake.workdir / cells["last", "attack"].folder / "results.json").unlink()
    fake("done()", study).run(engine(*ONE))
    expected = [
        ("s", "train"),
        ("tuned", "train"),
        ("last", "train"),
        ("last", "attack"),
    ]
    assert order(fake.workdir)[5:] == [cells[key].folder for key in expected]


def test_a_worker_has_one_thread_or_one_gpu(fake):
    thread = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    thread |= {"OMP_NUM_THREADS": "1"}
    assert local.slots(0, [], 3) == [thread] * 3
    assert local.slots(2, [], 8) == [thread] * 2
    assert local.slots(0, ["2", "5"], 8) == [
        {"CUDA_VISIBLE_DEVICES": "2"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    slots = local.slots(3, ["2", "5"], 8)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "5", "2"]
    assert {slot["TF_FORCE_GPU_ALLOW_GROWTH"] for slot in slots} == {"true"}
    study = dataclasses.replace(STUDY, seeds=(0,), attacks=())
    fake("(folder / 'env').write_text(os.environ['SLOT']); done()", study).run(
        engine(*ONE)
    )
    assert {p.read_text() for p in fake.workdir.glob("runs/*/env")} == {"mine"}


def test_a_new_report_of_old_cells_is_traced_by_what_has_run(fake, monkeypatch):
    traces = iter([{"commit": "first"}, {"commit": "second"}, {"commit": "third"}])
    monkeypatch.setattr(runner_lib.directory, "environment", lambda: next(traces))

    def commit(computes, study=STUDY):
        fake("done()", study).write(computes)
        content = json.loads((fake.workdir / "study.json").read_text())
        assert Study.from_dict(content) == study
        return content["provenance"]["commit"]

    changed_claims = dataclasses.replace(STUDY, claims=({"id": "new"},))
    assert commit(computes=False) == "first"  # There was none.
    assert commit(computes=False, study=changed_claims) == "first"
    assert commit(computes=True) == "second"


RUNNER = """
import pathlib, sys
sys.path.insert(0, {tests!r})
sys.path.insert(0, {folder!r})
from mtr_tf.cli import startup
startup.import_tensorflow()
import runner_test as test
from mtr_tf.cli import flags
test.commands.make_cells = test.fake_cells
runner = test.runner_lib.Runner(test.STUDY, pathlib.Path({workdir!r}))
def main():
    runner.run(test.engine({{}}, {{}}))
flags.run("x", "", (), main, "Go on.")
"""


def alive(pid):
    """Whether a process still runs, rather than only its exit code being kept."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_nothing_outlives_the_runner(fake, tmp_path, signum, code):
    """Neither commands that sleep nor those that hold the interpreter until forced."""
    fake(
        """
        (root / f"pid{os.getpid()}").touch()
        if name == "s-seed0":
            time.sleep(1000)
        while True:
            sum(range(100_000))
        """
    )
    script = tmp_path / "script.py"
    tests = str(pathlib.Path(__file__).parents[1])
    folder = str(pathlib.Path(__file__).parent)
    script.write_text(
        RUNNER.format(tests=tests, folder=folder, workdir=str(fake.workdir))
    )
    runner = process_fixture.start([sys.executable, script], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(list(fake.workdir.glob("pid*"))) == 2)
        runner.send_signal(signum)
        message = runner.communicate(timeout=60)[1].decode()
    finally:
        runner.kill()
    assert runner.returncode == code
    if code > 0:
        name = {130: "Ctrl-C", 143: "SIGTERM"}[code]
        assert message.startswith(f"\nstopped by {name}. 0 cells are done and kept in ")
        assert message.count("\n") == 2
    pids = [int(path.name[3:]) for path in fake.workdir.glob("pid*")]
    wait_until(lambda: not any(map(alive, pids)))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_intervals_are_said_as_people_do():
    texts = [costs.in_words(s) for s in (0.4, 89, 90, 3600, 5400, 10_000)]
    assert texts == ["0 s", "89 s", "2 min", "60 min", "1 h 30 min", "2 h 47 min"]


@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        (b"", 3, "it ended with code 3"),
        (b"Killed", -9, "it was ended by SIGKILL, which often means too little memory"),
        (b"x\nerror: --eps is wrong.\n", 1, "--eps is wrong."),
        (
            b"Traceback:\n  File\nmtr_tf.x.OddError: no\n  more\n",
            1,
            "mtr_tf.x.OddError",
        ),
        (
            b"I0000 00:00 noise\n12:30:00 info\nlast \xff words\n\n",
            1,
            "last \ufffd words",
        ),
    ],
)
def test_the_line_that_says_why(log, code, said):
    assert command.last_words(log, code).startswith(said)
