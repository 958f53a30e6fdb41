# SPDX-License-Identifier: Apache-2.0
"""Which processes train together, by what the environment says: TF_CONFIG, or SLURM."""

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

_FIRST_PORT, _JOBS, _PORTS_OF_A_JOB = 15_000, 1_000, 16  # Below those that Linux lends.
_EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
    '"index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a training, and which of them this process is.

    Attributes:
      addresses: HOST:PORT of each; the first one's is the chief's.
      index: Of this process among them.
      said_by: What names them: a variable of the environment.
    """

    addresses: tuple[str, ...]
    index: int
    said_by: str

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.addresses) > 1


def from_environment(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The workers that the environment names; None where it names none.

    TF_CONFIG counts before SLURM's variables.

    Raises:
      InputError: They cannot be understood.
    """
    found = _of_tf_config(environment.get("TF_CONFIG", ""))
    return found or _of_slurm(environment)


def refuse(what: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises `InputError` where there are several workers, of what runs in one process.

    Else each of them would do all of it, and write it into the same folder.
    """
    found = from_environment(environment)
    if found and found.several:
        raise InputError(
            f"{what} runs in one process, and {found.said_by} names "
            f"{len(found.addresses)} workers; start it once, without that variable."
        )


def _of_tf_config(text: str) -> Cluster | None:
    if not text.strip():
        return None
    try:
        config = json.loads(text)
        jobs, task = dict(config.get("cluster") or {}), dict(config.get("task") or {})
        others = set(jobs) - {"chief", "worker"}
        if not jobs:
            return None
        kind, index = task["type"], task["index"]
        before = len(jobs["chief"]) if kind == "worker" and "chief" in jobs else 0
        addresses = (*jobs.get("chief", ()), *jobs.get("worker", ()))
        if others or kind not in jobs or type(index) is not int:
            raise ValueError
        if not 0 <= index < len(jobs[kind]) or len(set(addresses)) < len(addresses):
            raise ValueError
        if not all(isinstance(place, str) for place in addresses):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the variable TF_CONFIG must be such as {_EXAMPLE}, with jobs chief and "
            f"worker alone, different addresses, and a task among them; got {text!r}. "
            "Unset it to train in this process alone, or give --strategy=one_device."
        ) from error
    return Cluster(addresses, before + index, "TF_CONFIG")


def _of_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The tasks of a step that `srun` has started; each takes a port of its node."""
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
        here = tuple(int(environment[f"SLURM_{n}"]) for n in ("NODEID", "LOCALID"))
        places = [(node, i) for node, n in enumerate(tasks) for i in range(n)]
        first = _FIRST_PORT + job % _JOBS * _PORTS_OF_A_JOB
        addresses = tuple(f"{hosts[node]}:{first + i}" for node, i in places)
        ordered = places[index] == here
    except (ValueError, LookupError) as error:
        raise InputError(
            "SLURM's variables must name the nodes and tasks of a step, and cannot be "
            f"read ({error}); give the workers in the variable TF_CONFIG."
        ) from error
    if not ordered:
        raise InputError(
            "srun must number the tasks node by node, and this one is task "
            f"{index}, the {here[1]}. of node {here[0]}; add --distribution=block."
        )
    return Cluster(addresses, index, "SLURM_STEP_NUM_TASKS")


def hosts_of(text: str) -> list[str]:
    """`a[1-2,07],b` as a1, a2, a07, b: how SLURM writes the names of nodes."""
    if not re.fullmatch(r"([^\[\],]|\[[^\[\]]*\]|,)+", text):
        raise ValueError(f"no list of nodes: {text!r}")
    names = re.findall(r"(?:[^\[\],]|\[[^\[\]]*\])+", text)
    return [host for name in names for host in _hosts_of_one(name)]


def _hosts_of_one(name: str) -> Iterator[str]:
    """The nodes of one name, whose ranges each stand for several."""
    parts = re.split(r"\[([^\]]*)\]", name)  # Each other one was in brackets.
    choices = [
        [number for span in part.split(",") for number in _numbers(span)]
        if i % 2
        else [part]
        for i, part in enumerate(parts)
    ]
    return map("".join, itertools.product(*choices))


def _numbers(span: str) -> Sequence[str]:
    """`08-11` as 08, 09, 10, 11."""
    low, dash, high = span.partition("-")
    if not dash:
        return [low]
    return [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]


def _tasks_of_nodes(text: str) -> list[int]:
    """`2(x3),1` as 2, 2, 2, 1."""
    found: list[int] = []
    for part in text.split(","):
        match: Any = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ValueError(f"no numbers of tasks: {text!r}")
        found += [int(match[1])] * int(match[2] or 1)
    return found
