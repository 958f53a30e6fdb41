# SPDX-License-Identifier: Apache-2.0
"""Checks one example of a user's own, and gives it the types that `Columns` has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtr_tf import tasks as task_table
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean

_KEYS = ("image", "targets", "masks", "name")
_ROUNDING = 1e-5  # How far floats may be outside [0, 1].


@dataclasses.dataclass(frozen=True)
class Labels:
    """What labels of classes may be.

    Attributes:
      classes: how many classes there are; None if that is not known.
      ignored: labels that mean that there is none.
    """

    classes: int | None = None
    ignored: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Example:
    """A checked example.

    Attributes:
      image: uint8 [H, W, 3].
      targets: by task int32 [H, W] or float32 [H, W, C], 0 where not known.
      masks: by task bool [H, W].
      name: "" where it has none.
    """

    image: np.ndarray
    targets: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    name: str


def check(raw: Any, where: str, labels: Labels) -> Example:
    """Checks an example as a user's function gives it.

    Args:
      raw: {"image", "targets", "masks", "name"}, the last two if there are any, or
        (image, targets) or (image, targets, masks).
      where: what messages call it, such as "example 3 of train".
      labels: what those of `seg` may be; without a number of classes they only must
        not be negative.

    Raises:
      InputError: anything is not as `docs/own_data.md` says.
    """
    image, targets, masks, name = _parts(raw, where)
    image = _image(image, where)
    targets, masks = (
        _by_task(targets, "targets", where),
        _by_task(masks, "masks", where),
    )
    for task in masks:
        if task not in targets:
            raise InputError(
                f"A mask says where a target is known, but {where} has a mask for "
                f"{task} and no target; add the target or drop the mask."
            )
    found, known = {}, {}
    for task, target in targets.items():
        known[task] = _mask(masks.get(task), task, image.shape[:2], where)
        discrete = task_table.TASKS[task].discrete
        if discrete:
            known[task] &= _is_label(target, labels.ignored, known[task].shape)
        read = _labels if discrete else _numbers
        found[task] = read(task, target, known[task], where)
    if labels.classes is not None:
        _check_classes(found, known, labels.classes, where)
    return Example(image, found, known, name)


def _parts(raw: Any, where: str) -> tuple[Any, Any, Any, str]:
    """Image, targets, masks and name."""
    if isinstance(raw, tuple | list) and len(raw) in (2, 3):
        return raw[0], raw[1], raw[2] if len(raw) == 3 else {}, ""
    if not isinstance(raw, Mapping):
        raise InputError(
            f'An example must be {{"image": ..., "targets": {{task: ...}}}} or (image, '
            f"targets), but {where} is {_kind(raw)}."
        )
    for key in raw:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS)
            raise InputError(
                f"An example has the keys {', '.join(_KEYS)}, but {where} has "
                f"{key!r}.{hint}"
            )
    for key in ("image", "targets"):
        if key not in raw:
            raise InputError(f"An example must have {key!r}, but {where} has none.")
    name = raw.get("name", "")
    name = name.decode() if isinstance(name, bytes) else str(name)
    return raw["image"], raw["targets"], raw.get("masks") or {}, name


def _by_task(values: Any, what: str, where: str) -> dict[str, np.ndarray]:
    """Arrays by the tasks' own names."""
    if not isinstance(values, Mapping):
        raise InputError(
            f'The {what} must be a dict by task, such as {{"seg": ...}}, but those of '
            f"{where} are {_kind(values)}."
        )
    if not values:
        return {}
    try:
        names = task_table.resolve(list(values))
    except InputError as error:
        raise InputError(f"In the {what} of {where}: {error}") from error
    return dict(zip(names, map(_array, values.values()), strict=True))


def _array(value: Any) -> np.ndarray:
    return np.asarray(value)


