# SPDX-License-Identifier: Apache-2.0
"""Hashes of a user's own code, such as losses and metrics, that results depend on."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtr_tf.tasks.metrics import Metric
from mtr_tf.tasks.table import TASKS
from mtr_tf.tasks.task import KINDS
from mtr_tf.tasks.task import Task

_SIDE = 16  # Height and width of the noise.
_CHANNELS = 3  # Where a task leaves them to the data.
_CONTAINERS = (list, dict, set)  # Their content may come from the last call.
_PLAIN_TYPES = (str, bytes, bool, int, float, complex, types.NoneType)
_LIBRARY_FOLDERS = [
    os.path.join(sysconfig.get_path(name), "")
    for name in ("stdlib", "purelib", "platlib")
]


def digest(task: Task) -> str:
    """A hash of a task's own loss and metrics: of their code and their values on noise.

    Empty if the loss is the kind's and all metrics are from `metrics`. It shows whether
    results are those of the loss and metrics as they are now.
    """
    own_metrics = [metric for metric in task.metrics[:-1] if _is_own(metric)]
    if has_own_loss(task):
        own_metrics.append(task.metrics[-1])
    if not own_metrics:
        return ""
    target, output, mask = _noise(task)
    words = []
    for metric in own_metrics:
        words += [metric.name, metric.better, *_code(metric.statistics, {})]
        if metric.of_given and metric.bounds != (-np.inf, np.inf):
            words += map(str, metric.bounds)
        try:
            rows = metric.statistics(target, output, mask, output.shape[-1])
            numbers = [*np.ravel(rows), metric.over(np.asarray(rows))]
            words += [f"{number:.4g}" for number in numbers]
        except Exception as error:  # Of any kind: the code is not ours.
            words.append(type(error).__name__)
    return _hash(words)


def of(*values: Any) -> str:
    """A hash of the code of a user's own functions or classes, and of plain values."""
    return _hash(_code(values, {}))


def _hash(words: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _is_own(metric: Metric) -> bool:
    """Whether a metric's code, or that of what it is made from, is a user's."""
    return metric.of_given or not metric.statistics.__module__.startswith("mtr_tf.")


def has_own_loss(task: Task) -> bool:
    """Whether its loss is not that of its kind, which the eleven tasks have."""
    return task.loss is not KINDS[task.kind].loss


def is_standard(task: Task) -> bool:
    """Whether its kind and metrics are those of the task of this name in `TASKS`.

    The order of metrics counts, because attacks are judged by the first that measures
    harm. A task with ignored classes is not standard.
    """
    if task.name not in TASKS or task.ignored:
        return False
    standard = TASKS[task.name].bound(places=task.places)

    def facts(candidate: Task) -> tuple[str, list[str]]:
        return candidate.kind, [metric.name for metric in candidate.metrics]

    return facts(task) == facts(standard)


def _code(value: Any, memo: dict[int, Any]) -> Iterator[str]:
    """Yields words for the parts of a value: instructions, constants, references.

    They are the same in every process; of a part that has no such words, only the type
    counts. `memo` maps ids to the values visited so far, and keeps these alive, so that
    no other object gets their ids.
    """
    if isinstance(value, _PLAIN_TYPES):
        yield repr(value)
        return
    if id(value) in memo:
        return
    memo[id(value)] = value
    if isinstance(value, np.ndarray | np.generic | tf.Tensor):
        array = np.asarray(value)
        yield f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
        return
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    for part in _parts(value):
        yield from _code(part, memo)


def _parts(value: Any) -> list[Any]:
    """The parts that a value is made of."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_varnames, value.co_consts]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.FunctionType):
        return _function_parts(value)
    if isinstance(value, type):
        return [value.__qualname__, *_methods(value)]
    return _object_parts(value)


def _function_parts(function: types.FunctionType) -> list[Any]:
    parts: list[Any] = [function.__qualname__]
    for cell in function.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # It is not filled yet.
            continue
    if _is_library_code(function):  # The version says what its code is.
        return [part for part in parts if not isinstance(part, _CONTAINERS)]
    refs = [function.__globals__.get(name) for name in function.__code__.co_names]
    refs = [
        ref for ref in refs if not isinstance(ref, (types.ModuleType, *_CONTAINERS))
    ]
    refs = [ref for ref in refs if not (callable(ref) and _is_library_code(ref))]
    return [*parts, function.__code__, function.__defaults__, *refs]


def _object_parts(value: Any) -> list[Any]:
    """An object's plain attributes and arrays, and the code of a user's own class."""
    fields = sorted(getattr(value, "__dict__", {}).items())
    parts: list[Any] = [
        part
        for name, content in fields
        if isinstance(content, (*_PLAIN_TYPES, np.ndarray)) and not name.startswith("_")
        for part in (name, content)
        if name != "name"  # Keras numbers them.
    ]
    if isinstance(value, keras.losses.Loss | keras.metrics.Metric):
        if not type(value).__name__.endswith("Wrapper"):
            config = value.get_config()
            config.pop("name", None)
            parts.append(config)
        parts += [getattr(value, name, None) for name in ("fn", "_fn", "_fn_kwargs")]
    return [*parts, *_methods(type(value))]


def _methods(kind: type) -> list[Any]:
    """Functions and plain values of a user's classes; only names of a library's."""
    members: list[Any] = []
    for base in kind.__mro__:
        if _is_library_code(base):
            members.append(f"{base.__module__}.{base.__qualname__}")
            continue
        for name, member in sorted(vars(base).items()):
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, property):
                member = member.fget
            is_code = isinstance(member, types.FunctionType)
            if is_code or (
                isinstance(member, _PLAIN_TYPES) and not name.startswith("__")
            ):
                members += [name, member]
    return members


def _is_library_code(code: Any) -> bool:
    """Whether a function or class is one of an installed library's, or ours."""
    module = str(getattr(code, "__module__", "")).split(".")[0]
    file = str(getattr(sys.modules.get(module), "__file__", None) or "")
    in_library = any(file.startswith(folder) for folder in _LIBRARY_FOLDERS)
    return module in ("mtr_tf", "builtins") or in_library


def _noise(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(target, output, mask) of two images of noise, always the same."""
    random = np.random.default_rng(0)
    places = (2, *(_SIDE,) * task.axes)
    channels = task.channels or len(task.classes) or _CHANNELS
    output = random.normal(size=(*places, channels)).astype(np.float32)
    if task.discrete:
        target = random.integers(0, channels, places, np.int32)
    elif task.kind == "labels":
        target = random.integers(0, 2, output.shape).astype(np.float32)
    else:
        target = random.uniform(0.5, 2, output.shape).astype(np.float32)
    mask = (random.random(places) < 0.9).astype(np.float32)
    return target, output, mask
