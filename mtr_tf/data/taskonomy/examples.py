# SPDX-License-Identifier: Apache-2.0
"""From a view's files to the arrays that are stored of it."""

from __future__ import annotations

import functools
import pathlib
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

# What tells where a view's surfaces are known: the first of these that it has.
_DEPTHS = ("depth_euclidean", "depth")


def make(job: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads and resizes what there is of a view.

    Args:
      job: "files", the view's paths by task, and that of its picture, which must be
        there, by `layout.RGB`; "tasks", those to make: where the view has no file of
        one, nothing of it is known; "size", (height, width); "as_released", whether it
        is done as in the paper's released code.

    Returns:
      "image", uint8 [h, w, 3], and by task codes as `coding` has them.

    Raises:
      InputError: a file is broken, or not of its domain's kind.
    """
    files, size = job["files"], tuple(job["size"])
    way = released if job["as_released"] else transforms
    read = functools.cache(lambda task: read_file(task, files[task]))
    depths = [way.depth_known(read(task)) for task in _DEPTHS if task in files]
    arrays = {"image": way.image(_read(files[layout.RGB], colour=True), size)}
    for task in job["tasks"]:
        if task not in files:
            arrays[task] = coding.unknown(task, size)
            continue
        file = read(task)
        known = np.ones(file.shape[:2], bool)
        if task in _DEPTHS:
            known = way.depth_known(file)
        elif layout.DOMAINS[task].masked_by_depth and depths:
            known = resizing.nearest(depths[0], file.shape[:2])
        arrays[task] = coding.encode(task, *way.TRANSFORMS[task](file, known, size))
    return arrays


def read_file(task: str, path: str) -> np.ndarray:
    """The numbers of a task's file: [H, W] or colours [H, W, 3].

    Raises:
      InputError: it is broken, or not of its domain's kind.
    """
    domain = layout.DOMAINS[task]
    file = _read(path, colour=domain.channels > 1)
    if task in _DEPTHS and (file.ndim != 2 or file.dtype != np.uint16):
        raise InputError(
            f"Taskonomy's depth files must have one channel of 16 bits, but '{path}' "
            f"has {_kind(file)}; fetch the original again."
        )
    labels = domain.stored == np.uint8
    if labels and (file.ndim != 2 or file.max() > len(layout.CLASSES)):
        found = _kind(file) if file.ndim != 2 else f"the label {file.max()}"
        raise InputError(
            f"Taskonomy's labels must be one channel with 1 to {len(layout.CLASSES)}, "
            f"or 0 for none, but '{path}' has {found}; fetch the original again."
        )
    return file


def _read(path: str, *, colour: bool) -> np.ndarray:
    try:
        file = png.decode(pathlib.Path(path).read_bytes(), path)
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be read: {error.strerror or error}; put it back."
        ) from error
    if colour and file.ndim != 3:
        raise InputError(
            f"A file of this domain must have three colours, but '{path}' has "
            f"{_kind(file)}; fetch the original again."
        )
    return file


def _kind(file: np.ndarray) -> str:
    channels = "one channel" if file.ndim == 2 else "colours"
    return f"{channels} of {8 * file.itemsize} bits"
