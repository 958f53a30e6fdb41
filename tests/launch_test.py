# SPDX-License-Identifier: Apache-2.0
"""The launchers for clusters: what they start, by stand-ins for it."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
# Prints what a worker is told, in place of training.
TOLD = """#!{python}
import json, os, sys
if sys.argv[1:2] == ["-"]:  # Not a worker.
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
from mtr_tf.runs import cluster
found = cluster.from_environment()
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
line = json.dumps([found.addresses, found.index, sys.argv[1:], gpus])
os.write(1, line.encode() + b"\\n")  # At once: others write there, too.
sys.exit(int(os.environ.get("CODE", 0)))
"""
# Starts the command after its options as two tasks, on nodes n1 and n2.
SRUN = """#!{python}
import os, subprocess, sys
at = next(i for i, a in enumerate(sys.argv) if i and not a.startswith("-"))
os.environ |= {{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]",
               "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}}
tasks = [subprocess.Popen(sys.argv[at:], env=os.environ | {{"SLURM_PROCID": i,
         "SLURM_NODEID": i}}) for i in "01"]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >"$0.told"
"""


@pytest.fixture
def place(tmp_path) -> pathlib.Path:
    """A folder of commands that come first in PATH."""
    scripts = {"python": TOLD, "srun": SRUN, "scontrol": SCONTROL}
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def launched(place, script, *flags, **variables):
    """The exit code, and what each worker was told."""
    root = str(LAUNCH.parent)
    path = f"{place}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": root} | variables
    for name in ("TF_CONFIG", "MTR_PYTHON"):
        environment.pop(name, None)
    done = subprocess.run(
        ["bash", LAUNCH / script, *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, sorted(lines, key=lambda line: line[1]), done.stderr


def test_workers_on_this_machine_share_its_gpus_and_have_ports_of_their_own(place):
    flags = ["--tasks=seg,depth", "--workdir=a b"]
    code, told, said = launched(
        place, "workers.sh", "2", *flags, CUDA_VISIBLE_DEVICES="0,3,5,6"
    )
    assert code == 0, said
    assert [line[1] for line in told] == [0, 1]
    assert told[0][0] == told[1][0]
    assert len(set(told[0][0])) == 2
    assert [line[2] for line in told] == [["-m", "mtr_tf.train", *flags]] * 2
    assert [line[3] for line in told] == ["0,3", "5,6"]


def test_workers_end_with_the_code_of_one_that_fails(place):
    code, told, _ = launched(
        place, "workers.sh", "1", CODE="7", CUDA_VISIBLE_DEVICES=""
    )
    assert (code, len(told)) == (7, 1)


@pytest.mark.parametrize("flags", [(), ("0",), ("--tasks=seg",)])
def test_workers_must_be_counted(place, flags):
    code, told, said = launched(place, "workers.sh", *flags)
    assert (code, told) == (2, [])
    assert said.startswith("usage: ")


def test_gpus_that_cannot_be_shared_evenly_are_told(place):
    code, told, said = launched(place, "workers.sh", "2", CUDA_VISIBLE_DEVICES="0,1,2")
    assert (code, told) == (1, [])
    assert said.startswith("error: 3 GPUs must be shared evenly by 2 workers")


def test_tasks_of_slurm_find_each_other(place):
    flags = ["--tasks=seg", "--workdir=runs/x"]
    code, told, said = launched(place, "slurm.sbatch", *flags, SLURM_JOB_ID="12")
    assert code == 0, said
    assert [line[0] for line in told] == [["n1:15192", "n2:15192"]] * 2
    assert [line[2] for line in told] == [["-m", "mtr_tf.train", *flags]] * 2
    assert not (place / "scontrol.told").exists()
    code, told, _ = launched(place, "slurm.sbatch", SLURM_JOB_ID="12", CODE="1")
    assert (code, len(told)) == (1, 2)
    assert not (place / "scontrol.told").exists()  # Only where time runs out.


def test_pods_of_kubernetes_find_each_other(place):
    """What the manifest runs in a pod is run here, and names agree within it."""
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    (container,) = pod["containers"]
    workers = {v["name"]: v["value"] for v in container["env"]}["WORKERS"]
    assert spec["completions"] == spec["parallelism"] == int(workers)
    done = subprocess.run(
        [*container["command"], *container["args"]],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ
        | {
            "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(LAUNCH.parent),
            "WORKERS": workers,
            "JOB_COMPLETION_INDEX": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    addresses, index, arguments, _ = json.loads(done.stdout)
    domain, port = pod["subdomain"], service["spec"]["ports"][0]["port"]
    assert addresses == [f"{name}-{i}.{domain}:{port}" for i in range(2)]
    assert index == 1
    assert arguments == ["-m", "mtr_tf.train", *container["args"][2:]]
