# SPDX-License-Identifier: Apache-2.0
"""Weights of PyTorch's files put into our models; `reading` reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping

import keras
import numpy as np

from mtr_tf.errors import InputError
from mtr_tf.models.torch_weights import names as weight_names
from mtr_tf.models.torch_weights.names import CLASSIFIER
from mtr_tf.models.torch_weights.names import ENCODER
from mtr_tf.models.torch_weights.names import SHARED
from mtr_tf.models.torch_weights.names import Name

_MAX_NAMES = 6  # Names in a message.


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds, by common names.

    Attributes:
      tensors: {common name: (name in the file, array)}.
      unknown: Names in the file that mean nothing in this family of models, or
        repeat a common name.
    """

    tensors: Mapping[Name, tuple[str, np.ndarray]]
    unknown: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a head; classification networks have none."""
        return tuple(n.part for n in self.tensors if n.weight == "head.weight")

    @property
    def one_decoder(self) -> bool:
        """Whether all tasks' decoders hold the same values, their heads apart."""
        return all(
            np.array_equal(tensors[0][1], array)
            for tensors in self.decoders().values()
            for _, array in tensors
        )

    def decoders(self) -> dict[str, list[tuple[str, np.ndarray]]]:
        """Returns the tensors of all decoders by weight, without those of heads."""
        tensors: dict[str, list] = {}
        for name, tensor in self.tensors.items():
            if name.part not in (ENCODER, CLASSIFIER) and not _is_per_task(name):
                tensors.setdefault(name.weight, []).append(tensor)
        return tensors

    def num_classes(self) -> int | None:
        """Channels of the head of `seg`; None if there is none."""
        return self._channels(Name("seg", "head.weight"))

    def width(self) -> int | None:
        """Channels of the first layer; None if there is none."""
        names = (Name(ENCODER, n) for n in ("layer0.0.weight", "conv1.weight"))
        return next(filter(None, map(self._channels, names)), None)

    def _channels(self, name: Name) -> int | None:
        tensor = self.tensors.get(name)
        return len(tensor[1]) if tensor else None


def contents(arrays: Mapping[str, np.ndarray], model: str) -> Contents:
    """Sorts what `reading.read` returns; norms' counts of batches are dropped.

    Raises:
      InputError: No array has a name of this family of models.
    """
    tensors, unknown = {}, []
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        common_name = weight_names.of_tensor(name, model)
        if common_name is None or common_name in tensors:
            unknown.append(name)
        else:
            tensors[common_name] = (name, array)
    if not tensors:
        raise InputError(
            f"the file must hold weights of --model={model}, but none of its names is "
            f"known there: {_listing(sorted(arrays))}. Check --torch and --model."
        )
    return Contents(tensors, tuple(unknown))


def assign(
    model: keras.Model, weights: Contents, unused_class: bool = False
) -> list[str]:
    """Puts a file's weights into a model.

    All variables must be in the file, and everything in the file in the model, except
    for what the returned sentences name. A file of a classification network has no
    heads (and ResNet's no decoders): these keep their initial values.

    Args:
      model: A model of the same family, from `models.build`.
      weights: What `contents` returns.
      unused_class: Whether the last channel of `seg` in the file is left out.

    Returns:
      A sentence for each thing that was left out, or left as it was.

    Raises:
      InputError: Something is missing, left over, or has another shape; the model is
        as it was.
    """
    values, used_keys, kept_paths, problems = {}, set(), [], _Problems()
    for variable in model.variables:
        name = weight_names.of_variable(variable.path)
        tensors = _tensors(weights, name, problems)
        if not tensors:
            has_none = not (weights.tasks if _is_per_task(name) else weights.decoders())
            is_optional = name.part != ENCODER and has_none
            names = kept_paths if is_optional else problems.missing
            names.append(
                variable.path if is_optional else f"{name.part}: {name.weight}"
            )
            continue
        used_keys.update(key for key, _ in tensors)
        key, array = tensors[0]
        if unused_class and name.part == "seg" and _is_per_task(name):
            array = array[:-1]
        values[variable.path] = _keras_array(key, array, variable.shape, problems)
    sentences = _omissions(weights, used_keys, tuple(model.output), problems)
    problems.raise_if_any(model.name, weights)
    for variable in model.variables:
        if variable.path in values:
            variable.assign(values[variable.path])
    if kept_paths:
        layers = _listing(sorted({path.split("/")[0] for path in kept_paths}))
        sentences.append(
            f"{layers}: not in the file, so they keep their initial values."
        )
    return sentences


