# SPDX-License-Identifier: Apache-2.0
"""The processes that work together: what they agree on, and how they end.

Each computes the same but for its share of every batch, in the same order, as what they
say to each other (`tf.distribute`'s collectives) has no names. The first, the chief, is
the only one that writes and that tells how it goes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
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

# What a computation with others raises where one of them has ended.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class Workers:
    """Those who work together; one alone agrees with itself, and computes nothing."""

    def __init__(
        self, strategy: tf.distribute.Strategy, cluster: Cluster | None = None
    ):
        """Takes where they compute, and who they are; None: this process alone."""
        self.strategy = strategy
        self._addresses = cluster.addresses if cluster else ("",)
        self._index = cluster.index if cluster else 0
        self.several = cluster is not None and cluster.several
        self.chief = self._index == 0
        self._assigners: dict[tuple[Any, ...], Callable[[], None]] = {}

    @property
    def replicas(self) -> int:
        """How many there are, of all workers together."""
        return self.strategy.num_replicas_in_sync

    @functools.cached_property
    def local(self) -> tf.distribute.Strategy:
        """Where this worker computes what the others need not wait for."""
        return strategy_lib.local(self.strategy) if self.several else self.strategy

    @property
    def context(self) -> tf.distribute.InputContext:
        """Which share of each global batch is that of this worker's replicas."""
        return tf.distribute.InputContext(
            num_input_pipelines=len(self._addresses),
            input_pipeline_id=self._index,
            num_replicas_in_sync=self.replicas,
        )

    @contextlib.contextmanager
    def agreeing(self, facts: dict[str, Any]) -> Iterator[None]:
        """A mistake that one finds inside ends all, and so do other facts at its end.

        The workers must not compute together inside.

        Args:
          facts: What is the same on all where all is well, {name: what JSON can say};
            read at the end.

        Raises:
          InputError: This worker or another has found one, or they differ.
        """
        mistake: InputError | None = None
        try:
            yield
        except InputError as error:
            if not self.several:
                raise
            mistake = error
        if not self.several:
            return
        told = mistake and remote.named(str(mistake))
        said = self._each({"mistake": told, "facts": facts})
        if mistake:
            raise mistake
        for index, other in enumerate(said):
            if other["mistake"]:
                raise InputError(f"{self._name(index)} says: {other['mistake']}")
        self._check_same([other["facts"] for other in said])

    def _check_same(self, facts: Sequence[Mapping[str, Any]]) -> None:
        for index, other in enumerate(facts):
            changed = [
                f"{name} is {value!r} there and {other.get(name)!r} here"
                for name, value in facts[0].items()
                if other.get(name) != value
            ]
            if changed:
                raise InputError(
                    f"all workers must have the same settings, code and data, and "
                    f"{self._name(index)} differs from the chief: {'; '.join(changed)}"
                    ". Start all with the same command and code; or, for a run of its "
                    "own in each process, with --strategy=one_device."
                )

    def _name(self, index: int) -> str:
        return f"worker {index} ({self._addresses[index]})"

    def of_chief(self, value: Any) -> Any:
        """What the chief has given here, on all workers; JSON can say it."""
        return self._each(value)[0] if self.several else value

    def arrays_of_chief(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The arrays that the chief has given here, on all workers."""
        if not self.several:
            return dict(arrays)
        kinds = {name: (a.dtype.str, a.shape) for name, a in arrays.items()}
        kinds = self.of_chief(kinds)
        own = _to_bytes(arrays.values()) if self.chief else b""
        of_chief = self._each_bytes(own)[0]
        return dict(zip(kinds, _from_bytes(of_chief, kinds.values()), strict=True))

    def joined(self, arrays: Any) -> Any:
        """Arrays of all workers, joined along their first axis in the workers' order.

        Args:
          arrays: A structure of arrays that has the same shapes on all workers.
        """
        if not self.several:
            return arrays
        leaves = tf.nest.flatten(arrays)
        kinds = [(leaf.dtype.str, leaf.shape) for leaf in leaves]
        each = [_from_bytes(d, kinds) for d in self._each_bytes(_to_bytes(leaves))]
        whole = [np.concatenate(parts) for parts in zip(*each, strict=True)]
        return tf.nest.pack_sequence_as(arrays, whole)

    def any(self, value: bool) -> bool:
        """Whether one of the workers says so; all come here before any goes on."""
        return any(self._each(value)) if self.several else value

    def asked_to_stop(self) -> bool:
        """Whether a signal has come to one of the workers, which then is for all.

        All come here before any goes on.
        """
        if not self.several:
            return stopping.asked()
        signum = max(self._each(stopping.signum()))
        stopping.note(signum)
        return signum != 0  # One that came here meanwhile is told the next time.

    def stop_if_asked(self) -> None:
        """Raises `Stopped` on all workers where a signal has come to one of several.

        Inside `stopping.later`; one alone stops where it is.
        """
        if self.several and self.asked_to_stop():
            raise stopping.Stopped

    def _each(self, value: Any) -> list[Any]:
        """What each worker gives, in their order; JSON can say it."""
        return [
            json.loads(text) for text in self._each_bytes(json.dumps(value).encode())
        ]

    def _each_bytes(self, data: bytes) -> list[bytes]:
        """What each worker gives, in their order."""
        lengths = self._gather(tf.constant([len(data)], tf.int64)).numpy()
        numbers = np.frombuffer(data + bytes(-len(data) % 8), np.int64)
        whole = self._gather(tf.constant(numbers)).numpy().tobytes()
        ends = np.cumsum(lengths + -lengths % 8)
        starts = ends - (lengths + -lengths % 8)
        return [whole[at : at + n] for at, n in zip(starts, lengths, strict=True)]

    @functools.cached_property
    def _gather(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """A function that joins numbers of workers, of the first replica of each."""
        each = self.replicas // len(self._addresses)

        def of_replica(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = tf.equal(context.replica_id_in_sync_group % each, 0)
            return values[: tf.where(first, tf.size(values), 0)]

        def gather(values: tf.Tensor) -> tf.Tensor:
            spread = self.strategy.run(of_replica, (values,))
            return self.strategy.gather(spread, axis=0)

        signature = [tf.TensorSpec([None], tf.int64)]
        return tf.function(gather, input_signature=signature, autograph=False)

    def take_chiefs(self, variables: Sequence[Any]) -> None:
        """Gives variables of TensorFlow's the values that they have on the chief."""
        if self.several:
            self._assign(variables, mean=False)

    def take_mean(self, variables: Sequence[Any]) -> None:
        """Gives variables of TensorFlow's their mean over all replicas of all workers.

        Each replica may have a copy of its own. The mean is taken in float64, so that
        equal values stay as they are. The first call with these variables makes a
        graph, which later ones run.
        """
        copied = [v for v in variables if self.several or len(_copies(v)) > 1]
        self._assign(copied, mean=True)

    def _assign(self, variables: Sequence[Any], mean: bool) -> None:
        """Assigns the mean, or what the chief's first replica has, to all copies."""
        for dtype in dict.fromkeys(variable.dtype for variable in variables):
            some = [variable for variable in variables if variable.dtype == dtype]
            kind = (mean, *map(id, some))  # They live as long as the function.
            if kind not in self._assigners:
                assign = functools.partial(self._assign_in_graph, some, mean)
                self._assigners[kind] = tf.function(assign, autograph=False)
            self._assigners[kind]()

    def _assign_in_graph(self, variables: Sequence[Any], mean: bool) -> None:
        """As `_assign`, for variables of one type.

        What all workers have is the sum over replicas, each times its share.
        """

        def of_replica(some: Sequence[Any]) -> list[tf.Tensor]:
            context = tf.distribute.get_replica_context()
            if mean:
                share = 1 / self.strategy.num_replicas_in_sync
            else:
                share = tf.equal(context.replica_id_in_sync_group, 0)
            values = [tf.convert_to_tensor(value) for value in some]
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
    def explaining_loss(self, kept: str) -> Iterator[None]:
        """Says in one sentence that another worker has ended, which ends this one.

        Args:
          kept: What there is then, and how to go on: the end of the sentence.
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
                    f"--strategy=multi_worker_ring. {kept}"
                ) from error
            if not isinstance(error, _LOST) and not aborted:
                raise
            # What is said before that names this one, too.
            unhealthy = error.message.rpartition("unhealthy")[2]
            named = dict.fromkeys(re.findall(r"/task:(\d+)", unhealthy))
            lost = " and ".join(self._name(int(n)) for n in named) or "another worker"
            raise InputError(
                f"{lost} has ended or cannot be reached, and so all end; see what it "
                f"says. {kept}"
            ) from error


def _copies(variable: Any) -> tuple[Any, ...]:
    """A variable's copies on the replicas of this process."""
    return getattr(variable, "values", (variable,))


def _to_bytes(arrays: Iterable[np.ndarray]) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


def _from_bytes(data: bytes, kinds: Iterable[tuple[str, Any]]) -> list[np.ndarray]:
    """The arrays of these (dtype, shape), one after the other."""
    arrays, start = [], 0
    for dtype, shape in kinds:
        count = math.prod(shape)
        array = np.frombuffer(data, dtype, count, start)
        arrays.append(array.reshape(shape))
        start += array.nbytes
    return arrays


def join(name: str, replicas: int = 0) -> Workers:
    """Waits for the other workers, if there are any, and joins them.

    Args:
      name: As of `--strategy`.
      replicas: Of each worker; as of `--replicas`.

    Raises:
      InputError: See `cluster.from_environment` and `strategy.create`.
    """
    wanted = strategy_lib.takes_workers(name)
    cluster = cluster_lib.from_environment() if wanted else None
    if cluster and cluster.index:
        # The chief tells how it goes.
        logging.set_verbosity(min(logging.get_verbosity(), logging.ERROR))
    elif cluster and cluster.several:
        logging.info("waiting for %d workers to join", len(cluster.addresses) - 1)
    with stopping.kept():
        strategy = strategy_lib.create(name, replicas, cluster)
    return Workers(strategy, cluster)


def facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same on all workers: settings, versions and code, by names."""
    return {
        **{f"--{name}": value for name, value in settings.items()},
        **{f"the version of {k}": v for k, v in directory.versions().items()},
        "the code of mtr_tf": _code_digest(),
    }


def _code_digest() -> str:
    """A hash of the modules of mtr_tf, by which their code is known."""
    package = pathlib.Path(mtr_tf.__file__).parent
    modules = {
        str(module.relative_to(package)): store.file_digest(module)
        for module in package.rglob("*.py")
    }
    return files.digest(modules)
