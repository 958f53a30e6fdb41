# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the commands of SLURM that `launch/slurm.sbatch` calls."""

from __future__ import annotations

import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import process_fixture

SCRIPT = pathlib.Path(__file__).parents[1] / "launch" / "slurm.sbatch"

# Starts the command after its options as two tasks: on nodes n1 and n2, or both on
# NODE. SIGTERM to srun kills them, as it does in SLURM. A file lists those that
# `scancel` reaches: both, or the one named in ONLY.
SRUN = """#!{python}
import os, pathlib, signal, subprocess, sys
at = next(i for i, a in enumerate(sys.argv) if i and not a.startswith("-"))
node, only = os.environ.get("NODE"), os.environ.get("ONLY", "01")
os.environ |= {{"SLURM_STEP_NUM_TASKS": "2",
               "SLURM_STEP_NODELIST": node or "n[1-2]",
               "SLURM_STEP_TASKS_PER_NODE": "2" if node else "1(x2)"}}
tasks = []
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
with open(pathlib.Path(__file__).with_suffix(".tasks"), "w") as reached:
    def note(i):
        if i in only:
            os.write(reached.fileno(), b"%d " % os.getpid())
    for i in "01":
        place = ("0", i) if node else (i, "0")
        tasks.append(subprocess.Popen(
            sys.argv[at:], preexec_fn=lambda: note(i), env=os.environ | {{
            "SLURM_PROCID": i, "SLURM_NODEID": place[0], "SLURM_LOCALID": place[1]}}))
sys.exit(max(task.wait() for task in tasks))
"""
SCANCEL = """#!/bin/sh
[ "$*" = "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM $(cat "${{0%/*}}/srun.tasks")
"""
SCONTROL = """#!/bin/sh
echo "$@" >"$0.told"
"""


def put_commands(folder: pathlib.Path, **scripts: str) -> None:
    """Writes the stand-ins, and more commands, into a folder for PATH."""
    commands = {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, **scripts}
    for name, text in commands.items():
        path = folder / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def environment(folder: pathlib.Path, **variables: str) -> dict[str, str]:
    """The environment of a script that finds these commands, and mtr_tf."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    root = str(SCRIPT.parents[1])
    values = os.environ | {"PATH": path, "PYTHONPATH": root} | variables
    return {k: v for k, v in values.items() if k not in ("TF_CONFIG", "MTR_PYTHON")}


def start(folder: pathlib.Path, *arguments: str, **variables: str) -> subprocess.Popen:
    """Starts slurm.sbatch as sbatch does; stdout and stderr are pipes."""
    return process_fixture.start(
        ["bash", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder, **variables),
    )


def preempt(folder: pathlib.Path, job: subprocess.Popen) -> None:
    """Sends SIGTERM to the shell of the script, and then to its tasks."""
    job.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # Time for the script to act on its tasks first.
    for task in (folder / "srun.tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)


def requeued(folder: pathlib.Path) -> str:
    """The arguments that `scontrol` got; empty if it was not called."""
    log = folder / "scontrol.told"
    return log.read_text().strip() if log.exists() else ""
