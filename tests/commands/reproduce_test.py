# SPDX-License-Identifier: Apache-2.0
"""`python -m mtr_tf.reproduce`: what it says, and that kills change no figure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import process_fixture
import pytest

from mtr_tf import files
from mtr_tf import reproduce
from mtr_tf.errors import InputError
from mtr_tf.executors import local
from mtr_tf.reproduce import ReproduceConfig
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.study import queue
from mtr_tf.study import runner as runner_lib
from mtr_tf.study import study_file
from mtr_tf.study import unchanged
from mtr_tf.training import job

STUDY = """
about = "Two models and a look at each."
seeds = [3]
[train]
dataset = "camvid"
data_dir = "{data_dir}"
model = "tiny"
image_size = "32x40"
crop = "24x32"
batch_size = 4
epochs = 5
checkpoint_every = 4
eval_every = 30
eval_examples = 4
eval_steps = 1
[attack]
num_examples = 6
batch_size = 3
checks = false
steps = 2
[variants."s"]
tasks = ["seg"]
[variants."s+A"]
tasks = ["seg", "autoencoder"]
main_tasks = ["seg"]
aux_weight = 0.1
[attacks."moved"]
variants = ["s+A"]
source = "s"
attack_tasks = ["seg"]
eps = [1, 2, 4, 8]
measure = ["tasks"]
"""
# Does what the binary does, without importing TensorFlow, which takes seconds.
RUNNER = """
import pathlib, sys
from mtr_tf import executors
from mtr_tf.study import design, runner
study = design.Study.from_dict(__import__("json").load(open(sys.argv[1])))
folder = pathlib.Path(sys.argv[2])
runner.Runner(study, folder).run(executors.create("local", folder, workers=2))
"""


@pytest.fixture(scope="module")
def study_toml(camvid_dir, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("studies") / "tiny.toml"
    path.write_text(STUDY.format(data_dir=camvid_dir))
    return path


def test_without_a_study_it_says_which_there_are(capsys):
    reproduce.main(ReproduceConfig())
    said = capsys.readouterr().out
    for name in study_file.shipped():
        line = next(line for line in said.splitlines() if line.split()[:1] == [name])
        about = study_file.load(name).about
        assert about.startswith(line.split(maxsplit=1)[1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"study": "rooms-quik"}, "Did you mean 'rooms-quick'"),
        ({"only": ("s+a",)}, "did you mean 's\\+A'"),
        ({"seeds": (1, 1)}, "seeds must be one or more different"),
        ({"image_size": "x"}, "--image_size must be"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    study_toml, tmp_path, fields, said
):
    given = {"study": str(study_toml), "workdir": str(tmp_path / "w")} | fields
    with pytest.raises(InputError, match=said):
        reproduce.main(ReproduceConfig(**given))
    assert not (tmp_path / "w").exists()


def test_a_dry_run_lists_commands_and_writes_nothing(study_toml, tmp_path, capsys):
    workdir = tmp_path / "w"
    config = ReproduceConfig(
        study=str(study_toml), workdir=str(workdir), dry_run=True, seeds=(5, 6)
    )
    reproduce.main(config)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if not line.startswith("#")]
    assert len(said) == 6
    assert all(line.startswith("python -m mtr_tf.") for line in said)
    shares = [float(line.split(": ")[1].split("%")[0]) for line in lines if "%" in line]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "6 cells to do, 0 done" in lines[-1]
    reproduce.main(dataclasses.replace(config, only=("s",)))
    assert "2 cells to do" in capsys.readouterr().out
    assert not workdir.exists()


def test_other_data_take_what_they_have_tasks_for(camvid_dir, tmp_path, capsys):
    config = ReproduceConfig(
        study="rooms", workdir=str(tmp_path / "w"), dry_run=True, seeds=(0,)
    )
    reproduce.main(config)
    assert "--tasks=depth " in capsys.readouterr().out
    given = {"dataset": "camvid", "data_dir": str(camvid_dir), "image_size": "32x40"}
    reproduce.main(dataclasses.replace(config, **given))
    commands = capsys.readouterr().out
    assert "--tasks=seg,autoencoder " in commands
    assert "--dataset=camvid" in commands
    assert "depth" not in commands
    evidence = dataclasses.replace(config, study="evidence", **given)
    reproduce.main(evidence)
    commands = capsys.readouterr().out
    assert "--tasks=seg " in commands
    assert "--rooms_scenes" not in commands  # Camvid takes no such flag.


def test_data_of_other_variants_need_not_be_there(study_toml, tmp_path, monkeypatch):
    study = study_file.load(str(study_toml))
    s, both = study.variants
    both = dataclasses.replace(both, train=both.train | {"dataset": "cityscapes"})
    study = dataclasses.replace(study, variants=(s, both), attacks=())
    opened = []
    monkeypatch.setattr(building, "open_source", lambda of: opened.append(of.dataset))
    monkeypatch.setattr(runner_lib.Runner, "run", lambda self, engine: None)
    monkeypatch.setattr("tensorflow.config.set_visible_devices", lambda *given: None)
    runner = runner_lib.Runner(study, tmp_path, ("s",))
    reproduce._run_cells(runner, study, ReproduceConfig(workers=1), tmp_path)
    assert opened == ["camvid"]


def test_gpus_are_called_as_the_driver_calls_them(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert local.gpus(2) == ["5", "7"]
    assert local.gpus(0) == []


# Killed and not.


def start(command, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        **options,
    )


def processes_of(workdir):
    """Those whose command names the folder."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # It has ended meanwhile.
            continue
        if str(workdir).encode() in words and int(path.parent.name) != os.getpid():
            found.append(words)
    return found


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclasses.dataclass
class Studies:
    """Two folders of one study, and what was seen of the second one."""

    whole: pathlib.Path
    killed: pathlib.Path
    kills: int = 0


