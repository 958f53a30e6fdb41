# SPDX-License-Identifier: Apache-2.0
"""Settings of commands as arguments of functions, with the same names and checks."""

from __future__ import annotations

import dataclasses
import inspect
import os
import textwrap
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import TypeVar

from mtr_tf.config import settings as settings_lib
from mtr_tf.config.settings import Settings
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean

S = TypeVar("S", bound=Settings)
F = TypeVar("F", bound=Callable[..., Any])
_PLACE = "**settings:"  # Begins the line of a docstring that the settings replace.


def record(kind: type[S], values: Mapping[str, Any]) -> S:
    """Returns the settings of a command from Python values.

    A list may also be a single value, or a string as for the flag (`"seg,depth"`), or a
    dict if the flag has pairs (`{"seg": 1}` for `seg:1`). A path may be a
    `pathlib.Path`, and a size (`image_size`, `crop`) a pair of numbers.

    Raises:
      InputError: A setting does not exist, or cannot have that value.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            hint = did_you_mean(name, fields)
            suggestion = hint or f" The settings are {', '.join(fields)}."
            raise InputError(f"There is no setting {name!r}.{suggestion}")
    return kind.from_dict(
        {name: _value(fields[name], value) for name, value in values.items()}
    )


def _value(field: dataclasses.Field, value: Any) -> Any:
    """Returns a value in the form that a record takes for a field."""
    if hasattr(value, "item") and not getattr(value, "ndim", 0):
        value = value.item()  # A scalar of NumPy.
    if isinstance(field.default, tuple):
        kinds = {"float": float, "int": _to_int}
        convert = next(
            (kinds[type_name] for type_name in kinds if type_name in str(field.type)),
            str,
        )
        try:
            return tuple(map(convert, several(value)))
        except (ValueError, TypeError, OverflowError) as error:
            prefix = "whole " if convert is _to_int else ""
            raise InputError(
                f"{field.name} must be a {prefix}number or a list of {prefix}numbers; "
                f"got {value!r}."
            ) from error
    if field.name in ("image_size", "crop") and not isinstance(value, str):
        return "x".join(map(str, several(value)))
    if field.metadata["path"] and isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _to_int(value: Any) -> int:
    """Returns an int of the same value; raises as int does, also for fractions."""
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(value)
    return number


def several(value: Any) -> Iterable[Any]:
    """Returns the parts of a value for a flag that takes a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        return [f"{key}:{number}" for key, number in value.items()]
    return value if isinstance(value, Iterable) else [value]


def check_levels(eps: float | Iterable[float]) -> None:
    """Raises `InputError` for linf radii, in levels, that seem to be of [0, 1]."""
    settings_lib.check_levels("eps", max(map(float, several(eps)), default=0.0))


def shown(
    *kinds: type[Settings],
    without: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Lets help() and completion show the settings that a function takes by name.

    They replace `**settings` in the signature and in the docstring.

    Args:
      *kinds: The records that have them.
      without: Settings that the function does not take, or describes itself.
      defaults: The function's own defaults, if they differ from the command's.
    """
    new_defaults = defaults or {}
    fields = [field for kind in kinds for field in dataclasses.fields(kind)]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        parameters = [
            p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD
        ]
        names = {*without, *(p.name for p in parameters)}
        extra_fields = [field for field in fields if field.name not in names]
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=new_defaults.get(field.name, field.default),
            )
            for field in extra_fields
        ]
        # pyrefly: ignore[missing-attribute]
        function.__signature__ = signature.replace(parameters=parameters)
        lines = []
        for line in (function.__doc__ or "").splitlines():
            # The indent is as deep as Python left it.
            indent, marker, _ = line.partition(_PLACE)
            if marker:
                lines += [
                    _setting_lines(field, new_defaults, indent)
                    for field in extra_fields
                ]
            else:
                lines.append(line)
        function.__doc__ = "\n".join(lines)
        return function

    return decorate


def _setting_lines(
    field: dataclasses.Field, defaults: Mapping[str, Any], indent: str
) -> str:
    """Returns a setting's lines in a docstring."""
    text = f"{field.name}: {field.metadata['help']}"
    if field.name in defaults:
        text += f" The default here is {defaults[field.name]!r}."
    return textwrap.fill(
        text, 88, initial_indent=indent, subsequent_indent=indent + "  "
    )
