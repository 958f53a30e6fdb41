# SPDX-License-Identifier: Apache-2.0
"""`python -m mtr_tf`, versions, and how soon a command says something."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

import mtr_tf
from mtr_tf import __main__ as overview


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True
    )


def test_all_commands_are_listed_a_line_each():
    process = run("mtr_tf")
    assert (process.returncode, process.stderr) == (0, "")
    rows = re.findall(r"^  (\w+) +([A-Z].*\.)$", process.stdout, re.M)
    assert [name for name, _ in rows] == list(overview.COMMANDS)
    assert max(map(len, process.stdout.splitlines())) <= 100


@pytest.mark.parametrize("module", ["mtr_tf", "mtr_tf.train", "mtr_tf.compare"])
def test_the_version(module):
    process = run(module, "--version")
    assert (process.returncode, process.stdout) == (0, f"{mtr_tf.__version__}\n")


def test_whoever_reads_the_help_may_end_first():
    """As in `... --helpfull | head`."""
    command = [sys.executable, "-m", "mtr_tf.compare", "--helpfull"]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("train", "write python -m mtr_tf.train"),
        ("--verison", "takes only --version, or nothing; got '--verison'"),
        ("atack", "Did you mean 'attack'?"),
    ],
)
def test_other_words_are_one_sentence(given, said):
    process = run("mtr_tf", given)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert said in process.stderr
    assert process.stderr.count("\n") == 1


def test_public_names_come_at_their_first_use():
    code = (
        "import sys, mtr_tf; assert set(mtr_tf.__all__) <= set(dir(mtr_tf))\n"
        "mtr_tf.InputError; assert 'tensorflow' not in sys.modules\n"
        "mtr_tf.atacks"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert "Did you mean: 'attacks'?" in process.stderr.splitlines()[-1]
    assert all(getattr(mtr_tf, name) for name in mtr_tf.__all__)
    assert mtr_tf.attacks.PGD
    assert mtr_tf.Task("flow", channels=2).channels == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--dataset=camvid", "--data_dir=/nowhere"),
        ("attack", "--ckpt=nothing"),
        ("export", "--ckpt=nothing", "--out=nothing_else"),
        ("convert", "--torch=nothing"),
        ("compare", "--runs=nothing"),
        ("reproduce",),
        ("reproduce", "--study=nothing"),
    ],
)
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks into /proc")
def test_something_is_said_within_two_seconds(arguments):
    """The seconds are processor time, so that other processes do not count."""
    command = [sys.executable, "-m", f"mtr_tf.{arguments[0]}", *arguments[1:]]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout.read(1)
        ticks = pathlib.Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]
        process.kill()
    assert sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") < 2