def _image(value: Any, where: str) -> np.ndarray:
    image = _array(value)
    if image.ndim == 4:
        raise InputError(
            f"Examples must come one by one, not in batches, but the image of {where} "
            f"has shape {image.shape}; take the batches apart (tf.data: .unbatch())."
        )
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            "An image must have shape [height, width, 3], but that of "
            f"{where} has {list(image.shape)}."
        )
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f":
        raise InputError(
            f"An image must be uint8, or float in [0, 1], but that of {where} is "
            f"{image.dtype}; convert it."
        )
    low, high = image.min(), image.max()  # NaN if there is one.
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"An image of floats must lie in [0, 1], but that of {where} goes from "
            f"{low:g} to {high:g}; rescale it (divide by 255?), or give uint8."
        )
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _mask(
    value: np.ndarray | None, task: str, size: tuple[int, int], where: str
) -> np.ndarray:
    if value is None:
        return np.ones(size, bool)
    if value.shape == (*size, 1):
        value = value[..., 0]
    if value.shape != size or value.dtype.kind not in "buif" or (value != value).any():
        raise InputError(
            f"A mask must have its image's height and width, {list(size)}, and zeros "
            f"where nothing is known, but that for {task} of {where} has shape "
            f"{list(value.shape)} and type {value.dtype}"
            f"{', with NaN in it' if value.shape == size else ''}."
        )
    return value != 0


def _is_label(
    value: np.ndarray, ignored: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """Where a target is not one of the ignored labels, or is of another shape."""
    if value.shape not in (shape, (*shape, 1)):
        return np.ones(shape, bool)  # Which is said by `_labels`.
    return ~np.isin(value.reshape(shape), ignored)


def _labels(task: str, value: np.ndarray, known: np.ndarray, where: str) -> np.ndarray:
    if value.shape == (*known.shape, 1):
        value = value[..., 0]
    if value.shape != known.shape or value.dtype.kind not in "ui":
        raise InputError(
            f"The target of {task} must be whole numbers of shape "
            f"{list(known.shape)}, the class of each pixel, but that of {where} is "
            f"{value.dtype} of shape {list(value.shape)}; convert it (one-hot: argmax)."
        )
    if (value[known] < 0).any():
        raise InputError(
            f"The labels of {task} must not be negative, but {where} has "
            f"{value[known].min()}; where there is no label, say so "
            f'("ignore_label": {value[known].min()}) or put a zero into '
            f'"masks": {{"{task}": ...}}.'
        )
    return np.where(known, value, 0).astype(np.int32)


def _numbers(task: str, value: np.ndarray, known: np.ndarray, where: str) -> np.ndarray:
    channels = task_table.TASKS[task].channels
    if value.shape == known.shape and channels == 1:
        value = value[..., np.newaxis]
    shape = (*known.shape, channels)
    if value.shape != shape or value.dtype.kind not in "uif":
        raise InputError(
            f"The target of {task} must be numbers of shape {list(shape)}, but that "
            f"of {where} is {value.dtype} of shape {list(value.shape)}."
        )
    value = value.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(value).all(-1) & known)
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"The target of {task} must be finite where it is known, but {where} has "
            f"{value[row, column]} at row {row}, column {column}; put zeros there into "
            f'"masks": {{"{task}": ...}}.'
        )
    return np.where(known[..., np.newaxis], value, np.float32(0))


def _check_classes(
    targets: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    num_classes: int,
    where: str,
) -> None:
    for task, target in targets.items():
        if task_table.TASKS[task].discrete and target.max(initial=0) >= num_classes:
            raise InputError(
                f"The labels of {task} must be below the number of classes, "
                f"{num_classes}, but {where} has {target.max()}; name more classes in "
                '"classes" or, where this means no label, say so '
                f'("ignore_label": {target.max()}) or put a zero into '
                f'"masks": {{"{task}": ...}}.'
            )


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {list(shape)}"
    length = f" and length {len(value)}" if isinstance(value, tuple | list) else ""
    return f"of type {type(value).__name__}{length}"
