# SPDX-License-Identifier: Apache-2.0
"""The processes that work together: how they agree, and how they end.

All compute the same, each on its share of every batch, and in the same order, because
their communication (`tf.distribute`'s collectives) is matched by order, not by name.
Only the first worker, the chief, writes files and logs progress.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pathlib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

import mtr_tf
from mtr_tf import files
from mtr_tf.cli import stopping
from mtr_tf.errors import InputError
from mtr_tf.errors import first_line
from mtr_tf.errors import input_error_within
from mtr_tf.runs import cluster as cluster_lib
from mtr_tf.runs import directory
from mtr_tf.runs import remote
from mtr_tf.runs import store
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.runs.cluster import Cluster

# What a collective computation raises after another worker has ended.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class Workers:
    """The workers; a single one agrees with itself and does not communicate."""

    def __init__(
        self, strategy: tf.distribute.Strategy, cluster: Cluster | None = None
    ):
        """Takes their strategy and their cluster; None: this process alone."""
        self.strategy = strategy
        self._addresses = cluster.addresses if cluster else ("",)
        self._index = cluster.index if cluster else 0
        self.several = cluster is not None and cluster.several
        self.chief = self._index == 0
        self._assigners: dict[tuple[Any, ...], Callable[[], None]] = {}

    @property
    def replicas(self) -> int:
        """The number of replicas of all workers together."""
        return self.strategy.num_replicas_in_sync

    @functools.cached_property
    def local(self) -> tf.distribute.Strategy:
        """The strategy for what this worker computes without the others."""
        return strategy_lib.local(self.strategy) if self.several else self.strategy

    @property
    def context(self) -> tf.distribute.InputContext:
        """This worker's share of each global batch, for `tf.data`."""
        return tf.distribute.InputContext(
            num_input_pipelines=len(self._addresses),
            input_pipeline_id=self._index,
            num_replicas_in_sync=self.replicas,
        )

    @contextlib.contextmanager
    def agreeing(self, facts: dict[str, Any]) -> Iterator[None]:
        """Ends all workers if one raises an `InputError` inside, or if facts differ.

        The workers must not compute together inside.

        Args:
          facts: What must be the same on all workers, as {name: JSON value}; read at
            the end.

        Raises:
          InputError: This worker or another has raised one, or their facts differ.
        """
        if not self.several:
            yield
            return
        mistake: InputError | None = None
        try:
            yield
        except InputError as error:
            mistake = error
        message = mistake and remote.named(str(mistake))
        reports = self._gather_json({"mistake": message, "facts": facts})
        if mistake:
            raise mistake
        for index, report in enumerate(reports):
            if report["mistake"]:
                raise InputError(
                    f"{self._worker_name(index)} says: {report['mistake']}"
                )
        self._check_same([report["facts"] for report in reports])

    def _check_same(self, facts: Sequence[Mapping[str, Any]]) -> None:
        for index, worker_facts in enumerate(facts):
            differences = [
                f"{name} is {value!r} there and {worker_facts.get(name)!r} here"
                for name, value in facts[0].items()
                if worker_facts.get(name) != value
            ]
            if differences:
                raise InputError(
                    f"all workers must have the same settings, code and data, and "
                    f"{self._worker_name(index)} differs from the chief: "
                    f"{'; '.join(differences)}. Start all with the same command and "
                    "code; or, for a run of its own in each process, with "
                    "--strategy=one_device."
                )

    def _worker_name(self, index: int) -> str:
        return f"worker {index} ({self._addresses[index]})"

    def of_chief(self, value: Any) -> Any:
        """The JSON value that the chief has passed, on all workers."""
        return self._gather_json(value)[0] if self.several else value

    def arrays_of_chief(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The arrays that the chief has passed, on all workers."""
        if not self.several:
            return dict(arrays)
        names = self.of_chief(list(arrays))
        data = _to_bytes(arrays.values()) if self.chief else b""
        chief_arrays = _from_bytes(self._gather_bytes(data)[0])
        return dict(zip(names, chief_arrays, strict=True))

    def joined(self, arrays: Any) -> Any:
        """Arrays of all workers, joined along their first axis in the workers' order.

        Args:
          arrays: A structure of arrays that has the same shapes on all workers.
        """
        if not self.several:
            return arrays
        data = self._gather_bytes(_to_bytes(tf.nest.flatten(arrays)))
        worker_arrays = map(_from_bytes, data)
        joined_leaves = [
            np.concatenate(parts) for parts in zip(*worker_arrays, strict=True)
        ]
        return tf.nest.pack_sequence_as(arrays, joined_leaves)

    def any(self, value: bool) -> bool:
        """Whether any worker passes True; every worker must call it."""
        return any(self._gather_json(value)) if self.several else value

    def asked_to_stop(self) -> bool:
        """Whether a signal has come to any worker; it then counts for all of them.

        Every worker must call it.
        """
        if not self.several:
            return stopping.asked()
        signum = max(self._gather_json(stopping.signum()))
        stopping.note(signum)
        return signum != 0  # A signal since then is passed on the next time.

    def stop_if_asked(self) -> None:
        """Raises `Stopped` on all of several workers if a signal has come to one.

        To be called inside `stopping.later`; a single worker stops where it is.
        """
        if self.several and self.asked_to_stop():
            raise stopping.Stopped

    def _gather_json(self, value: Any) -> list[Any]:
        """The JSON values of all workers, in their order."""
        return [
            json.loads(text) for text in self._gather_bytes(json.dumps(value).encode())
        ]

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of all workers, in their order."""
        lengths = self._gather_numbers(tf.constant([len(data)], tf.int64)).numpy()
        numbers = np.frombuffer(data + bytes(-len(data) % 8), np.int64)
        joined = self._gather_numbers(tf.constant(numbers)).numpy().tobytes()
        ends = np.cumsum(lengths + -lengths % 8)
        starts = ends - (lengths + -lengths % 8)
        return [
            joined[start : start + n] for start, n in zip(starts, lengths, strict=True)
        ]

    @functools.cached_property
    def _gather_numbers(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """A function that joins the int64 vectors of each worker's first replica."""
        worker_replicas = self.replicas // len(self._addresses)

        def of_replica(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = tf.equal(context.replica_id_in_sync_group % worker_replicas, 0)
            return values[: tf.where(first, tf.size(values), 0)]

        def gather(values: tf.Tensor) -> tf.Tensor:
            parts = self.strategy.run(of_replica, (values,))
            return self.strategy.gather(parts, axis=0)

        signature = [tf.TensorSpec([None], tf.int64)]
        return tf.function(gather, input_signature=signature, autograph=False)

    def take_chiefs(self, variables: Sequence[Any]) -> None:
        """Gives TensorFlow variables the values that they have on the chief."""
        if self.several:
            self._assign(variables, mean=False)

    def take_mean(self, variables: Sequence[Any]) -> None:
        """Gives TensorFlow variables their mean over all replicas of all workers.

        Each replica may have its own copy. The mean is taken in float64, so that equal
        values do not change. The first call with given variables makes a graph, which
        later calls run.
        """
        copied = [v for v in variables if self.several or len(_copies(v)) > 1]
        self._assign(copied, mean=True)

    def _assign(self, variables: Sequence[Any], mean: bool) -> None:
        """Assigns to all copies the mean, or the value of the chief's first replica."""
        for dtype in dict.fromkeys(variable.dtype for variable in variables):
            group = [variable for variable in variables if variable.dtype == dtype]
            key = (mean, *map(id, group))  # The function keeps them alive.
            if key not in self._assigners:
                assign = functools.partial(self._assign_in_graph, group, mean)
                self._assigners[key] = tf.function(assign, autograph=False)
            self._assigners[key]()

    def _assign_in_graph(self, variables: Sequence[Any], mean: bool) -> None:
        """Does what `_assign` does, for variables of one type.

        The result is the sum over replicas, each weighted by its share.
        """

        def of_replica(tensors: Sequence[Any]) -> list[tf.Tensor]:
            context = tf.distribute.get_replica_context()
            if mean:
                share = 1 / self.strategy.num_replicas_in_sync
            else:
                share = tf.equal(context.replica_id_in_sync_group, 0)
            values = [tf.convert_to_tensor(value) for value in tensors]
            parts = [value * tf.cast(share, value.dtype) for value in values]
            return context.all_reduce(tf.distribute.ReduceOp.SUM, parts)

        def own_mean(variable: Any) -> tf.Tensor:
            copies = [tf.cast(copy, tf.float64) for copy in _copies(variable)]
            return tf.add_n(copies) / len(copies)

        values = [own_mean(v) for v in variables] if mean else list(variables)
        if self.several:
            sums = self.strategy.run(of_replica, (values,))
            values = [self.strategy.experimental_local_results(s)[0] for s in sums]
        for variable, value in zip(variables, values, strict=True):
            for copy in _copies(variable):
                copy.assign(tf.cast(value, copy.dtype))

    @contextlib.contextmanager
    def explaining_loss(self, advice: str) -> Iterator[None]:
        """Turns the errors after another worker has ended into an `InputError`.

        Args:
          advice: The end of its message: what was kept, and how to continue.
        """
        try:
            yield
        except tf.errors.OpError as error:
            aborted = "Collective ops is aborted" in error.message
            if not self.several or input_error_within(error):
                raise
            if re.search("NCCL: |invoking NCCL", error.message):
                raise InputError(
                    "NCCL, by which the workers' GPUs speak to each other, has failed "
                    f"({first_line(error)}); see what the others say and what "
                    "NCCL_DEBUG=WARN tells, or go without it by "
                    f"--strategy=multi_worker_ring. {advice}"
                ) from error
            if not isinstance(error, _LOST) and not aborted:
                raise
            # The text before that word also names this worker.
            unhealthy = error.message.rpartition("unhealthy")[2]
            indices = dict.fromkeys(re.findall(r"/task:(\d+)", unhealthy))
            lost = (
                " and ".join(self._worker_name(int(n)) for n in indices)
                or "another worker"
            )
            raise InputError(
                f"{lost} has ended or cannot be reached, and so all end; see what it "
                f"says. {advice}"
            ) from error


def _copies(variable: Any) -> tuple[Any, ...]:
    """The copies of a variable on the replicas of this process."""
    return getattr(variable, "values", (variable,))


def _to_bytes(arrays: Iterable[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, np.asarray(array, order="C"))  # So sums are in one order.
    return buffer.getvalue()


def _from_bytes(data: bytes) -> list[np.ndarray]:
    """The arrays of `_to_bytes`."""
    buffer, arrays = io.BytesIO(data), []
    while buffer.tell() < len(data):
        arrays.append(np.load(buffer))
    return arrays


def join(name: str, replicas: int = 0) -> Workers:
    """Waits for the other workers, if there are any, and joins them.

    Args:
      name: The value of `--strategy`.
      replicas: The replicas of each worker; the value of `--replicas`.

    Raises:
      InputError: See `cluster.from_environment` and `strategy.create`.
    """
    takes_cluster = strategy_lib.takes_workers(name)
    cluster = cluster_lib.from_environment() if takes_cluster else None
    if cluster and cluster.index:
        # Only the chief logs progress.
        logging.set_verbosity(min(logging.get_verbosity(), logging.ERROR))
    elif cluster and cluster.several:
        logging.info("waiting for %d workers to join", len(cluster.addresses) - 1)
    with stopping.kept():
        strategy = strategy_lib.create(name, replicas, cluster)
    return Workers(strategy, cluster)


def facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same on all workers: settings, versions and code, by name."""
    return {
        **{f"--{name}": value for name, value in settings.items()},
        **{f"the version of {k}": v for k, v in directory.versions().items()},
        "the code of mtr_tf": _code_digest(),
    }


def _code_digest() -> str:
    """A hash of the source code of mtr_tf."""
    package = pathlib.Path(mtr_tf.__file__).parent
    modules = {
        str(module.relative_to(package)): store.file_digest(module)
        for module in package.rglob("*.py")
    }
    return files.digest(modules)