@pytest.fixture(scope="module")
def studies(study_toml, tmp_path_factory) -> Studies:
    """A study that was never disturbed, and one that was stopped again and again."""
    folder = tmp_path_factory.mktemp("reproduced")
    found = Studies(folder / "whole", folder / "killed")
    plain = folder / "plain.json"
    plain.write_text(json.dumps(study_file.load(str(study_toml)).to_dict()))
    undisturbed = start(["-c", RUNNER, plain, found.whole])
    _, said = undisturbed.communicate()
    assert undisturbed.returncode == 0, said
    moment = random.Random(1)
    for there in ("runs/s-*/checkpoints/ckpt-*.index", "runs/*/attacks/*/cells/*.json"):
        process = start(["-c", RUNNER, plain, found.killed])
        wait_until(lambda there=there: list(found.killed.glob(there)))
        time.sleep(moment.uniform(0, 0.3))
        found.kills += process.poll() is None
        process.kill()
        process.communicate()
        wait_until(lambda: not processes_of(found.killed))
    flags = [f"--study={study_toml}", f"--workdir={found.killed}", "--workers=2"]
    process = start(["-m", "mtr_tf.reproduce", *flags])
    _, said = process.communicate()
    assert process.returncode == 0, said
    return found


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks into /proc")
def test_killed_at_any_moment_all_figures_are_the_same(studies):
    assert studies.kills == 2
    expect_same(studies.whole, studies.killed)
    assert (studies.killed / "report" / "index.html").exists()


def expect_same(whole, killed):
    """Expects the figures of a study in another folder of it, and all cells done."""
    found = sorted(whole.glob("runs/*/attacks/*/*s.json"))
    names = [path.name for path in found]
    assert names.count("results.json") == names.count("measures.json") == 1
    for path in found:
        if path.name != "settings.json":  # Has the time in it.
            again = killed / path.relative_to(whole)
            assert again.read_bytes() == path.read_bytes()
    entries = json.loads((killed / "index.json").read_text())["cells"]
    assert [entry["state"] for entry in entries] == ["done"] * 3


@pytest.mark.fuzz
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks into /proc")
def test_killed_at_twenty_random_moments_all_figures_are_the_same(studies, tmp_path):
    plain = studies.whole.parent / "plain.json"

    def begin(folder):
        wait_until(lambda: not processes_of(tmp_path))
        command = [sys.executable, "-c", RUNNER, plain, folder]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    folders = process_fixture.kill_at_random_moments(
        begin, (tmp_path / f"study {n}" for n in itertools.count()), seed=4
    )
    wait_until(lambda: not processes_of(tmp_path))
    process = start(["-c", RUNNER, plain, folders[-1]])
    _, said = process.communicate()
    assert process.returncode == 0, said
    for folder in folders:
        expect_same(studies.whole, folder)
        assert not list(folder.rglob(".[0-9]*.*"))  # Half-written files.


