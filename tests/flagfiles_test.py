# SPDX-License-Identifier: Apache-2.0
"""Every file in flags/ parses, names its command, and only binaries import flags."""

import pathlib
import re

import pytest
from absl import flags

from mtr_tf import common_flags
from mtr_tf.attack_config import AttackConfig
from mtr_tf.config import RunPlace
from mtr_tf.config import TrainConfig

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "flags").glob("*.flags"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_flagfile_gives_valid_settings(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    attack = path.name.startswith("attack")
    records = (AttackConfig,) if attack else (TrainConfig, RunPlace)
    values = flags.FlagValues()
    for record in records:
        common_flags.define(record, values)
    extra = ["--ckpt=runs/NAME"] if attack else []
    values(["binary", f"--flagfile=flags/{path.name}", *extra])
    for record in records:
        common_flags.read(record, values)


def test_only_binaries_know_flags():
    imports = re.compile(
        r"^\s*(from absl import flags|import absl.flags)", re.MULTILINE
    )
    users = [
        path.name
        for path in (ROOT / "mtr_tf").rglob("*.py")
        if imports.search(path.read_text())
    ]
    assert users == ["common_flags.py"]


def test_no_module_is_longer_than_one_can_read():
    longest = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / "mtr_tf").rglob("*.py")
    }
    assert max(longest.values()) <= 360, max(longest, key=longest.get)
