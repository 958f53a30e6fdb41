# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.attack` killed at any moment, and on a full disk: nothing is lost."""

from __future__ import annotations

import functools
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
    """Runs the attack to its end; returns the text that it wrote to stderr."""
    process = subprocess.run(
        command(run, name), capture_output=True, text=True, timeout=300, **options
    )
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    return process.stderr


def kept(folder: pathlib.Path) -> dict[str, object]:
    """The files of a sweep, without times, its lock and event files."""
    contents: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or "tfevents" in name or name == ".lock":
            continue
        if path.suffix == ".npz":  # Zips hold the time.
            with np.load(path) as arrays:
                contents[name] = {key: arrays[key].tobytes() for key in arrays}
        else:
            contents[name] = path.read_bytes()
    contents["settings.json"] = "settings.json" in contents  # Has the time in it.
    return contents


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
    counts = []

    def begin(folder):
        return subprocess.Popen(
            command(attacked, folder.name), stderr=subprocess.DEVNULL
        )

    folders = process_fixture.kill_at_random_moments(
        begin,
        (attacked / "attacks" / f"killed_{n}" for n in itertools.count()),
        seed=2,
        killed=lambda folder: counts.append(finished(folder)),
    )
    assert any(0 < count < CELLS for count in counts)
    expected = kept(attacked / "attacks" / "whole")
    assert sum(name.startswith("cells/") for name in expected) == 2 * CELLS
    for folder in folders:
        finish(attacked, folder.name)
        assert kept(folder) == expected


@pytest.mark.slow
def test_on_a_full_disk_a_sweep_says_so_and_goes_on_later(attacked):
    folder = attacked / "attacks" / "full"
    expected = kept(attacked / "attacks" / "whole")
    # No file of 2000 bytes fits; of 45 kB, the settings and the clean images' cell do.
    for limit, least, most in ((2_000, 0, 0), (45_000, 1, CELLS - 1)):
        output = finish(
            attacked,
            "full",
            code=1,
            preexec_fn=functools.partial(
                resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)
            ),
        )
        assert "no space is left on the disk" in output.strip().splitlines()[-1]
        assert not list(folder.glob("results*"))
        assert least <= finished(folder) <= most
        files = kept(folder)
        assert files.pop("settings.json") == (least > 0)
        assert all(expected[name] == value for name, value in files.items())
    finish(attacked, "full")
    assert kept(folder) == expected
