# SPDX-License-Identifier: Apache-2.0
"""Checks a user's own example, and converts it to the types of `Columns`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtr_tf.data import picture
from mtr_tf.errors import InputError
from mtr_tf.errors import check_keys
from mtr_tf.errors import first_line
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import resolve
from mtr_tf.tasks.task import MAP

_MAX_WHOLE = 2**24  # Float32 holds all whole numbers up to this one.
_KEYS = ("image", "targets", "masks", "name", "inputs")
_MOST_LABELS = 2**31  # That int32 holds.
_ROUNDING = 1e-5  # How far floats may be outside [0, 1].
_UNIT_ROUNDING = 1e-3  # How far from 1 a vector's length counts as 1.
_BYTE_CHANNELS = (1, 3)  # Numbers of channels of float images that are kept as bytes.
_MAX_CHANNELS = 4  # Pictures are not expected to have more channels than this.


@dataclasses.dataclass(frozen=True)
class Rules:
    """What targets may be.

    Attributes:
      tasks: all tasks that may have targets; those of classes have channels, and those
        whose places are known have places.
      ignored: by task, the labels that mean "no label".
      declared: names of the tasks that the user declares.
    """

    tasks: TaskSet
    ignored: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    declared: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Example:
    """A checked example.

    Attributes:
      image: [H, W, C], uint8, or float32 in [0, 1].
      targets: by task int32 [*places] or float32 [*places, channels], 0 where not
        known.
      masks: by task bool [*places].
      name: "" if it has none.
      inputs: by name float32 arrays, what a model takes beside the image.
    """

    image: np.ndarray
    targets: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    name: str
    inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def check(raw: Any, where: str, rules: Rules, first: Example | None = None) -> Example:
    """Checks an example as a user's function returns it.

    Args:
      raw: {"image", "targets", "masks", "name", "inputs"}, where the last three are
        optional, or (image, targets) or (image, targets, masks).
      where: what messages call it, such as "example 3 of train".
      rules: what its targets may be.
      first: the first example, whose sizes and tasks this one must have; None if this
        is the first one.

    Raises:
      InputError: the example is not as `docs/own_data.md` says.
    """
    parts = _parts(raw, where)
    image = _image(parts["image"], where)
    inputs = _inputs(parts["inputs"], where, first)
    raw_targets = _arrays_by_task(parts["targets"], "targets", where, rules.tasks)
    raw_masks = _arrays_by_task(parts["masks"], "masks", where, rules.tasks)
    if first is not None:
        _check_alike(image, raw_targets, where, first)
    for task in raw_masks:
        if task not in raw_targets:
            raise InputError(
                f"A mask says where a target is known, but {where} has a mask for "
                f"{task} and no target; add the target or drop the mask."
            )
    targets, masks = {}, {}
    for task, target in raw_targets.items():
        record = rules.tasks[task]
        if task == "autoencoder" and task not in rules.declared:
            record = record.bound(channels=image.shape[2])
        places = (
            _places(record, target, image.shape[:2], where)
            if first is None
            else first.masks[task].shape
        )
        masks[task] = _mask(raw_masks.get(task), record, places, where)
        if not record.discrete:
            targets[task] = _numbers(record, target, masks[task], where)
            continue
        if target.shape == (*places, 1):
            target = target[..., 0]
        if target.shape == places:  # `_labels` refuses other shapes.
            is_label = ~np.isin(target, rules.ignored.get(task, ()))
            masks[task] = masks[task] & is_label
        targets[task] = _labels(record, target, masks[task], where)
    return Example(image, targets, masks, parts["name"], inputs)


def _check_alike(
    image: np.ndarray, targets: Mapping[str, Any], where: str, first: Example
) -> None:
    """Raises InputError unless an example has the size and tasks of the first one."""
    if image.shape != first.image.shape:
        raise InputError(
            f"All images must have the same size, but {where} is {size(image.shape)} "
            f"and the first one {size(first.image.shape)}; resize or crop them."
        )
    if image.dtype != first.image.dtype:
        raise InputError(
            f"All images must have the same type, but {where} is {image.dtype} and "
            f"the first one {first.image.dtype}; convert them."
        )
    if targets.keys() != first.targets.keys():
        raise InputError(
            f"All examples must have the same tasks, but {where} has "
            f"{listed(targets)} and the first one {listed(first.targets)}; if a target "
            "is not known, give zeros and a mask of zeros."
        )


def size(shape: Iterable[int]) -> str:
    """The size of an image [H, W, C] in words, with channels unless there are three."""
    height, width, channels = shape
    return f"{height}x{width}" + (f"x{channels}" if channels != 3 else "")


def listed(tasks: Iterable[str]) -> str:
    """The names of tasks in words."""
    return ", ".join(sorted(tasks)) or "none"


def _parts(raw: Any, where: str) -> dict[str, Any]:
    """The values of an example for each of `_KEYS`."""
    if isinstance(raw, tuple | list) and len(raw) in (2, 3):
        image, targets, *masks = raw
        raw = {"image": image, "targets": targets, "masks": masks[0] if masks else None}
    if not isinstance(raw, Mapping):
        raise InputError(
            f'An example must be {{"image": ..., "targets": {{task: ...}}}} or (image, '
            f"targets), but {where} is {_kind(raw)}."
        )
    check_keys(raw, _KEYS, "An example has the keys", f"but {where} has")
    if "image" not in raw:
        raise InputError(f"An example must have 'image', but {where} has none.")
    parts = {"targets": {}, "name": "", **raw}
    for key in ("masks", "inputs"):  # They may be None.
        parts[key] = {} if raw.get(key) is None else raw[key]
    name = parts["name"]
    is_bytes = isinstance(name, bytes)
    parts["name"] = name.decode(errors="replace") if is_bytes else str(name)
    return parts


def _arrays_by_task(
    values: Any, what: str, where: str, tasks: TaskSet
) -> dict[str, np.ndarray]:
    """The values as arrays, by the full names of the tasks."""
    if not isinstance(values, Mapping):
        raise InputError(
            f'The {what} must be a dict by task, such as {{"seg": ...}}, but those of '
            f"{where} are {_kind(values)}."
        )
    if not values:
        return {}
    try:
        names = resolve(map(str, values), tasks.values())
    except InputError as error:
        raise InputError(
            f"In the {what} of {where}: {error} If it is your own task, declare it: "
            '"tasks": [Task(...)], next to the splits.'
        ) from error
    return {
        name: _array(value, f"{what[:-1]} of {name}", where)
        for name, value in zip(names, values.values(), strict=True)
    }


def _array(value: Any, what: str, where: str) -> np.ndarray:
    return as_array(value, what, f"that of {where} ")


def as_array(value: Any, what: str, which: str = "") -> np.ndarray:
    """Converts a value to an array; raises `InputError` if it cannot be converted.

    Masked values are refused too, because NumPy would drop the mask.

    Args:
      value: Anything that NumPy converts.
      what: What it is, in words.
      which: Which of several it is, in words, with a space at the end.
    """
    if np.ma.is_masked(value):
        raise InputError(
            f"The {what} must be a plain array, but {which}has masked values; fill "
            'them in, and say where a target is not known by "masks".'
        )
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The {what} must be an array, but {which}cannot be made one "
            f"({first_line(error)}); give rows of equal length."
        ) from error


def _image(value: Any, where: str) -> np.ndarray:
    image = _array(value, "image", where)
    if image.ndim == 4:
        raise InputError(
            f"Examples must come one by one, not in batches, but the image of {where} "
            f"has shape {image.shape}; split the batches (tf.data: .unbatch())."
        )
    if image.ndim == 2:
        image = image[..., np.newaxis]
    if image.ndim != 3 or not image.size:
        raise InputError(
            "An image must have shape [height, width, channels], or [height, width] if "
            f"it is grey, but that of {where} has {list(image.shape)}."
        )
    if image.shape[0] <= _MAX_CHANNELS < image.shape[2]:
        raise InputError(
            "An image must have shape [height, width, channels], but that of "
            f"{where} has {list(image.shape)}, with its channels first; move them "
            "(np.moveaxis(image, 0, -1))."
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
    if image.shape[2] in _BYTE_CHANNELS:
        return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.clip(image, 0, 1).astype(np.float32)


def _inputs(values: Any, where: str, first: Example | None) -> dict[str, np.ndarray]:
    """What a model takes beside the image, by name, all in float32."""
    if not isinstance(values, Mapping) or "image" in values:
        actual = (
            listed(map(str, values)) if isinstance(values, Mapping) else _kind(values)
        )
        raise InputError(
            'The inputs must be a dict by name, such as {"camera": array}, without the '
            f"image; those of {where} are {actual}."
        )
    inputs = {}
    for name, value in values.items():
        value = _array(value, f"input {name}", where)
        is_number = value.dtype.kind in "buif" and value.size > 0
        floats = value.astype(np.float32) if is_number else value
        if not (is_number and np.isfinite(floats).all() and _is_exact(value, floats)):
            raise InputError(
                f"The input {name} must be finite numbers (whole numbers up to "
                f"16777216), but that of {where} is {_kind(value)} of {value.dtype}; "
                "convert it."
            )
        inputs[str(name)] = floats
    if first is not None:
        first_shapes = {name: value.shape for name, value in first.inputs.items()}
        shapes = {name: value.shape for name, value in inputs.items()}
        if first_shapes != shapes:
            raise InputError(
                "All examples must have the same inputs with the same shapes, but "
                f"{where} has {shapes or 'none'} and the first one "
                f"{first_shapes or 'none'}."
            )
    return inputs


def _is_exact(value: np.ndarray, floats: np.ndarray) -> bool:
    """Whether float32 holds all whole numbers of an array."""
    if value.dtype.kind != "f":
        return int(value.min()) >= -_MAX_WHOLE and int(value.max()) <= _MAX_WHOLE
    is_small = np.abs(value) <= _MAX_WHOLE
    return bool((is_small | (floats == value) | (np.rint(value) != value)).all())


def _places(
    task: Task, value: np.ndarray, size: tuple[int, ...], where: str
) -> tuple[int, ...]:
    """The shape of a target's places, as the task says, else as the target shows.

    A wrong shape of a map is reported when the target is read.
    """
    if task.places == MAP:
        return size
    shape = value.shape
    if 0 in shape:
        raise InputError(
            f"The target of {task.name} must have values, but that of {where} has "
            f"shape {list(shape)}."
        )
    if task.discrete:
        places = shape[:-1] if shape in ((1,), (*size, 1)) else shape
    else:
        lacks_channels = task.channels == 1 and shape[-1:] != (1,)
        places = shape if lacks_channels or shape == size else shape[:-1]
    if task.places is not None and len(places) != task.places:
        what = "one class" if task.discrete else f"{task.channels} numbers"
        raise InputError(
            f"The target of {task.name} must be {what} for each place, with "
            f"{task.places} axes of places, but that of {where} has shape "
            f"{list(shape)}."
        )
    if task.discrete and task.places is None and is_one_hot(value, task.channels):
        raise InputError(one_hot(task.name, where, shape))
    return size if len(places) == MAP else places


def one_hot(task: str, where: str, shape: tuple[int, ...]) -> str:
    """The message that refuses one-hot targets of this shape for a task."""
    return (
        f"The target of {task} must be the class, but that of {where} has shape "
        f"{list(shape)} with a one for each class; give its argmax (or, if these are "
        f"{shape[-1]} places, say places={len(shape)} of the task)."
    )


def is_one_hot(value: np.ndarray, classes: int | None) -> bool:
    """Whether the last axis has a one for the class of each place, and zeros else."""
    if classes is None or classes < 2 or value.shape[-1:] != (classes,):
        return False
    return bool(np.isin(value, (0, 1)).all() and (value.sum(axis=-1) == 1).all())


def _mask(
    value: np.ndarray | None, task: Task, places: tuple[int, ...], where: str
) -> np.ndarray:
    if value is None:
        return np.ones(places, bool)
    if value.shape == (*places, 1):
        value = value[..., 0]
    is_valid = value.shape == places and value.dtype.kind in "buif"
    has_nan = is_valid and (value != value).any()
    if has_nan or not is_valid:
        what = "image's height and width" if len(places) == MAP else "target's places"
        raise InputError(
            f"A mask must have its {what}, {list(places)}, and zeros where nothing is "
            f"known, but that for {task.name} of {where} has shape "
            f"{list(value.shape)} and type {value.dtype}"
            f"{', with NaN in it' if has_nan else ''}."
        )
    return value != 0


def _labels(task: Task, value: np.ndarray, mask: np.ndarray, where: str) -> np.ndarray:
    if value.shape != mask.shape or value.dtype.kind not in "ui":
        cure = "convert it (one-hot: argmax)"
        if value.ndim == mask.ndim and value.shape != mask.shape:
            cure = "resize it (nearest neighbour), or see that each task has its own"
            cure += _grid_advice(task, mask)
        raise InputError(
            f"The target of {task.name} must be whole numbers of shape "
            f"{list(mask.shape)}, the class of {_place_name(mask)}, but that of "
            f"{where} is {value.dtype} of shape {list(value.shape)}; {cure}."
        )
    advice = f'put a zero into "masks": {{"{task.name}": ...}}'
    if (value[mask] < 0).any():
        raise InputError(
            f"The labels of {task.name} must not be negative, but {where} has "
            f"{value[mask].min()}; where there is no label, say so "
            f'("ignore_label": {value[mask].min()}) or {advice}.'
        )
    value = np.where(mask, value, 0)  # Not yet int32, which may change it.
    limit = task.channels or _MOST_LABELS
    if value.max(initial=0) >= limit:
        raise InputError(
            f"The labels of {task.name} must be below the number of classes, "
            f"{'' if task.channels else 'at most '}{limit}, but {where} has "
            f'{value.max()}; name more classes in "classes" or, where this means no '
            f'label, say so ("ignore_label": {value.max()}) or {advice}.'
        )
    return value.astype(np.int32)


def _grid_advice(task: Task, mask: np.ndarray) -> str:
    """Advice for targets with two axes of places that are not those of a map."""
    if mask.ndim != MAP or task.places is not None:
        return ""
    return ", or, as two axes are always height and width, flatten another grid to one"


def _place_name(mask: np.ndarray) -> str:
    return {0: "the image", MAP: "each pixel"}.get(mask.ndim, "each place")


def _numbers(task: Task, value: np.ndarray, mask: np.ndarray, where: str) -> np.ndarray:
    if value.shape == mask.shape and task.channels == 1:
        value = value[..., np.newaxis]
    shape = (*mask.shape, task.channels)
    what = "uint8 or floats" if task.kind == "image" else "numbers"
    kinds = {"labels": "buif", "image": "f"}.get(task.kind, "uif")
    is_valid = value.dtype.kind in kinds or value.dtype == np.uint8
    if value.shape != shape or not is_valid:
        size_differs = value.ndim in (MAP, MAP + 1) and value.shape[:MAP] != mask.shape
        advice = _grid_advice(task, mask) if size_differs else ""
        raise InputError(
            f"The target of {task.name} must be {what} of shape {list(shape)}, but "
            f"that of {where} is {value.dtype} of shape {list(value.shape)}"
            f"{advice and f'; resize it{advice}'}."
        )
    if task.kind == "directions" and value.dtype.kind == "u" and mask.any():
        raise InputError(
            f"The target of {task.name} must be vectors with a sign, but that of "
            f"{where} is {value.dtype}, as in a picture of them; decode it (bytes v as "
            "2 * v / 255 - 1)."
        )
    if task.kind == "image":
        value = picture.as_floats(value)
    value = value.astype(np.float32, copy=False)
    bad_places = np.argwhere(~np.isfinite(value).all(-1) & mask)
    if len(bad_places):
        place = tuple(bad_places[0])
        position = f" at {', '.join(map(str, place))}" if place else ""
        if len(place) == MAP:
            position = f" at row {place[0]}, column {place[1]}"
        text = " ".join(str(value[place]).split())  # NumPy may write several lines.
        raise InputError(
            f"The target of {task.name} must be finite where it is known, but {where} "
            f'has {text}{position}; put zeros there into "masks": '
            f'{{"{task.name}": ...}}.'
        )
    value = np.where(mask[..., np.newaxis], value, np.float32(0))
    if task.kind == "directions":
        value = _normalize(value)
    if task.kind == "labels" and (value.min() < 0 or value.max() > 1):
        raise InputError(
            f"The target of {task.name} must be 1 or 0 for each of its "
            f"{task.channels} labels, present or not, but that of {where} goes from "
            f"{value.min():g} to {value.max():g}."
        )
    return value


def _normalize(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., channels] over their lengths, float32; zero and unit ones stay."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    needs_scaling = (lengths > 0) & (np.abs(lengths - 1) > _UNIT_ROUNDING)
    return (vectors / np.where(needs_scaling, lengths, 1)).astype(np.float32)


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {list(shape)}"
    length = f" and length {len(value)}" if isinstance(value, tuple | list) else ""
    return f"of type {type(value).__name__}{length}"
