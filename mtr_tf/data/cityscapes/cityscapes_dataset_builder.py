# SPDX-License-Identifier: Apache-2.0
"""The TFDS builder of Cityscapes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mtr_tf.data import parts
from mtr_tf.data import prepared
from mtr_tf.data.cityscapes import layout

_DESCRIPTION = """
Cityscapes at one size: pictures, train ids, and one kind of depth, with masks.
"""
_WORK = "mtr_tf.data.cityscapes.examples:make"


@dataclasses.dataclass(kw_only=True)
class CityscapesConfig(tfds.core.BuilderConfig):
    """What is prepared.

    Attributes:
      size: (height, width).
      depth_target: what `depth` is.
      source: the folder with the files.
      jobs: {split: {CITY_SEQUENCE_FRAME: argument of `examples.make`}}.
    """

    size: tuple[int, int]
    depth_target: str
    source: str
    jobs: dict[str, dict[str, Any]] = dataclasses.field(repr=False)


class MtrCityscapes(prepared.Builder):
    """Cityscapes, in the order of its names (TFDS has a `cityscapes` of its own)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return prepared.info(self, _DESCRIPTION, _features(self.builder_config.size))

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        del dl_manager
        return {
            split: self._generate_examples(split) for split in self.builder_config.jobs
        }

    @property
    def parts(self) -> pathlib.Path:
        """The folder that holds the parts during preparation."""
        config = self.builder_config
        facts = (config.size, config.depth_target, config.source)
        return prepared.parts_folder(self, facts)

    @property
    def work(self) -> dict[str, prepared.Work]:
        """What the parts of each split are made of."""
        return {
            split: prepared.Work(
                self.parts / split,
                [(_part(name, job), job) for name, job in jobs.items()],
                _WORK,
            )
            for split, jobs in self.builder_config.jobs.items()
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        jobs = self.builder_config.jobs[split]
        outputs = parts.examples(*self.work[split], f"Preparing Cityscapes, {split}")
        for index, (name, arrays) in enumerate(zip(jobs, outputs, strict=True)):
            name_bytes = os.fsencode(name)  # The system's bytes, which may be no UTF-8.
            example = {"name": name_bytes, "city": name_bytes.split(b"_")[0], **arrays}
            yield prepared.key(index, len(jobs)), example


def _part(name: str, job: dict[str, Any]) -> str:
    """The key of a part: other files of the same name make another part."""
    fields = [job[kind.folder] for kind in layout.KINDS]
    return f"{name}-{prepared.fingerprint(fields)}"


def _features(size: tuple[int, int]) -> dict[str, Any]:
    def tensor(shape: tuple[int, ...], kind: type) -> tfds.features.Tensor:
        # Not compressed here, because the files of array_record are.
        encoding = tfds.features.Encoding.BYTES
        return tfds.features.Tensor(shape=shape, dtype=kind, encoding=encoding)

    return {
        "name": tfds.features.Text(),
        "city": tfds.features.Text(),
        "image": tensor((*size, 3), np.uint8),
        "seg": tensor(size, np.uint8),
        "seg_known": tensor(size, np.bool_),
        "depth": tensor((*size, 1), np.float32),
        "depth_known": tensor(size, np.bool_),
        "original_size": tensor((2,), np.int32),
    }
