# SPDX-License-Identifier: Apache-2.0
"""The TFDS builder of rooms: `tfds.builder("rooms/64")`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mtr_tf.cli import progress
from mtr_tf.data import prepared
from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import scene
from mtr_tf.data.rooms import workers

_DESCRIPTION = """
Indoor scenes, ray-cast on your machine: a textured box room with random balls, boxes,
cylinders, cones and spools, one or two lights, shadows and sensor noise, with exact
targets from the geometry. Colours and textures say nothing about the class.
"""


@dataclasses.dataclass(kw_only=True)
class RoomsConfig(tfds.core.BuilderConfig):
    """A size of rooms.

    Attributes:
      size: height and width in pixels.
      seed: of all scenes.
      splits: number of examples by split.
    """

    size: int
    seed: int = 0
    splits: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(layout.SPLIT_SIZES)
    )

    def with_scenes(self, count: int) -> RoomsConfig:
        """The same config with another number of scenes to train on."""
        if count == self.splits["train"]:
            return self
        splits = {**self.splits, "train": count}
        name = f"{self.name}-{count}"
        return dataclasses.replace(self, name=name, splits=splits)

    def with_own_folder(self) -> RoomsConfig:
        """The same config under a name that is unique to its size, seed and splits.

        Prepared data are in a folder of the config's name. The built-in configs, with
        any number of scenes to train on, keep their names.
        """
        for config in Rooms.BUILDER_CONFIGS:
            config = config.with_scenes(self.splits.get("train", 0))
            if (config.name, config._content) == (self.name, self._content):
                return config
        mark = f"-{prepared.fingerprint(self._content)}"
        name = self.name.removesuffix(mark)
        return dataclasses.replace(self, name=name + mark)

    @property
    def _content(self) -> tuple[object, ...]:
        """What the examples depend on."""
        return self.size, self.seed, sorted(self.splits.items())


class Rooms(tfds.core.GeneratorBasedBuilder):
    """Ray-cast rooms; examples are in the order of their index."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        # pyrefly: ignore  (TFDS has name and description, unseen by type checkers)
        RoomsConfig(name=str(size), description=f"{size} x {size} pixels.", size=size)
        for size in layout.SIZES
    ]
    DEFAULT_CONFIG_NAME = str(layout.DEFAULT_SIZE)

    def __init__(self, *, config: RoomsConfig | str | None = None, **options: Any):
        """Takes a TFDS builder's arguments; a custom config has a folder of its own."""
        if isinstance(config, RoomsConfig):
            config = config.with_own_folder()
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return prepared.info(self, _DESCRIPTION, _features(self.builder_config.size))

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        del dl_manager
        return {
            split: self._generate_examples(split, count)
            for split, count in self.builder_config.splits.items()
        }

    def _generate_examples(
        self, split: str, count: int
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        config = self.builder_config
        number = scene.SPLITS.index(split)
        examples = workers.examples(config.seed, number, count, config.size)
        what = f"Making rooms/{config.name}, {split}"
        with progress.bar(count, what, unit="images") as advance:
            for index, arrays in enumerate(examples):
                yield prepared.key(index, count), arrays
                advance(1)


def _features(size: int) -> dict[str, tfds.features.FeatureConnector]:
    features = {}
    for name, (shape, kind) in layout.arrays(size).items():
        if name == "image":
            features[name] = tfds.features.Image(shape=shape, encoding_format="png")
        else:
            features[name] = tfds.features.Tensor(
                shape=shape, dtype=kind, encoding=tfds.features.Encoding.BYTES
            )
    return features
