# SPDX-License-Identifier: Apache-2.0
"""From a view's files to the arrays that are stored for it."""

from __future__ import annotations

import types
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtr_tf.data import png
from mtr_tf.data.taskonomy import coding
from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy import released
from mtr_tf.data.taskonomy import resizing
from mtr_tf.data.taskonomy import transforms
from mtr_tf.errors import InputError


class Files:
    """A view's files, each read at most once, and what is wrong with them.

    Attributes:
      wrong: by task (or `layout.RGB`), what is wrong with its file, if it was read.
    """

    def __init__(self, paths: Mapping[str, str]):
        self._paths = paths
        self._read: dict[str, np.ndarray | None] = {}
        self.wrong: dict[str, str] = {}

    def read(self, task: str) -> np.ndarray | None:
        """The numbers of a task's file; None if it is missing or broken."""
        if task not in self._read:
            self._read[task] = None
            if task in self._paths:
                try:
                    self._read[task] = read_file(task, self._paths[task])
                except InputError as error:
                    self.wrong[task] = str(error)
        return self._read[task]


def make(job: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads and resizes the files of a view.

    Only files that the tasks need are opened.

    Args:
      job: "files", the view's paths by task, with that of its picture under
        `layout.RGB`; "tasks", the tasks to make (a target whose file is missing or
        broken is not known anywhere); "size", (height, width); "as_released", whether
        to do as the paper's released code does.

    Returns:
      "image", uint8 [h, w, 3], black if it is broken; by task, codes as defined in
      `coding`; "wrong" and "why", two lists of texts: the tasks of broken files (or of
      files of another kind than their domain's), and what is wrong with them.
    """
    files, size = Files(job["files"]), tuple(job["size"])
    module = released if job["as_released"] else transforms
    picture = files.read(layout.RGB)
    arrays = {"image": np.zeros((*size, 3), np.uint8)}
    if picture is not None:
        arrays["image"] = module.image(picture, size)
    for task in job["tasks"]:
        file = files.read(task)
        if file is None:
            arrays[task] = coding.unknown(task, size)
            continue
        valid = np.ones(file.shape[:2], bool)
        if task in layout.DEPTHS:
            valid = module.depth_known(file)
        elif layout.DOMAINS[task].masked_by_depth:
            surfaces = surfaces_known(files, module, job["as_released"])
            if surfaces is not None:
                valid = resizing.nearest(surfaces, file.shape[:2])
        arrays[task] = coding.encode(task, *module.TRANSFORMS[task](file, valid, size))
    arrays["wrong"] = np.array(list(files.wrong), np.str_)
    arrays["why"] = np.array(list(files.wrong.values()), np.str_)
    return arrays


def packed(job: Mapping[str, Any]) -> dict[str, np.ndarray | bytes]:
    """The result of `make`, compressed as the data set stores it.

    Compressed here because a single process puts the data set together, and should
    only copy.
    """
    return {
        name: value if name in ("wrong", "why") else zlib.compress(value.tobytes())
        for name, value in make(job).items()
    }


def surfaces_known(
    files: Files, module: types.ModuleType, as_released: bool
) -> np.ndarray | None:
    """Where a view shows a surface, not a hole: bool [H, W]; None if no file tells.

    The first of these files that exists decides: distances, depths, Omnidata's masks.
    Otherwise a surface is where neither normals nor curvatures have the colour of a
    hole. The released code uses only the first two.
    """
    for task in ("depth_euclidean", "depth"):
        file = files.read(task)
        if file is not None:
            return module.depth_known(file)
    if as_released:
        return None
    file = files.read(layout.MASK)
    if file is not None:
        return file > 0
    surfaces = None
    for task, colour in layout.HOLES.items():
        file = files.read(task)
        if file is None:
            continue
        valid = (file != np.array(colour, file.dtype)).any(axis=-1)
        if surfaces is not None:
            valid &= resizing.nearest(surfaces, valid.shape)
        surfaces = valid
    return surfaces


def read_file(task: str, path: str) -> np.ndarray:
    """The numbers of a file of a task, `layout.RGB` or `layout.MASK`.

    Returns:
      [H, W] or colours [H, W, 3].

    Raises:
      InputError: the file is broken, or not of its domain's kind.
    """
    if task == layout.RGB:
        return _read(path, colour=True)
    if task == layout.MASK:
        file = _read(path, colour=False)
        return file if file.ndim == 2 else file.max(axis=-1)
    domain = layout.DOMAINS[task]
    file = _read(path, colour=domain.channels > 1)
    if task in layout.DEPTHS and (file.ndim != 2 or file.dtype != np.uint16):
        raise InputError(
            f"Taskonomy's depth files must have one channel of 16 bits, but '{path}' "
            f"has {_kind(file)}; download the original again."
        )
    labels = domain.stored == np.uint8
    if labels and (file.ndim != 2 or file.max() > len(layout.CLASSES)):
        content = _kind(file) if file.ndim != 2 else f"the label {file.max()}"
        raise InputError(
            "Taskonomy's labels must be one channel with values from 1 to "
            f"{len(layout.CLASSES)}, or 0 for none, but '{path}' has {content}; "
            "download the original again."
        )
    return file


def _read(path: str, *, colour: bool) -> np.ndarray:
    file = png.decode(png.read_file(path), path)
    if colour and file.ndim != 3:
        raise InputError(
            f"A file of this domain must have three colours, but '{path}' has "
            f"{_kind(file)}; download the original again."
        )
    return file


def _kind(file: np.ndarray) -> str:
    channels = "one channel" if file.ndim == 2 else "colours"
    return f"{channels} of {8 * file.itemsize} bits"