def test_a_watcher_may_read_the_report_of_a_running_study(
    study_toml, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "w"
    runner_lib.Runner(study_file.load(str(study_toml)), workdir).write()
    before = (workdir / "index.json").stat().st_mtime_ns
    monkeypatch.setattr("mtr_tf.cli.startup.import_tensorflow", lambda: None)
    config = ReproduceConfig(study=str(study_toml), workdir=str(workdir), report=True)
    with files.locked(workdir):  # By whoever runs it.
        reproduce.main(config)
        with pytest.raises(InputError, match="in use by another process"):
            reproduce.main(dataclasses.replace(config, report=False))
    assert (workdir / "report" / "index.html").exists()
    assert (workdir / "index.json").stat().st_mtime_ns == before


def test_a_report_takes_the_place_of_no_better_one(study_toml, tmp_path, monkeypatch):
    """Where nothing of the study as it is now is done, there is nothing to say."""
    monkeypatch.setattr("mtr_tf.cli.startup.import_tensorflow", lambda: None)
    workdir = tmp_path / "w"
    config = ReproduceConfig(study=str(study_toml), workdir=str(workdir), report=True)
    with pytest.raises(InputError, match="must be the folder of a study"):
        reproduce.main(config)
    assert not workdir.exists()
    study = study_file.load(str(study_toml))
    runner_lib.Runner(study, workdir).write()
    export = str(tmp_path / "export")
    with pytest.raises(InputError, match="nothing to export: no cell of the study"):
        reproduce.main(dataclasses.replace(config, export=export))
    index = json.loads((workdir / "index.json").read_text())
    index["cells"][0]["state"] = "done"  # Of this study with other settings.
    (workdir / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="other settings .* of which nothing is done"):
        reproduce.main(config)
    train, *_, attack = index["cells"]  # A run that is done, but none of its attacks.
    attack |= {"folder": "of/other/settings", "state": "done"}
    (workdir / "index.json").write_text(json.dumps(index))
    run = workdir / train["folder"]
    directory.write_config(run, study.train_config(train["variant"], train["seed"]))
    (run / "model.keras").touch()
    with pytest.raises(InputError, match="other settings .* no attack is done"):
        reproduce.main(config)
    assert not (workdir / "report").exists()
    (workdir / "index.json").write_text('{"cells": 3}')  # Damaged: nobody knows.
    reproduce.main(config)
    assert (workdir / "report").exists()


def test_a_study_is_not_continued_on_other_data(
    study_toml, camvid_dir, tmp_path, monkeypatch
):
    """Also not where all of it is done; data that were moved are the same data."""
    monkeypatch.setattr("mtr_tf.cli.startup.import_tensorflow", lambda: None)
    study = study_file.load(str(study_toml))
    workdir = tmp_path / "w"
    runner = runner_lib.Runner(study, workdir)
    cell = next(cell for cell in runner.queue.cells if cell.kind == "train")
    source = building.open_source(cell.config)
    facts = job.data_facts(source, len(source.columns("train")))
    folder = workdir / cell.folder
    folder.mkdir(parents=True)
    content = {"train": cell.config.to_dict(), "data": facts}
    (folder / "config.json").write_text(json.dumps(content))
    moved = shutil.copytree(camvid_dir, tmp_path / "moved")
    other = study_file.load(str(study_toml), train={"data_dir": str(moved)})
    unchanged.check(runner_lib.Runner(other, workdir).queue, workdir)
    for part in ("val", "valannot"):
        sorted((moved / part).iterdir())[0].unlink()
    with pytest.raises(InputError, match="on other data: validation had . examples"):
        reproduce.main(
            ReproduceConfig(
                study=str(study_toml), workdir=str(workdir), data_dir=str(moved)
            )
        )
    shutil.rmtree(moved)
    runner = runner_lib.Runner(other, workdir)
    with pytest.raises(InputError, match="moved"):
        unchanged.check(runner.queue, workdir)
    for cell in runner.queue.cells:
        runner.queue.set(cell, queue.DONE)
    unchanged.check(runner.queue, workdir)  # Finished work needs no data.
