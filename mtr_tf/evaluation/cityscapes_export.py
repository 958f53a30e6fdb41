# SPDX-License-Identifier: Apache-2.0
"""Predicted classes as files that Cityscapes' own evaluator takes.

    RUN/attacks/NAME/predictions/clean_HASH/CITY_SEQUENCE_FRAME_predLabelIds.png
                                 ATTACK_GROUP_epsE_HASH/...

Each is an 8-bit picture of Cityscapes' label ids (not train ids), as large as the label
file: a pixel has the class of the corresponding pixel of the model's output. With
cityscapesScripts, for one of the folders:

    CITYSCAPES_DATASET=DIR CITYSCAPES_RESULTS=FOLDER csEvalPixelLevelSemanticLabeling

It needs a prediction for each label file of val: attack with --num_examples=0. Its
"Score Average" equals our mIoU if the model's outputs have the size of the files;
otherwise ours is computed on the smaller outputs. (For this command cityscapesScripts
2.3.0 needs NumPy below 2.4: give it a separate environment.)
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mtr_tf import files
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.cityscapes import resizing
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError

TASK = "seg"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of one model for the first images of a split.

    Attributes:
      folder: has a folder for each set of predictions.
      names: CITY_SEQUENCE_FRAME of each image.
      sizes: int [N, 2], (height, width) of each image's label file.
    """

    folder: pathlib.Path
    names: Sequence[str]
    sizes: np.ndarray

    def path(self, label: str, index: int) -> pathlib.Path:
        """The file of an image, in the set of predictions called `label`."""
        return self.folder / label / f"{self.names[index]}_predLabelIds.png"

    def complete(self, label: str) -> bool:
        """Whether all files of a set exist; no file is ever incomplete."""
        return all(self.path(label, i).exists() for i in range(len(self.names)))

    def write(self, label: str, index: np.ndarray, logits: np.ndarray) -> None:
        """Writes the predictions of a batch.

        Args:
          label: the name of the set.
          index: int [b], the images' numbers; -1 is padding.
          logits: float [b, h, w, 19], by train id. Where one is not finite, the
            prediction is `unlabeled`, which counts as wrong.
        """
        for i, image_logits in zip(index, logits, strict=True):
            if i >= 0:
                self._save(self.path(label, i), image_logits, tuple(self.sizes[i]))

    def choose(self, label: str, members: Sequence[str], choice: np.ndarray) -> None:
        """Makes a set by copying the prediction for each image from one of other sets.

        Args:
          label: the set to make.
          members: the sets to choose from, all complete.
          choice: int [N], the number of the set to take for each image.
        """
        for i, member in enumerate(choice):
            data = files.read_bytes(self.path(members[member], i))
            with files.whole_file(self.path(label, i)) as temporary:
                temporary.write_bytes(data)

    def _save(
        self, path: pathlib.Path, logits: np.ndarray, size: tuple[int, int]
    ) -> None:
        finite = np.isfinite(logits).all(axis=-1)
        label_ids = np.array(layout.LABEL_IDS, np.uint8)[logits.argmax(axis=-1)]
        label_ids = np.where(finite, label_ids, np.uint8(layout.UNLABELED))
        with files.whole_file(path) as temporary:
            Image.fromarray(resizing.nearest_back(label_ids, size)).save(temporary)


def open_predictions(
    folder: pathlib.Path,
    info: DatasetInfo,
    columns: Columns,
    tasks: Sequence[str],
    num_examples: int,
) -> Predictions:
    """The predictions below a folder, for the first images of a split.

    Raises:
      InputError: the data set is not Cityscapes, or `seg` is not among the tasks.
    """
    if info.name != "cityscapes" or columns.original_sizes is None:
        raise InputError(
            "--export_predictions writes files for Cityscapes' evaluator, so it needs "
            f"the data set cityscapes, not {info.name}; leave it out."
        )
    if TASK not in tasks:
        raise InputError(
            f"--export_predictions writes predictions of the task {TASK}, but the "
            f"tasks are {', '.join(tasks)}; leave it out."
        )
    sizes = columns.original_sizes[:num_examples]
    return Predictions(folder, columns.names[:num_examples], sizes)
