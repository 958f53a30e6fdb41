# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.attack` killed at any moment, and on a full disk: nothing is lost."""

from __future__ import annotations

import itertools
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import process_fixture
import pytest

FLAGS = (
    "--attack=pgd,fgsm",
    "--eps=1,2,4,8",
    "--attack_tasks=each",
    "--steps=3",
    "--num_examples=6",
    "--batch_size=3",
    "--checks=false",
)
CELLS = 1 + 2 * 4 * 2  # The clean images; attacks, radii, tasks.


def command(run: pathlib.Path, name: str) -> list[str]:
    binary = [sys.executable, "-m", "mtr_tf.attack"]
    return [*binary, *FLAGS, f"--ckpt={run}", f"--name={name}"]


def finish(run: pathlib.Path, name: str, code: int = 0, **options) -> str:
    """Attacks to the end; returns what was written to stderr."""
    done = subprocess.run(
        command(run, name), capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def kept(folder: pathlib.Path) -> dict[str, object]:
    """What a sweep has left behind, but for times, its lock and event files."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or "tfevents" in name or name == ".lock":
            continue
        if path.suffix == ".npz":  # Zips hold the time.
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays}
        else:
            found[name] = path.read_bytes()
    found["settings.json"] = "settings.json" in found  # Has the time in it.
    return found


def finished(folder: pathlib.Path) -> int:
    """How many cells of a sweep are done."""
    return len(list(folder.glob("cells/[0-9a-f]*.json")))


@pytest.fixture(scope="module")
def attacked(whole_run, tmp_path_factory) -> pathlib.Path:
    """A run that was attacked once, undisturbed."""
    run = tmp_path_factory.mktemp("kills") / "run"
    shutil.copytree(whole_run.workdir, run)
    finish(run, "whole")
    return run


@pytest.mark.fuzz
def test_a_sweep_killed_at_twenty_random_moments_ends_with_the_same_bits(attacked):
    done = []

    def begin(folder):
        return subprocess.Popen(
            command(attacked, folder.name), stderr=subprocess.DEVNULL
        )

    folders = process_fixture.kill_at_random_moments(
        begin,
        (attacked / "attacks" / f"killed_{n}" for n in itertools.count()),
        seed=2,
        killed=lambda folder: done.append(finished(folder)),
    )
    assert any(0 < cells < CELLS for cells in done)
    whole = kept(attacked / "attacks" / "whole")
    assert sum(name.startswith("cells/") for name in whole) == 2 * CELLS
    for folder in folders:
        finish(attacked, folder.name)
        assert kept(folder) == whole


@pytest.mark.slow
def test_on_a_full_disk_a_sweep_says_so_and_goes_on_later(attacked):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))

    said = finish(attacked, "full", code=1, preexec_fn=limit)
    assert "no space is left on the disk" in said.strip().splitlines()[-1]
    folder = attacked / "attacks" / "full"
    assert not list(folder.glob("results*"))
    whole = kept(attacked / "attacks" / "whole")
    left = kept(folder)
    left.pop("settings.json")
    assert all(whole[name] == value for name, value in left.items())
    finish(attacked, "full")
    assert kept(folder) == whole
