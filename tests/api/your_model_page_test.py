# SPDX-License-Identifier: Apache-2.0
"""docs/your_model.md: its blocks and commands run, one after the other."""

from __future__ import annotations

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import mtr_tf

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "your_model.md"
unchecked = functools.partial(mtr_tf.evaluate, checks=False)
FEW = ("--steps=1", "--num_examples=4", "--eps=4", "--nochecks")


@pytest.mark.slow
def test_blocks_and_commands_run(tmp_path, monkeypatch):
    page = PAGE.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (data,) = [block for block in blocks if block.startswith("# my_data.py")]
    (tmp_path / "my_data.py").write_text(data)
    namespace = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), namespace)
        if "results" in namespace:  # The first time is as readers have it.
            monkeypatch.setattr(mtr_tf, "evaluate", unchecked)
    for file in ("my.keras", "robust.keras", "curves.png"):
        assert (tmp_path / file).stat().st_size > 1000
    assert {r["task"] for r in namespace["results"].records}
    commands = re.findall(r"^    python -m (mtr_tf\..*)$", page, re.M)
    assert len(commands) == 2
    for command in commands:
        process = subprocess.run(
            [sys.executable, "-m", *shlex.split(command), *FEW],
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        assert "semantic miou" in process.stdout
