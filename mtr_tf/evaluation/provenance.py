# SPDX-License-Identifier: Apache-2.0
"""What a model's results depend on, besides the attack or the measure itself."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What results depend on, for their records to repeat.

    Attributes:
      mtr_tf: Its version.
      tensorflow: Its version.
      keras: Its version.
      model: Fingerprint of the model that is attacked.
      source: Fingerprint of the model that adversarial images are made on; None where
        that is `model` itself.
      fast: Whether gradients are taken in half precision.
      precision: The policy that the model computes in; `own`: that of its file.
      input: (scale, offset) per channel that turn images in [0, 1] into the model's
        inputs; None if it takes images in [0, 1].
      dataset: Name of the data set.
      split: Name of the split.
      num_examples: How many images, the first ones.
      data: Fingerprint of these images and their targets.
      tasks: The scored tasks.
      seed: The seed of random starts, pixels and intervals.
      own_tasks: Records of tasks that are not among the eleven, or differ from them.
      batch_size: For a random model, whose noise is drawn for a replica's batch: the
        number of images in such a batch; else None.
      interval_over: What intervals draw, in words; it follows from the data.
      images: Size and some means of the images, which models with different tasks
        share. It is part of `data`.
      targets: "data", or "own" for the model's clean outputs; it is part of `data`.
    """

    mtr_tf: str
    tensorflow: str
    keras: str
    model: str
    source: str | None
    fast: bool
    precision: str
    input: tuple[tuple[float, ...], tuple[float, ...]] | None
    dataset: str
    split: str
    num_examples: int
    data: str
    tasks: tuple[str, ...]
    seed: int
    own_tasks: tuple[dict[str, Any], ...] = ()
    batch_size: int | None = None
    interval_over: str = ""
    images: str = ""
    targets: str = "data"

    def to_dict(self) -> dict[str, Any]:
        """What identifies finished work, for JSON."""
        fields = dataclasses.asdict(self)
        for name in ("interval_over", "images", "targets"):
            del fields[name]
        for name in ("batch_size", "own_tasks"):
            if not fields[name]:
                del fields[name]
        return fields

    def of_measures(self, warnings: list[str]) -> dict[str, Any]:
        """The fields that every record of a measure repeats, with its warnings."""
        return {
            "seed": self.seed,
            "dataset": self.dataset,
            "split": self.split,
            "images": self.images,
            "model_fingerprint": self.model,
            "precision": self.precision,
            **({"input": self.input} if self.input else {}),
            "interval_over": self.interval_over,
            "warnings": warnings,
            **({} if self.targets == "data" else {"targets": self.targets}),
        }

    def of_attacks(self, warnings: list[str]) -> dict[str, Any]:
        """The fields that every record of an attack repeats, with its warnings."""
        return {
            **self.of_measures(warnings),
            "source_fingerprint": self.source,
            "fast": self.fast,
        }
