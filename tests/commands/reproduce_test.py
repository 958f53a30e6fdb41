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
# Does the same as the binary, but does not import TensorFlow, which takes seconds.
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
    output = capsys.readouterr().out
    for name in study_file.shipped():
        line = next(line for line in output.splitlines() if line.split()[:1] == [name])
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
    settings = {"study": str(study_toml), "workdir": str(tmp_path / "w")} | fields
    with pytest.raises(InputError, match=said):
        reproduce.main(ReproduceConfig(**settings))
    assert not (tmp_path / "w").exists()


def test_a_dry_run_lists_commands_and_writes_nothing(study_toml, tmp_path, capsys):
    workdir = tmp_path / "w"
    config = ReproduceConfig(
        study=str(study_toml), workdir=str(workdir), dry_run=True, seeds=(5, 6)
    )
    reproduce.main(config)
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert len(commands) == 6
    assert all(line.startswith("python -m mtr_tf.") for line in commands)
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
    camvid = {"dataset": "camvid", "data_dir": str(camvid_dir), "image_size": "32x40"}
    reproduce.main(dataclasses.replace(config, **camvid))
    commands = capsys.readouterr().out
    assert "--tasks=seg,autoencoder " in commands
    assert "--dataset=camvid" in commands
    assert "depth" not in commands
    evidence = dataclasses.replace(config, study="evidence", **camvid)
    reproduce.main(evidence)
    commands = capsys.readouterr().out
    assert "--tasks=seg " in commands
    assert "--rooms_scenes" not in commands  # Camvid takes no such flag.


def test_data_of_other_variants_need_not_be_there(study_toml, tmp_path, monkeypatch):
    study = study_file.load(str(study_toml))
    s_variant, joint_variant = study.variants
    joint_variant = dataclasses.replace(
        joint_variant, train=joint_variant.train | {"dataset": "cityscapes"}
    )
    study = dataclasses.replace(study, variants=(s_variant, joint_variant), attacks=())
    datasets = []
    monkeypatch.setattr(
        building, "open_source", lambda config: datasets.append(config.dataset)
    )
    monkeypatch.setattr(runner_lib.Runner, "run", lambda self, engine: None)
    monkeypatch.setattr(
        "tensorflow.config.set_visible_devices", lambda *arguments: None
    )
    runner = runner_lib.Runner(study, tmp_path, ("s",))
    reproduce._run_cells(runner, study, ReproduceConfig(workers=1), tmp_path)
    assert datasets == ["camvid"]


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
    """The command lines of other processes that name the folder."""
    commands = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # The process has ended meanwhile.
            continue
        if str(workdir).encode() in command and int(path.parent.name) != os.getpid():
            commands.append(command)
    return commands


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclasses.dataclass
class Studies:
    """Two folders of one study, and how often the second was killed."""

    whole: pathlib.Path
    killed: pathlib.Path
    kills: int = 0


@pytest.fixture(scope="module")
def studies(study_toml, tmp_path_factory) -> Studies:
    """A study that was never disturbed, and one that was stopped again and again."""
    folder = tmp_path_factory.mktemp("reproduced")
    studies = Studies(folder / "whole", folder / "killed")
    study_path = folder / "plain.json"
    study_path.write_text(json.dumps(study_file.load(str(study_toml)).to_dict()))
    whole_process = start(["-c", RUNNER, study_path, studies.whole])
    _, errors = whole_process.communicate()
    assert whole_process.returncode == 0, errors
    rng = random.Random(1)
    for pattern in (
        "runs/s-*/checkpoints/ckpt-*.index",
        "runs/*/attacks/*/cells/*.json",
    ):
        process = start(["-c", RUNNER, study_path, studies.killed])
        wait_until(lambda pattern=pattern: list(studies.killed.glob(pattern)))
        time.sleep(rng.uniform(0, 0.3))
        studies.kills += process.poll() is None
        process.kill()
        process.communicate()
        wait_until(lambda: not processes_of(studies.killed))
    flags = [f"--study={study_toml}", f"--workdir={studies.killed}", "--workers=2"]
    process = start(["-m", "mtr_tf.reproduce", *flags])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return studies


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks into /proc")
def test_killed_at_any_moment_all_figures_are_the_same(studies):
    assert studies.kills == 2
    expect_same(studies.whole, studies.killed)
    assert (studies.killed / "report" / "index.html").exists()


