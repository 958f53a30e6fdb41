# SPDX-License-Identifier: Apache-2.0
"""The TFDS builder of Taskonomy, from files that `finding` has found."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mtr_tf.data import parts
from mtr_tf.data import prepared
from mtr_tf.data.taskonomy import coding
from mtr_tf.data.taskonomy import examples
from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy.finding import View
from mtr_tf.errors import InputError

_WORK = f"{examples.__name__}:packed"
BROKEN = "broken"  # In the metadata: {task: what is wrong with its broken files}.
_DESCRIPTION = """
Real indoor scenes with targets for eleven tasks, resized; targets are stored as defined
in mtr_tf.data.taskonomy.coding.
"""


@dataclasses.dataclass(kw_only=True)
class TaskonomyConfig(tfds.core.BuilderConfig):
    """Taskonomy at one size, made from the files of a folder.

    Attributes:
      size: (height, width).
      tasks: the tasks to make, which have files.
      as_released: whether the released code's errors are repeated.
      splits: views by split.
      source: the path of the folder with the files.
    """

    size: tuple[int, int]
    tasks: Sequence[str]
    as_released: bool
    splits: Mapping[str, Sequence[View]]
    source: str


class Taskonomy(prepared.Builder):
    """Views of Taskonomy, by building, point and view."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.1.0": "Holes are found from more domains; broken files are masked.",
        "1.0.0": "First version.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        features = {"image": _tensor((*config.size, 3), np.uint8)}
        for task in config.tasks:
            features[task] = _tensor(*coding.spec(task, config.size))
        broken = tfds.core.MetadataDict({BROKEN: {}})
        return prepared.info(self, _DESCRIPTION, features, metadata=broken)

    @property
    def parts(self) -> pathlib.Path:
        """The folder that holds the parts during preparation.

        It is the same for all states of the source: if a broken file is downloaded
        again, the other views need not be read again.
        """
        config = self.builder_config
        facts = (config.size, config.tasks, config.as_released, config.source)
        return prepared.parts_folder(self, facts)

    @property
    def work(self) -> dict[str, prepared.Work]:
        """What the parts of each split are made of."""
        return {
            split: prepared.Work(self.parts, _Jobs(self.builder_config, views), _WORK)
            for split, views in self.builder_config.splits.items()
        }

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        del dl_manager
        self.info.metadata[BROKEN] = {}
        return {
            split: self._generate_examples(split, views)
            for split, views in self.builder_config.splits.items()
        }

    def _generate_examples(
        self, split: str, views: Sequence[View]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        work = self.work[split]
        outputs = parts.examples(*work, what=f"reading Taskonomy {split}", unit="views")
        for index, ((part, _), arrays) in enumerate(
            zip(work.jobs, outputs, strict=True)
        ):
            tasks, reasons = (
                np.asarray(arrays.pop(n)).tolist() for n in ("wrong", "why")
            )
            for task, reason in zip(tasks, reasons, strict=True):
                self.info.metadata[BROKEN].setdefault(task, []).append(reason)
                if task == layout.RGB:  # Or it would not be read again.
                    (self.parts / f"{part}.npz").unlink(missing_ok=True)
            yield prepared.key(index, len(views)), arrays
        if split == list(self.builder_config.splits)[-1]:
            self._list_broken()

    def _list_broken(self) -> None:
        """Warns of all broken files; raises `InputError` if pictures are among them."""
        broken = self.info.metadata[BROKEN]
        reasons = [
            reason for task_reasons in broken.values() for reason in task_reasons
        ]
        listing = "; ".join(reason.rstrip(".") for reason in reasons)
        if layout.RGB in broken:
            raise InputError(
                f"Pictures must not be broken, but {len(broken[layout.RGB])} of "
                f"Taskonomy's are (all broken files: {listing}); download these files "
                "again, or remove them."
            )
        if reasons:
            logging.warning(
                "%d broken files of Taskonomy are masked (download them again to use "
                "them): %s.", len(reasons), listing
            )  # fmt: skip


class _Jobs(Sequence):
    """(name of the part, job for `examples.packed`) of each of some views.

    Created on access: those of a million views would fill the memory.
    """

    def __init__(self, config: TaskonomyConfig, views: Sequence[View]):
        self._config, self._views = config, views

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, place: Any) -> tuple[str, dict[str, Any]]:
        view, config = self._views[place], self._config
        sizes = sorted((task, place.size) for task, place in view.places.items())
        key = f"{view.name.replace('/', '-')}-{prepared.fingerprint(sizes)}"
        return key, {
            "files": {task: str(view.path(task)) for task in view.places},
            "tasks": list(config.tasks),
            "size": config.size,
            "as_released": config.as_released,
        }


def _tensor(
    shape: tuple[int, ...], kind: type[np.generic]
) -> tfds.features.FeatureConnector:
    """A feature that takes arrays, or bytes that workers have compressed."""
    feature = tfds.features.Tensor(
        shape=shape, dtype=kind, encoding=tfds.features.Encoding.ZLIB
    )
    encode = feature.encode_example
    feature.encode_example = lambda value: (
        value if isinstance(value, bytes) else encode(value)
    )
    return feature
