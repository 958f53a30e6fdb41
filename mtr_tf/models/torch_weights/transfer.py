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

_AT_MOST = 6  # Names in a message.


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds, by names in common.

    Attributes:
      tensors: The array and its name in the file.
      unknown: Names in the file that mean nothing in this family of models, or the
        same as another.
    """

    tensors: Mapping[Name, tuple[str, np.ndarray]]
    unknown: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a head; none: a file of a classification network."""
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
        """By weight, what each of the decoders has for it, heads apart."""
        found: dict[str, list] = {}
        for name, tensor in self.tensors.items():
            if name.part not in (ENCODER, CLASSIFIER) and not _is_own(name):
                found.setdefault(name.weight, []).append(tensor)
        return found

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
      InputError: Nothing in it has a name of this family of models.
    """
    tensors, unknown = {}, []
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        common = weight_names.of_tensor(name, model)
        if common is None or common in tensors:
            unknown.append(name)
        else:
            tensors[common] = (name, array)
    if not tensors:
        raise InputError(
            f"the file must hold weights of --model={model}, but none of its names is "
            f"known there: {_some(sorted(arrays))}. Check --torch and --model."
        )
    return Contents(tensors, tuple(unknown))


def assign(
    model: keras.Model, found: Contents, unused_class: bool = False
) -> list[str]:
    """Puts a file's weights into a model.

    All variables must be in the file, and all of the file in the model, but for what
    the returned sentences name. A file of a classification network has no heads (and
    ResNet's no decoders): these keep their initial values.

    Args:
      model: Of the same family, from `models.build`.
      found: Of `contents`.
      unused_class: Whether the last channel of `seg` in the file is left out.

    Returns:
      What was left out, or left as it was; a sentence each.

    Raises:
      InputError: Something is missing, left over, or has another shape; the model is
        as it was.
    """
    values, used, kept, problems = {}, set(), [], _Problems()
    for variable in model.variables:
        name = weight_names.of_variable(variable.path)
        tensors = _tensors(found, name, problems)
        if not tensors:
            may_lack = not (found.tasks if _is_own(name) else found.decoders())
            lacking = name.part != ENCODER and may_lack
            missing = kept if lacking else problems.missing
            missing.append(variable.path if lacking else f"{name.part}: {name.weight}")
            continue
        used.update(key for key, _ in tensors)
        key, array = tensors[0]
        if unused_class and name.part == "seg" and _is_own(name):
            array = array[:-1]
        values[variable.path] = _fitting(key, array, variable.shape, problems)
    said = _left_out(found, used, tuple(model.output), problems)
    problems.raise_if_any(model.name, found)
    for variable in model.variables:
        if variable.path in values:
            variable.assign(values[variable.path])
    if kept:
        fresh = _some(sorted({path.split("/")[0] for path in kept}))
        said.append(f"{fresh}: not in the file, so they keep their initial values.")
    return said


def _fitting(
    key: str, array: np.ndarray, shape: Iterable[int], problems: _Problems
) -> np.ndarray:
    """The array with its axes in Keras's order."""
    if array.ndim == 4:  # [out, in, h, w], or [in, out, h, w] where transposed.
        array = array.transpose(2, 3, 1, 0)
    if array.shape != tuple(shape):
        problems.shapes.append(
            f"{key} is {_torch_shape(array.shape)} and must be {_torch_shape(shape)}"
        )
    return array


def _tensors(found: Contents, name: Name, problems: _Problems) -> list:
    """What the file has for a variable, the first to be taken: [(name, array)]."""
    if name.part != SHARED:
        tensor = found.tensors.get(name)
        if tensor is None and name.part != ENCODER and not _is_own(name):
            tensor = found.tensors.get(Name(SHARED, name.weight))
        return [tensor] if tensor else []
    tensors = found.decoders().get(name.weight, [])
    if any(not np.array_equal(tensors[0][1], array) for _, array in tensors):
        problems.differing.extend(key for key, _ in tensors)
    return tensors


def _is_own(name: Name) -> bool:
    """Whether each task has this of its own even if decoders are shared."""
    return name.weight.startswith(("head.", "up."))


def _left_out(
    found: Contents, used: Iterable[str], tasks: tuple[str, ...], problems: _Problems
) -> list[str]:
    """Sentences on what the model does not take; the rest becomes problems."""
    others, classifier = {}, []
    for name, (key, array) in found.tensors.items():
        if key in used:
            continue
        if name.part == CLASSIFIER:
            classifier.append(key)
        elif name.part not in (ENCODER, SHARED, *tasks):
            others[name.part] = None
        elif name.weight != "up.weight":
            problems.unexpected.append(key)
        elif not _is_bilinear(array):
            problems.unexpected.append(f"{key} (not the fixed bilinear kernel)")
    problems.unexpected.extend(found.unknown)
    said = []
    if classifier:
        said.append(
            f"{_some(classifier)}: left out, because they classify whole pictures."
        )
    if others:
        said.append(f"{_some(list(others))}: weights that only they use are left out.")
    return said


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

    def raise_if_any(self, model: str, found: Contents) -> None:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.shapes,
            "to be shared, but different (give --decoders=separate)": self.differing,
        }
        said = [
            f"{len(names)} {kind}: {_some(names)}"
            for kind, names in kinds.items()
            if names
        ]
        if said:
            raise InputError(
                f"the file does not fit --model={model}; it has heads for "
                f"{', '.join(found.tasks) or 'no task'}. Weights "
                f"{'; '.join(said)}. Check --model, --tasks and --num_classes."
            )


def _torch_shape(shape: Iterable[int]) -> list[int]:
    """The shape of an array or variable as PyTorch has it."""
    shape = list(shape)
    return [shape[3], shape[2], *shape[:2]] if len(shape) == 4 else shape


def _some(names: list[str]) -> str:
    rest = len(names) - _AT_MOST
    return ", ".join(names[:_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")
