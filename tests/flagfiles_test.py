# SPDX-License-Identifier: Apache-2.0
"""Every file in flags/ parses, names its command, and only binaries import flags."""

import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig

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
    made = sorted(tmp_path.iterdir())
    assert len(made) == 16
    for path in made:
        assert path.read_text() == (ROOT / "flags" / path.name).read_text()
    names = {path.name for path in FILES}
    paper = {n for n in names if n.startswith(("cityscapes_", "taskonomy_"))}
    assert paper == {path.name for path in made}


def test_every_pair_of_taskonomy_can_be_had(tmp_path):
    command = [sys.executable, "flags/generate.py", "--all", f"--out={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    made = {path.stem: settings(path) for path in tmp_path.glob("taskonomy_*.flags")}
    assert len(made) == 11 + 11 * 10 + 2 * 5 * 4
    pair = made["taskonomy_resnet18_seg_edge_occlusion"]
    assert pair.tasks == ("seg", "edge_occlusion")
    assert (pair.main_tasks, pair.aux_weight) == (("seg",), 0.1)
    assert made["taskonomy_uniform_seg_depth"].task_weights == "equal"
    assert made["taskonomy_optimised_depth_normal"].aux_weight == 0.01
    assert made["taskonomy_resnet18_autoencoder"].task_losses == ("autoencoder:l1",)


def test_only_binaries_know_flags():
    imports = re.compile(
        r"^\s*(from absl import flags|import absl.flags)", re.MULTILINE
    )
    users = [
        path.name
        for path in (ROOT / "mtr_tf").rglob("*.py")
        if imports.search(path.read_text())
    ]
    assert users == ["flags.py"]
