# SPDX-License-Identifier: Apache-2.0
"""The processes that train one model together: what they agree on, and how they end.

Each computes the same but for its share of every batch, in the same order, as what they
say to each other (`tf.distribute`'s collectives) has no names. The first, the chief, is
the only one that writes and that tells how it goes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf.errors import InputError
from mtr_tf.errors import input_error_within
from mtr_tf.runs import cluster as cluster_lib
from mtr_tf.runs import remote
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
    """The workers of a training; one alone agrees with itself, and computes nothing."""

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None):
        """Takes where they compute, and who they are; None: this process alone."""
        self.strategy = strategy
        self._addresses = cluster.addresses if cluster else ("",)
        self._index = cluster.index if cluster else 0
        self.several = cluster is not None and cluster.several
        self.chief = self._index == 0

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

    def any(self, value: bool) -> bool:
        """Whether one of the workers says so; all come here before any goes on."""
        return any(self._each(value)) if self.several else value

    def _each(self, value: Any) -> list[Any]:
        """What each worker gives, in their order."""
        text = json.dumps(value).encode()
        lengths = self._gathered([len(text)])
        every = len(lengths) // len(self._addresses)  # Each of its replicas says it.
        ends = np.cumsum(lengths)
        whole = bytes(self._gathered(list(text)).astype(np.uint8))
        texts = [whole[end - n : end] for n, end in zip(lengths, ends, strict=True)]
        return [json.loads(text) for text in texts[::every]]

    def _gathered(self, numbers: list[int]) -> np.ndarray:
        return self._gather(tf.constant(numbers, tf.int64)).numpy()

    @functools.cached_property
    def _gather(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """A function that joins the numbers of all replicas of all workers."""

        def gather(values: tf.Tensor) -> tf.Tensor:
            spread = self.strategy.run(tf.identity, (values,))
            return self.strategy.gather(spread, axis=0)

        signature = [tf.TensorSpec([None], tf.int64)]
        return tf.function(gather, input_signature=signature, autograph=False)

    def take_chiefs(self, variables: Sequence[Any]) -> None:
        """Gives variables of TensorFlow's the values that they have on the chief."""
        if self.several:
            self._assign_sums(variables, lambda replica: tf.equal(replica, 0))

    def take_mean(self, variables: Sequence[Any]) -> None:
        """Gives variables of TensorFlow's their mean over all workers."""
        if self.several:
            share = 1 / self.strategy.num_replicas_in_sync
            self._assign_sums(variables, lambda replica: share)

    def _assign_sums(
        self, variables: Sequence[Any], weight: Callable[[Any], Any]
    ) -> None:
        """Assigns the sum over replicas, each times its weight by its number."""

        def of_replica(some: Sequence[Any]) -> list[tf.Tensor]:
            context = tf.distribute.get_replica_context()
            values = [tf.convert_to_tensor(variable) for variable in some]
            share = weight(context.replica_id_in_sync_group)
            parts = [v * tf.cast(share, v.dtype) for v in values]
            return context.all_reduce(tf.distribute.ReduceOp.SUM, parts)

        def of_one_type(some: Sequence[Any]) -> list[tf.Tensor]:
            results = self.strategy.run(of_replica, (some,))
            return [self.strategy.experimental_local_results(r)[0] for r in results]

        for dtype in dict.fromkeys(variable.dtype for variable in variables):
            some = [variable for variable in variables if variable.dtype == dtype]
            sums = tf.function(functools.partial(of_one_type, some), autograph=False)()
            for variable, total in zip(some, sums, strict=True):
                variable.assign(total)

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
            if not isinstance(error, _LOST) and not aborted:
                raise
            named = dict.fromkeys(re.findall(r"/task:(\d+)", _last(error.message)))
            lost = " and ".join(self._name(int(n)) for n in named) or "another worker"
            raise InputError(
                f"{lost} has ended or cannot be reached, and so all end; see what it "
                f"says. {kept}"
            ) from error


def _last(message: str) -> str:
    """What speaks of the tasks that are lost, in an error that names this one too."""
    return message.rpartition("unhealthy")[2]


def join(name: str, replicas: int = 0) -> Workers:
    """Waits for the other workers, if there are any, and joins them.

    Args:
      name: As of `--strategy`.
      replicas: Of each worker; as of `--replicas`.

    Raises:
      InputError: See `cluster.from_environment` and `strategy.create`.
    """
    wanted = name in ("auto", "multi_worker")
    cluster = cluster_lib.from_environment() if wanted else None
    if cluster and cluster.index:
        # The chief tells how it goes.
        logging.set_verbosity(min(logging.get_verbosity(), logging.WARNING))
    elif cluster and cluster.several:
        logging.info("waiting for %d workers to join", len(cluster.addresses) - 1)
    return Workers(strategy_lib.create(name, replicas, cluster), cluster)
