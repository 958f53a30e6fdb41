# SPDX-License-Identifier: Apache-2.0
"""CONTRIBUTING.md, followed to the letter in a copy of the package, works."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = r":\n\n```python\n(.*?)```"


def follow(page: str, root: pathlib.Path) -> None:
    """Writes and changes the files of a checkout as the page says."""
    for path, code in re.findall(rf"Write\s+`([^`]+)`{BLOCK}", page, re.DOTALL):
        assert not (root / path).exists(), path
        (root / path).write_text(code)
    tables = rf"In\s+`([^`]+)`, to\s+`(\w+)`{BLOCK}"
    for path, table, code in re.findall(tables, page, re.DOTALL):
        text = (root / path).read_text()
        start = re.search(rf"^{table}\b.*[({{]\n", text, re.MULTILINE)
        assert start, f"{path} has no {table}"
        (root / path).write_text(text[: start.end()] + code + text[start.end() :])
    imports = rf"In\s+`([^`]+)`, among the imports{BLOCK}"
    for path, code in re.findall(imports, page, re.DOTALL):
        text = (root / path).read_text()
        start = re.search(r"^from mtr_tf", text, re.MULTILINE).start()
        (root / path).write_text(text[:start] + code + text[start:])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the package in which every recipe was followed."""
    root = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mtr_tf", root / "mtr_tf", ignore=ignore)
    follow(PAGE, root)
    return root


def run(checkout, module, *flags):
    """Runs a command of the copy; returns what it prints."""
    return subprocess.run(
        [sys.executable, "-m", f"mtr_tf.{module}", *flags],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def results(checkout):
    """The results of the page's attack on its model, tasks and data."""
    flags = ("--dataset=stripes", "--model=straight", "--tasks=s,b", "--epochs=1")
    sizes = ("--batch_size=16", "--eval_eps=0", "--eval_examples=4")
    run(checkout, "train", *flags, *sizes, "--workdir=run")
    attack = ("--attack=pgd,halving", "--attack_tasks=seg", "--steps=2", "--eps=4")
    run(checkout, "attack", "--ckpt=run", *attack, "--nochecks", "--name=test")
    return json.loads((checkout / "run/attacks/test/results.json").read_text())


@pytest.mark.slow
def test_a_new_task_data_set_and_model(results):
    assert {record["dataset"] for record in results} == {"stripes"}
    by_task = {(r["task"], r["metric"]): r for r in results}
    assert ("brightness", "mae") in by_task
    assert by_task["seg", "miou"]["clean"] is not None


@pytest.mark.slow
def test_a_new_attack(results):
    (loss,) = (
        record
        for record in results
        if (record["attack"], record["task"], record["metric"])
        == ("halving", "seg", "loss")
    )
    assert loss["steps"] == 2
    assert loss["attacked_value"] > loss["clean"]


@pytest.mark.slow
def test_what_is_added_is_in_the_style_of_the_rest(checkout):
    options = ("--config", ROOT / "pyproject.toml", checkout / "mtr_tf")
    ruff = shutil.which("ruff")
    if not ruff:
        pytest.skip("needs ruff: pip install .[lint]")
    subprocess.run([ruff, "check", "--fix", *options], check=True)  # Sorts imports.
    subprocess.run([ruff, "format", "--check", *options], check=True)
