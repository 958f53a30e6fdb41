# SPDX-License-Identifier: Apache-2.0
"""Passes over a data set, in parts that are kept on disk and not run again."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf import files
from mtr_tf.attacks import base
from mtr_tf.cli import progress
from mtr_tf.cli import stopping
from mtr_tf.data import batching
from mtr_tf.errors import present
from mtr_tf.evaluation.evaluator import in_order
from mtr_tf.evaluation.sweep import Subject
from mtr_tf.models import compiling
from mtr_tf.models import stateless
from mtr_tf.runs import store
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.runs.workers import Workers

_FORMAT = 2  # Version of the parts; those of other versions are run again.
_BATCH_KEYS = ("image", "targets", "masks", "index")

Arrays = dict[str, np.ndarray]
"""{name: `[N, ...]`, or `[draws, N, ...]`}, images in the order of the split."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Some arrays and the function that makes them.

    Attributes:
      about: Identifies the arrays, as JSON.
      cost: Passes forwards and backwards per image, about.
      make: Returns the arrays. It reports progress by calling its argument with
        numbers of images, which sum to `passes` times the images of the subject.
      passes: How often it goes over the images.
    """

    about: Mapping[str, Any]
    cost: float
    make: Callable[[Callable[[int], None]], Arrays]
    passes: int = 1


@dataclasses.dataclass(frozen=True)
class Parts:
    """The finished parts in a folder, about one model and one set of examples.

    With several workers only the chief reads and writes them.
    """

    folder: pathlib.Path
    facts: Mapping[str, Any]
    workers: Workers

    def finish(
        self, parts: Sequence[Part], images: int, label: str = "measuring"
    ) -> list[Arrays]:
        """Returns the arrays of all parts; makes and stores those not in the folder."""
        results = [self._chief_arrays(part) for part in parts]
        costs = [part.cost * part.passes * images for part in parts]
        finished_cost = sum(
            cost
            for cost, arrays in zip(costs, results, strict=True)
            if arrays is not None
        )

        def message() -> str:
            count = sum(arrays is not None for arrays in results)
            return (
                f"{label.capitalize()}: {count} of {len(parts)} parts are finished and "
                "kept; the same command continues with the others."
            )

        with (
            stopping.saying(message),
            progress.bar(
                sum(costs),
                label,
                "image passes",
                finished_cost,
                shown=self.workers.chief,
            ) as advance,
        ):
            for place, part in enumerate(parts):
                if results[place] is None:
                    arrays = part.make(functools.partial(_advance, advance, part))
                    if self.workers.chief:
                        store.Store(self.folder).write(self._key(part), {}, arrays)
                    results[place] = arrays
        return [present(arrays, "a finished part") for arrays in results]

    def _key(self, part: Part) -> dict[str, Any]:
        return {"format": _FORMAT, **self.facts, "part": dict(part.about)}

    def _chief_arrays(self, part: Part) -> Arrays | None:
        """The stored arrays of a part, which the chief reads, on all workers."""
        arrays = self._read(part) if self.workers.chief else None
        if not self.workers.of_chief(arrays is not None):
            return None
        return self.workers.arrays_of_chief(arrays or {})

    def _read(self, part: Part) -> Arrays | None:
        archive, key = store.Store(self.folder), self._key(part)
        if archive.path(key).exists():
            entry = archive.read(key)
            return None if entry is None else entry.arrays
        return self._read_old(archive.path(key).with_suffix(".npz"), key)

    def _read_old(self, path: pathlib.Path, key: Mapping[str, Any]) -> Arrays | None:
        """Reads arrays of a version before 0.2, which have the key among them."""
        try:
            arrays = store.read_arrays(path) if path.exists() else {}
            if "key" not in arrays:  # Or of this version, but unfinished.
                return None
            if json.loads(str(arrays.pop("key"))) != store.as_json(key):
                raise ValueError("it holds something else")
            return arrays
        except files.DAMAGED as error:
            files.say_damaged(path, error)
            return None


def _advance(advance: Callable[..., None], part: Part, images: int) -> None:
    names = ("task", "pixels", "eps")
    note = ", ".join(f"{k} {part.about[k]}" for k in names if k in part.about)
    advance(images * part.cost, note)


class Pass:
    """A function of a batch, compiled once, that is run over all images of a subject.

    `step(batch, *arguments)` returns {name: `[batch, ...]`}; it sees only the
    images of its replica, and what it returns for one must not depend on the others.
    """

    def __init__(
        self,
        subject: Subject,
        step: Callable[..., dict[str, tf.Tensor]],
        cost: float = 0,
    ):
        """Takes what all calls share.

        Args:
          subject: What is measured.
          step: The function.
          cost: Passes forwards and backwards per image, in all calls, about.
        """
        self._subject = subject
        self._jit = subject.compiled(cost * subject.num_examples)
        self._step = step
        self._compiled = None

    def __call__(self, advance: Callable[[int], None], *arguments: tf.Tensor) -> Arrays:
        """All images' results in the order of the split, {name: `[N, ...]`}."""
        subject, results = self._subject, []
        strategy, workers = subject.workers.local, subject.workers
        with stateless.unchanged(subject.model), base.input_errors():
            for batch in strategy.distribute_datasets_from_function(self._batches):
                batch = {key: batch[key] for key in _BATCH_KEYS}
                if self._compiled is None:
                    inputs = (batch, *arguments)
                    self._compiled = compiling.replicated(
                        strategy, self._step, inputs, self._jit, "a measure"
                    )
                result = self._compiled(batch, *arguments) | {"index": batch["index"]}
                results.append(workers.joined(strategy_lib.gathered(strategy, result)))
                advance(int((results[-1]["index"] >= 0).sum()))
                workers.stop_if_asked()
        arrays, _ = in_order(results, [part.pop("index") for part in results])
        return arrays

    def _batches(self, _: tf.distribute.InputContext) -> tf.data.Dataset:
        return batching.eval_batches(
            self._subject.columns,
            self._subject.tasks,
            batch_size=self._subject.batch_size,
            num_examples=self._subject.num_examples,
            context=self._subject.workers.context,
            num_classes=self._subject.info.num_classes,
        )
