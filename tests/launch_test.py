# SPDX-License-Identifier: Apache-2.0
"""The launchers for clusters, with stand-ins for what they start."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess

import pytest
import slurm_fixture

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
# Prints what a worker is told, in place of training.
TOLD = """#!{python} -S
import json, os, signal, sys
if "WAIT" in os.environ:  # For SIGTERM, which ends it with this code.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(int(os.environ["WAIT"])))
if sys.argv[1:2] == ["-"]:  # Not a worker.
    del sys.argv[0]
    sys.exit(exec(sys.stdin.read()))
from mtr_tf.runs import cluster
found = cluster.from_environment()
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
if "CORES" in os.environ:
    gpus = os.environ.get("SRUN_CPUS_PER_TASK")
line = json.dumps([found.addresses, found.index, sys.argv[1:], gpus])
os.write(1, line.encode() + b"\\n")  # At once: others write there, too.
if "WAIT" in os.environ:
    signal.pause()
sys.exit(int(os.environ.get("CODE", 0)))
"""


@pytest.fixture
def place(tmp_path) -> pathlib.Path:
    """A folder of commands that come first in PATH."""
    slurm_fixture.put_commands(tmp_path, python=TOLD)
    return tmp_path


def launched(place, script, *flags, **variables):
    """The exit code, a line from each worker with what it was told, and stderr."""
    process = subprocess.run(
        ["bash", LAUNCH / script, *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=slurm_fixture.environment(place, **variables),
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    return process.returncode, sorted(lines, key=lambda line: line[1]), process.stderr


def test_workers_on_this_machine_share_its_gpus_and_have_ports_of_their_own(place):
    flags = ["--tasks=seg,depth", "--workdir=a b"]
    code, lines, stderr = launched(
        place, "workers.sh", "2", *flags, CUDA_VISIBLE_DEVICES="0,3,5,6"
    )
    assert code == 0, stderr
    assert [line[1] for line in lines] == [0, 1]
    assert lines[0][0] == lines[1][0]
    assert len(set(lines[0][0])) == 2
    assert [line[2] for line in lines] == [["-m", "mtr_tf.train", *flags]] * 2
    assert [line[3] for line in lines] == ["0,3", "5,6"]


def test_workers_attack_too_and_end_with_the_code_of_one_that_fails(place):
    flags = ["--ckpt=a b", "--eps=2"]
    variables = {"CODE": "7", "CUDA_VISIBLE_DEVICES": ""}
    code, lines, _ = launched(place, "workers.sh", "1", "attack", *flags, **variables)
    assert code == 7
    assert [line[2] for line in lines] == [["-m", "mtr_tf.attack", *flags]]


@pytest.mark.parametrize(
    "flags", [(), ("0",), ("--tasks=seg",), ("2", "reproduce"), ("attack", "2")]
)
def test_workers_must_be_counted(place, flags):
    code, lines, stderr = launched(place, "workers.sh", *flags)
    assert (code, lines) == (2, [])
    assert stderr.startswith("usage: ")


def test_gpus_that_cannot_be_shared_evenly_are_told(place):
    code, lines, stderr = launched(
        place, "workers.sh", "2", CUDA_VISIBLE_DEVICES="0,1,2"
    )
    assert (code, lines) == (1, [])
    assert stderr.startswith("error: 3 GPUs must be shared evenly by 2 workers")


@pytest.mark.parametrize("none", ["-1", "NoDevFiles", "-1,0", ""])
def test_workers_on_a_machine_whose_gpus_are_hidden_compute_on_its_cpu(place, none):
    code, lines, stderr = launched(place, "workers.sh", "1", CUDA_VISIBLE_DEVICES=none)
    assert code == 0, stderr
    assert [line[3] for line in lines] == [none]


def test_gpus_end_at_a_name_that_is_none(place):
    devices = "GPU-5d,MIG-7,-1,3"
    code, lines, stderr = launched(
        place, "workers.sh", "1", CUDA_VISIBLE_DEVICES=devices
    )
    assert code == 0, stderr
    assert [line[3] for line in lines] == ["GPU-5d,MIG-7"]


def test_a_driver_without_gpus_is_none(place, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    smi = place / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho No devices were found\n")
    smi.chmod(0o755)
    code, lines, stderr = launched(place, "workers.sh", "1")
    assert code == 0, stderr
    assert [line[3] for line in lines] == [None]


def test_tasks_of_slurm_find_each_other_and_have_the_cores_of_their_job(place):
    flags, job = ["--workdir=a b"], {"SLURM_JOB_ID": "12", "CORES": "told"}
    code, lines, stderr = launched(
        place, "slurm.sbatch", *flags, **job, SLURM_CPUS_PER_TASK="16"
    )
    assert code == 0, stderr
    assert [line[0] for line in lines] == [["n1:15192", "n2:15192"]] * 2
    assert [line[2:] for line in lines] == [[["-m", "mtr_tf.train", *flags], "16"]] * 2
    assert not slurm_fixture.requeued(place)
    code, lines, _ = launched(place, "slurm.sbatch", "attack", *flags, **job, CODE="1")
    assert code == 1
    assert [line[2:] for line in lines] == [[["-m", "mtr_tf.attack", *flags], None]] * 2
    assert not slurm_fixture.requeued(place)  # Only where time runs out.


@pytest.mark.parametrize(
    ("signum", "code", "requeued"),
    [
        (signal.SIGUSR1, 143, "requeue 12"),  # As #SBATCH --signal says.
        (signal.SIGUSR1, 0, ""),  # It was done all the same.
        (signal.SIGTERM, 143, ""),  # SLURM requeues what it preempts itself.
    ],
)
def test_slurm_asks_its_tasks_to_stop_and_kills_none(place, signum, code, requeued):
    job = slurm_fixture.start(place, "--tasks=seg", SLURM_JOB_ID="12", WAIT=str(code))
    for _ in range(2):  # Until both tasks are there.
        assert job.stdout.readline()
    if signum == signal.SIGTERM:
        slurm_fixture.preempt(place, job)
    else:
        job.send_signal(signum)
    stderr = job.communicate(timeout=120)[1]
    assert job.returncode == code, stderr
    assert slurm_fixture.requeued(place) == requeued


def test_the_job_of_slurm_asks_for_its_signal():
    options = [
        line.removeprefix("#SBATCH ")
        for line in slurm_fixture.SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    assert {"--requeue", "--signal=B:USR1@180"} <= set(options)


def test_the_manifest_fits_the_schema_of_kubernetes():
    yaml = pytest.importorskip("yaml")
    validator = pytest.importorskip("kubernetes_validate")  # 100 MB of schemas.
    for resource in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()):
        validator.validate(resource, validator.latest_version(), strict=True)


def test_pods_of_kubernetes_find_each_other(place):
    """Runs here what the manifest runs in a pod; its names agree with each other."""
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
    process = subprocess.run(
        [*container["command"], *container["args"]],
        capture_output=True,
        text=True,
        timeout=120,
        env=slurm_fixture.environment(place, WORKERS=workers, JOB_COMPLETION_INDEX="1"),
    )
    assert process.returncode == 0, process.stderr
    addresses, index, arguments, _ = json.loads(process.stdout)
    domain, port = pod["subdomain"], service["spec"]["ports"][0]["port"]
    assert addresses == [f"{name}-{i}.{domain}:{port}" for i in range(2)]
    assert index == 1
    assert arguments == ["-m", "mtr_tf.train", *container["args"][2:]]