def expect_same(whole, killed):
    """Asserts that both folders have the same figures, and that all cells are done."""
    paths = sorted(whole.glob("runs/*/attacks/*/*s.json"))
    names = [path.name for path in paths]
    assert names.count("results.json") == names.count("measures.json") == 1
    for path in paths:
        if path.name != "settings.json":  # Has the time in it.
            copy = killed / path.relative_to(whole)
            assert copy.read_bytes() == path.read_bytes()
    entries = json.loads((killed / "index.json").read_text())["cells"]
    assert [entry["state"] for entry in entries] == ["done"] * 3


@pytest.mark.fuzz
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks into /proc")
def test_killed_at_twenty_random_moments_all_figures_are_the_same(studies, tmp_path):
    study_path = studies.whole.parent / "plain.json"

    def begin(folder):
        wait_until(lambda: not processes_of(tmp_path))
        command = [sys.executable, "-c", RUNNER, study_path, folder]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    folders = process_fixture.kill_at_random_moments(
        begin, (tmp_path / f"study {n}" for n in itertools.count()), seed=4
    )
    wait_until(lambda: not processes_of(tmp_path))
    process = start(["-c", RUNNER, study_path, folders[-1]])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for folder in folders:
        expect_same(studies.whole, folder)
        assert not list(folder.rglob(".[0-9]*.*"))  # Half-written files.


def test_a_watcher_may_read_the_report_of_a_running_study(
    study_toml, tmp_path, monkeypatch
):
    workdir = tmp_path / "w"
    runner_lib.Runner(study_file.load(str(study_toml)), workdir).write()
    old_time = (workdir / "index.json").stat().st_mtime_ns
    monkeypatch.setattr("mtr_tf.cli.startup.import_tensorflow", lambda: None)
    config = ReproduceConfig(study=str(study_toml), workdir=str(workdir), report=True)
    with files.locked(workdir):  # By whoever runs it.
        reproduce.main(config)
        with pytest.raises(InputError, match="in use by another process"):
            reproduce.main(dataclasses.replace(config, report=False))
    assert (workdir / "report" / "index.html").exists()
    assert (workdir / "index.json").stat().st_mtime_ns == old_time


def test_a_report_takes_the_place_of_no_better_one(study_toml, tmp_path, monkeypatch):
    """There is nothing to report while no cell with the present settings is done."""
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
    (workdir / "index.json").write_text('{"cells": 3}')  # Damaged: it may be no better.
    reproduce.main(config)
    assert (workdir / "report").exists()


def test_a_study_is_not_continued_on_other_data(
    study_toml, camvid_dir, tmp_path, monkeypatch
):
    """Not even if all of it is done; data that were moved are the same data."""
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
    new_dir = shutil.copytree(camvid_dir, tmp_path / "moved")
    moved_study = study_file.load(str(study_toml), train={"data_dir": str(new_dir)})
    unchanged.check(runner_lib.Runner(moved_study, workdir).queue, workdir)
    for part in ("val", "valannot"):
        sorted((new_dir / part).iterdir())[0].unlink()
    with pytest.raises(InputError, match="on other data: validation had . examples"):
        reproduce.main(
            ReproduceConfig(
                study=str(study_toml), workdir=str(workdir), data_dir=str(new_dir)
            )
        )
    shutil.rmtree(new_dir)
    runner = runner_lib.Runner(moved_study, workdir)
    with pytest.raises(InputError, match="moved"):
        unchanged.check(runner.queue, workdir)
    for cell in runner.queue.cells:
        runner.queue.set(cell, queue.DONE)
    unchanged.check(runner.queue, workdir)  # Finished work needs no data.
