# SPDX-License-Identifier: Apache-2.0
"""What a user's own losses and metrics compute, as far as results depend on it."""

from __future__ import annotations

import functools
import hashlib
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

_SIDE = 16  # Of places, of noise.
_CHANNELS = 3  # Where a task leaves them to the data.
_CHANGING = (list, dict, set)  # What is in them may be of the last call.
_PLAIN = (str, bytes, bool, int, float, complex, types.NoneType)
_PLACES = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]


def digest(task: Task) -> str:
    """A hash of a task's own loss and metrics: of their code, and what noise gives.

    Empty where the loss is that of its kind, and all metrics are ones of `metrics`. So
    results are not taken for those of a loss that was changed since.
    """
    own = [metric for metric in task.metrics[:-1] if _is_own(metric)]
    if has_own_loss(task):
        own.append(task.metrics[-1])
    if not own:
        return ""
    target, output, mask = _noise(task)
    words = []
    for metric in own:
        words += [metric.name, metric.better, *_code(metric.statistics, {})]
        if metric.of_given and metric.bounds != (-np.inf, np.inf):
            words += map(str, metric.bounds)
        try:
            rows = metric.statistics(target, output, mask, output.shape[-1])
            numbers = [*np.ravel(rows), metric.over(np.asarray(rows))]
            words += [f"{number:.4g}" for number in numbers]
        except Exception as error:  # Of any kind: the code is not ours.
            words.append(type(error).__name__)
    return _hashed(words)


def of(*values: Any) -> str:
    """A hash of the code of a user's own functions or classes, and of plain values."""
    return _hashed(_code(values, {}))


def _hashed(words: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _is_own(metric: Metric) -> bool:
    """Whether a metric's code is a user's, or that of what it is made of."""
    return metric.of_given or not metric.statistics.__module__.startswith("mtr_tf.")


def has_own_loss(task: Task) -> bool:
    """Whether its loss is not that of its kind, as those of the eleven are."""
    return task.loss is not KINDS[task.kind].loss


def is_standard(task: Task) -> bool:
    """Whether it is the one of the eleven of its name, by its kind and its metrics.

    Their order counts: attacks are judged by the first that measures harm. So do
    classes that they leave out.
    """
    if task.name not in TASKS or task.ignored:
        return False
    known = TASKS[task.name].bound(places=task.places)

    def facts(one: Task) -> tuple[str, list[str]]:
        return one.kind, [metric.name for metric in one.metrics]

    return facts(task) == facts(known)


def _code(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """Words for what a function is made of: instructions, constants, what it holds.

    The same in every process; of what they cannot tell, only the type counts. `seen`
    is what was looked at, by its id, and keeps it, or another object had its id.
    """
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, np.ndarray | np.generic | tf.Tensor):
        array = np.asarray(value)
        yield f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
        return
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    for part in _parts(value):
        yield from _code(part, seen)


def _parts(value: Any) -> list[Any]:
    """What a value is made of."""
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
        return _of_function(value)
    if isinstance(value, type):
        return [value.__qualname__, *_methods(value)]
    return _of_object(value)


def _of_function(function: types.FunctionType) -> list[Any]:
    parts: list[Any] = [function.__qualname__]
    for cell in function.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # It is not filled yet.
            continue
    if _is_known(function):  # The version says what its code is.
        return [part for part in parts if not isinstance(part, _CHANGING)]
    held = [function.__globals__.get(name) for name in function.__code__.co_names]
    held = [one for one in held if not isinstance(one, (types.ModuleType, *_CHANGING))]
    held = [one for one in held if not (callable(one) and _is_known(one))]
    return [*parts, function.__code__, function.__defaults__, *held]


def _of_object(value: Any) -> list[Any]:
    """Its plain attributes and arrays, and the code of a class of the user's own."""
    fields = sorted(getattr(value, "__dict__", {}).items())
    parts: list[Any] = [
        part
        for name, one in fields
        if isinstance(one, (*_PLAIN, np.ndarray)) and not name.startswith("_")
        for part in (name, one)
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
    """Functions and plain values of a user's class; names of a library's."""
    found: list[Any] = []
    for each in kind.__mro__:
        if _is_known(each):
            found.append(f"{each.__module__}.{each.__qualname__}")
            continue
        for name, one in sorted(vars(each).items()):
            if isinstance(one, staticmethod | classmethod):
                one = one.__func__
            if isinstance(one, property):
                one = one.fget
            is_code = isinstance(one, types.FunctionType)
            if is_code or (isinstance(one, _PLAIN) and not name.startswith("__")):
                found += [name, one]
    return found


def _is_known(code: Any) -> bool:
    """Whether a function or class is one of an installed library's, or ours."""
    module = str(getattr(code, "__module__", "")).split(".")[0]
    file = str(getattr(sys.modules.get(module), "__file__", None) or "")
    libraries = any(file.startswith(place) for place in _PLACES if place)
    return module in ("mtr_tf", "builtins") or libraries


def _noise(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(target, output, mask) of two images, always the same."""
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
