# SPDX-License-Identifier: Apache-2.0
"""Passes over a data set, in parts that are kept on disk and not made twice."""

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

_FORMAT = 2  # Of the parts; those of another number are not known.
_USED = ("image", "targets", "masks", "index")

Arrays = dict[str, np.ndarray]
"""{name: `[N, ...]`, or `[draws, N, ...]`}, images in the order of the split."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Some arrays and how to make them.

    Attributes:
      about: What they are, as JSON.
      cost: Passes forwards and backwards per image, about.
      make: Calls its argument with a number of images now and then, `passes` times
        those of the subject in all; returns the arrays.
      passes: How often it goes over the images.
    """

    about: Mapping[str, Any]
    cost: float
    make: Callable[[Callable[[int], None]], Arrays]
    passes: int = 1


@dataclasses.dataclass(frozen=True)
class Parts:
    """The finished parts in a folder, about one model and one set of examples.

    Of several workers the chief alone reads and writes them.
    """

    folder: pathlib.Path
    facts: Mapping[str, Any]
    workers: Workers

    def finish(
        self, parts: Sequence[Part], images: int, what: str = "measuring"
    ) -> list[Arrays]:
        """The arrays of all parts; those not in the folder are made and kept."""
        found = [self._known(part) for part in parts]
        costs = [part.cost * part.passes * images for part in parts]
        done = sum(
            cost
            for cost, arrays in zip(costs, found, strict=True)
            if arrays is not None
        )

        def kept() -> str:
            count = sum(arrays is not None for arrays in found)
            return (
                f"{what.capitalize()}: {count} of {len(parts)} parts are finished and "
                "kept; the same command continues with the others."
            )

        with (
            stopping.saying(kept),
            progress.bar(
                sum(costs), what, "image passes", done, shown=self.workers.chief
            ) as advance,
        ):
            for place, part in enumerate(parts):
                if found[place] is None:
                    arrays = part.make(functools.partial(_advance, advance, part))
                    if self.workers.chief:
                        self._write(part, arrays)
                    found[place] = arrays
        return [present(arrays, "a finished part") for arrays in found]

    def _key(self, part: Part) -> dict[str, Any]:
        return {"format": _FORMAT, **self.facts, "part": dict(part.about)}

    def _known(self, part: Part) -> Arrays | None:
        """What the chief has of a part, on all workers."""
        arrays = self._read(part) if self.workers.chief else None
        if not self.workers.of_chief(arrays is not None):
            return None
        return self.workers.arrays_of_chief(arrays or {})

    def _read(self, part: Part) -> Arrays | None:
        kept, key = store.Store(self.folder), self._key(part)
        if kept.path(key).exists():
            entry = kept.read(key)
            return None if entry is None else entry.arrays
        return self._read_alone(kept.path(key).with_suffix(".npz"), key)

    def _read_alone(self, path: pathlib.Path, key: Mapping[str, Any]) -> Arrays | None:
        """The arrays of a version before 0.2, with the key among them."""
        try:
            arrays = store.read_arrays(path) if path.exists() else {}
            if "key" not in arrays:  # Or of this one, which has not been finished.
                return None
            if json.loads(str(arrays.pop("key"))) != store.as_json(key):
                raise ValueError("it holds something else")
            return arrays
        except files.DAMAGED as error:
            files.say_damaged(path, error)
            return None

    def _write(self, part: Part, arrays: Arrays) -> None:
        store.Store(self.folder).write(self._key(part), {}, arrays)


def _advance(advance: Callable[..., None], part: Part, images: int) -> None:
    names = ("task", "pixels", "eps")
    note = ", ".join(f"{k} {part.about[k]}" for k in names if k in part.about)
    advance(images * part.cost, note)


class Pass:
    """A function of a batch, compiled once, that is run over all images of a subject.

    `step(batch, *arguments)` returns {name: `[batch, ...]`}; it sees no other images
    than its replica's, and what it returns for one must not depend on the others.
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
        with stateless.unchanged(self._subject.model), base.input_errors():
            return self._run(advance, arguments)

    def _run(self, advance, arguments) -> Arrays:
        subject, found = self._subject, []
        strategy, workers = subject.workers.local, subject.workers
        for batch in strategy.distribute_datasets_from_function(self._batches):
            batch = {key: batch[key] for key in _USED}
            if self._compiled is None:
                given = (batch, *arguments)
                self._compiled = compiling.replicated(
                    strategy, self._step, given, self._jit, "a measure"
                )
            made = self._compiled(batch, *arguments) | {"index": batch["index"]}
            found.append(workers.joined(strategy_lib.gathered(strategy, made)))
            advance(int((found[-1]["index"] >= 0).sum()))
            workers.stop_if_asked()
        arrays, _ = in_order(found, [part.pop("index") for part in found])
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
