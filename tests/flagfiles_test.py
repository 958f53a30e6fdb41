# SPDX-License-Identifier: Apache-2.0
"""Every file in flags/ parses, and names its command."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.study import costs
from mtr_tf.study import study_file

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "flags").glob("*.flags"))


def settings(path):
    """The settings that a flagfile gives."""
    attack = path.name.startswith("attack")
    records = (AttackConfig,) if attack else (TrainConfig, RunPlace)
    values = flags.FlagValues()
    for record in records:
        cli_flags.define(record, values)
    extra = ["--ckpt=runs/NAME"] if attack else []
    values(["binary", f"--flagfile={path}", *extra])
    config = [cli_flags.read(record, values) for record in records][0]
    if not attack:
        config.check_used()
    return config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_flagfile_gives_valid_settings_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings(path)
    opening = path.read_text().split("\n--")[0]
    assert f"--flagfile=flags/{path.name}" in opening
    assert "Costs" in opening


def test_the_files_kept_are_what_the_tables_give(tmp_path):
    command = [sys.executable, "flags/generate.py", f"--out={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 16
    for path in paths:
        assert path.read_text() == (ROOT / "flags" / path.name).read_text()
    names = {path.name for path in FILES}
    paper_names = {n for n in names if n.startswith(("cityscapes_", "taskonomy_"))}
    assert paper_names == {path.name for path in paths}


@pytest.fixture(scope="module")
def of_the_paper(tmp_path_factory):
    """The settings of each of the paper's models, by the name of its flagfile."""
    folder = tmp_path_factory.mktemp("flags")
    command = [sys.executable, "flags/generate.py", "--all", f"--out={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return {path.stem: settings(path) for path in folder.glob("*.flags")}


def test_every_pair_of_taskonomy_can_be_had(of_the_paper):
    configs = {n: c for n, c in of_the_paper.items() if n.startswith("taskonomy_")}
    assert len(configs) == 11 + 11 * 10 + 2 * 5 * 4
    pair = configs["taskonomy_resnet18_seg_edge_occlusion"]
    assert pair.tasks == ("seg", "edge_occlusion")
    assert (pair.main_tasks, pair.aux_weight) == (("seg",), 0.1)
    assert configs["taskonomy_uniform_seg_depth"].task_weights == "equal"
    assert configs["taskonomy_optimised_depth_normal"].aux_weight == 0.01
    assert configs["taskonomy_resnet18_autoencoder"].task_losses == ("autoencoder:l1",)


@pytest.mark.parametrize(
    ("name", "model", "count"),
    [("cityscapes", "drn_d_22", 8), ("taskonomy", "resnet18", 11)],
)
def test_a_study_of_the_paper_trains_what_its_flagfiles_do(
    of_the_paper, name, model, count
):
    study = study_file.load(name)
    names = [variant.name for variant in study.variants if not variant.note]
    assert len(names) == count
    for variant in names:
        config = study.train_config(variant, 0)
        assert config == of_the_paper[f"{name}_{model}_{'_'.join(config.tasks)}"]


def test_the_study_of_taskonomy_trains_eleven_tasks_as_the_page_says(of_the_paper):
    config = study_file.load("taskonomy").train_config("eleven", 0)
    seg_config = of_the_paper["taskonomy_resnet18_seg"]
    assert len(config.tasks) == 11
    assert (
        config.task_losses == of_the_paper["taskonomy_resnet18_autoencoder"].task_losses
    )
    changes = {"tasks": config.tasks, "task_losses": config.task_losses}
    assert config == dataclasses.replace(seg_config, **changes)


@pytest.mark.parametrize(
    ("study", "spec", "flagfile"),
    [
        ("cityscapes", "seg", "attack_paper_seg"),
        ("cityscapes", "seg", "attack_paper_mim_seg"),
        ("cityscapes", "depth", "attack_paper_depth"),
        ("taskonomy", "seg", "attack_paper_taskonomy"),
    ],
)
def test_a_study_of_the_paper_attacks_as_its_flagfiles_do(study, spec, flagfile):
    design = study_file.load(study)
    fields = design.attack_fields(spec, design.spec(spec).variants[0], 0)
    config = AttackConfig(ckpt="runs/NAME", **fields)
    paper_config = settings(ROOT / "flags" / f"{flagfile}.flags")
    assert (config.steps, config.step_size) == (
        paper_config.steps,
        paper_config.step_size,
    )
    assert set(paper_config.eps) <= set(config.eps)
    assert set(paper_config.attack) - {"mim_released"} <= set(config.attack)


def test_the_flagfile_of_e3_costs_what_it_says():
    file = ROOT / "flags" / "attack_measure_tasks.flags"
    config = dataclasses.replace(settings(file), num_examples=1)
    run = TrainConfig(image_size="64", tasks=("seg", "depth", "normal"))
    size = (1 + 3) / 2  # A model of three tasks, relative to one task.
    assert costs.of_attack(config, run) == 2 * (1 + 3) * size
    assert "Costs 2 (1 + M) passes per image" in file.read_text()