def _keras_array(
    key: str, array: np.ndarray, shape: Iterable[int], problems: _Problems
) -> np.ndarray:
    """Returns the array with its axes in Keras's order."""
    if array.ndim == 4:  # [out, in, h, w], or [in, out, h, w] where transposed.
        array = array.transpose(2, 3, 1, 0)
    if array.shape != tuple(shape):
        problems.shapes.append(
            f"{key} is {_torch_shape(array.shape)} and must be {_torch_shape(shape)}"
        )
    return array


def _tensors(weights: Contents, name: Name, problems: _Problems) -> list:
    """Returns [(name, array)] of the file for a variable; the first one is taken."""
    if name.part != SHARED:
        tensor = weights.tensors.get(name)
        if tensor is None and name.part != ENCODER and not _is_per_task(name):
            tensor = weights.tensors.get(Name(SHARED, name.weight))
        return [tensor] if tensor else []
    tensors = weights.decoders().get(name.weight, [])
    if any(not np.array_equal(tensors[0][1], array) for _, array in tensors):
        problems.differing.extend(key for key, _ in tensors)
    return tensors


def _is_per_task(name: Name) -> bool:
    """Whether each task has its own such weight even if decoders are shared."""
    return name.weight.startswith(("head.", "up."))


def _omissions(
    weights: Contents,
    used_keys: Iterable[str],
    tasks: tuple[str, ...],
    problems: _Problems,
) -> list[str]:
    """Returns sentences on weights left out; adds other unused ones to `problems`."""
    other_tasks, classifier = {}, []
    for name, (key, array) in weights.tensors.items():
        if key in used_keys:
            continue
        if name.part == CLASSIFIER:
            classifier.append(key)
        elif name.part not in (ENCODER, SHARED, *tasks):
            other_tasks[name.part] = None
        elif name.weight != "up.weight":
            problems.unexpected.append(key)
        elif not _is_bilinear(array):
            problems.unexpected.append(f"{key} (not the fixed bilinear kernel)")
    problems.unexpected.extend(weights.unknown)
    sentences = []
    if classifier:
        sentences.append(
            f"{_listing(classifier)}: left out, because they classify whole pictures."
        )
    if other_tasks:
        sentences.append(
            f"{_listing(list(other_tasks))}: weights that only they use are left out."
        )
    return sentences


def _is_bilinear(kernel: np.ndarray) -> bool:
    """Whether it is the released, frozen up-sampler by 8, which our models compute."""
    triangle = 1 - np.abs((np.arange(16) - 7.5) / 8)
    return kernel.shape[1:] == (1, 16, 16) and np.allclose(
        kernel, np.outer(triangle, triangle), atol=1e-6
    )


@dataclasses.dataclass
class _Problems:
    """Why a file does not fit, by kind."""

    missing: list[str] = dataclasses.field(default_factory=list)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    shapes: list[str] = dataclasses.field(default_factory=list)
    differing: list[str] = dataclasses.field(default_factory=list)

    def raise_if_any(self, model: str, weights: Contents) -> None:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.shapes,
            "to be shared, but different (give --decoders=separate)": self.differing,
        }
        parts = [
            f"{len(names)} {kind}: {_listing(names)}"
            for kind, names in kinds.items()
            if names
        ]
        if parts:
            raise InputError(
                f"the file does not fit --model={model}; it has heads for "
                f"{', '.join(weights.tasks) or 'no task'}. Weights "
                f"{'; '.join(parts)}. Check --model, --tasks and --num_classes."
            )


def _torch_shape(shape: Iterable[int]) -> list[int]:
    """Returns the shape of an array or variable in PyTorch's order."""
    shape = list(shape)
    return [shape[3], shape[2], *shape[:2]] if len(shape) == 4 else shape


def _listing(names: list[str]) -> str:
    excess = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {excess} more" if excess > 0 else "")
