# SPDX-License-Identifier: Apache-2.0
"""Which processes train together, as the environment says: TF_CONFIG, or SLURM."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf.errors import InputError

_FIRST_PORT, _JOBS, _PORTS_OF_A_JOB = 15_000, 1_000, 16  # Below the ephemeral ports.
_EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
    '"index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a training, and which of them this process is.

    Attributes:
      addresses: HOST:PORT of each worker; the first is the chief.
      index: The index of this process among them.
      said_by: The environment variable that names them.
    """

    addresses: tuple[str, ...]
    index: int
    said_by: str

    @property
    def several(self) -> bool:
        """Whether there is more than one worker."""
        return len(self.addresses) > 1


def from_environment(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The workers that the environment names; None if it names none.

    TF_CONFIG takes precedence over SLURM's variables.

    Raises:
      InputError: The variables cannot be understood.
    """
    cluster = _from_tf_config(environment.get("TF_CONFIG", ""))
    return cluster or _from_slurm(environment)


def refuse(command: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises `InputError` if several workers run a command that takes one process.

    Otherwise each of them would do all the work, and write it to the same folder.
    """
    cluster = from_environment(environment)
    if cluster and cluster.several:
        raise InputError(
            f"{command} runs in one process, and {cluster.said_by} names "
            f"{len(cluster.addresses)} workers; start it once, without that variable."
        )


def _from_tf_config(text: str) -> Cluster | None:
    if not text.strip():
        return None
    try:
        config = json.loads(text)
        jobs, task = dict(config.get("cluster") or {}), dict(config.get("task") or {})
        other_jobs = set(jobs) - {"chief", "worker"}
        if not jobs:
            return None
        kind, index = task["type"], task["index"]
        chief_count = len(jobs["chief"]) if kind == "worker" and "chief" in jobs else 0
        addresses = (*jobs.get("chief", ()), *jobs.get("worker", ()))
        if other_jobs or kind not in jobs or type(index) is not int:
            raise ValueError
        if not 0 <= index < len(jobs[kind]) or len(set(addresses)) < len(addresses):
            raise ValueError
        if not all(isinstance(address, str) for address in addresses):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the variable TF_CONFIG must be such as {_EXAMPLE}, with jobs chief and "
            f"worker alone, different addresses, and a task among them; got {text!r}. "
            "Unset it to train in this process alone, or give --strategy=one_device."
        ) from error
    return Cluster(addresses, chief_count + index, "TF_CONFIG")


def _from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The tasks of a step started by `srun`; each takes a port of its node."""
    try:
        count = environment.get("SLURM_STEP_NUM_TASKS")
        if count is None:  # Not started by srun.
            return None
        if int(count) < 2:
            return Cluster(("",), 0, "SLURM_STEP_NUM_TASKS")
        index = int(environment["SLURM_PROCID"])
        hosts = hosts_of(environment["SLURM_STEP_NODELIST"])
        tasks = _tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])
        job = int(environment.get("SLURM_JOB_ID", 0))
        location = tuple(int(environment[f"SLURM_{n}"]) for n in ("NODEID", "LOCALID"))
        locations = [(node, i) for node, n in enumerate(tasks) for i in range(n)]
        first_port = _FIRST_PORT + job % _JOBS * _PORTS_OF_A_JOB
        addresses = tuple(f"{hosts[node]}:{first_port + i}" for node, i in locations)
        in_order = locations[index] == location
    except (ValueError, LookupError) as error:
        raise InputError(
            "SLURM's variables must name the nodes and tasks of a step, and cannot be "
            f"read ({error}); give the workers in the variable TF_CONFIG."
        ) from error
    if not in_order:
        raise InputError(
            "srun must number the tasks node by node, and this one is task "
            f"{index}, the {location[1]}. of node {location[0]}; add "
            "--distribution=block."
        )
    return Cluster(addresses, index, "SLURM_STEP_NUM_TASKS")


def hosts_of(text: str) -> list[str]:
    """Expands SLURM's list of nodes: `a[1-2,07],b` to a1, a2, a07, b."""
    if not re.fullmatch(r"([^\[\],]|\[[^\[\]]*\]|,)+", text):
        raise ValueError(f"no list of nodes: {text!r}")
    names = re.findall(r"(?:[^\[\],]|\[[^\[\]]*\])+", text)
    return [host for name in names for host in _hosts_of_name(name)]


def _hosts_of_name(name: str) -> Iterator[str]:
    """The nodes that one name with ranges stands for."""
    parts = re.split(r"\[([^\]]*)\]", name)  # Every second part was in brackets.
    choices = [
        [number for span in part.split(",") for number in _numbers(span)]
        if i % 2
        else [part]
        for i, part in enumerate(parts)
    ]
    return map("".join, itertools.product(*choices))


def _numbers(span: str) -> Sequence[str]:
    """Expands `08-11` to 08, 09, 10, 11."""
    low, dash, high = span.partition("-")
    if not dash:
        return [low]
    return [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]


def _tasks_of_nodes(text: str) -> list[int]:
    """Expands `2(x3),1` to 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        match: Any = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ValueError(f"no numbers of tasks: {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
