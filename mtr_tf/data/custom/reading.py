# SPDX-License-Identifier: Apache-2.0
"""A user's own data: `--dataset=package.module:function`.

The function returns a dict with one entry per split and, if needed, facts about the
data set. docs/own_data.md is the manual; `examples` says what an example must be.

A split that has a length and can be indexed is read lazily: its examples are read and
checked when a batch needs them (the first one at once), by one thread or by as many as
"readers" says. Any other split is read into memory at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import mtr_tf
from mtr_tf.data.custom import columns as columns_lib
from mtr_tf.data.custom import facts as facts_lib
from mtr_tf.data.custom.readers import Readers
from mtr_tf.data.source import Columns
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.errors import check_keys
from mtr_tf.errors import did_you_mean

SPLITS = ("train", "validation", "test")
# Beginnings of the paths of files that are not the user's code.
_LIBRARY_PATHS = ("<", os.path.dirname(mtr_tf.__file__), os.path.dirname(os.__file__))


def open_source(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
) -> Source:
    """Calls the user's function and opens what it returns.

    Args:
      name: "package.module:function"; modules of the current directory are found.
      image_size: None, or the size of the examples: nothing is resized here.
      data_dir: passed to the function, which must then take `data_dir`.
      tasks: the tasks whose targets are kept; None for all that the examples have.

    Raises:
      InputError: there is no such function, it fails, or what it returns does not have
        the form described in docs/own_data.md.
    """
    return open_given(name, _call_function(name, data_dir), image_size, tasks)


def open_given(
    name: str,
    data: Any,
    image_size: tuple[int, int] | None = None,
    tasks: Sequence[str] | None = None,
) -> Source:
    """Opens the data that a user's function returned; messages call them `name`.

    Raises:
      InputError: the data are not as docs/own_data.md says.
    """
    splits, facts = _splits_and_facts(name, data)
    facts_lib.check(facts)
    rules = facts_lib.rules(facts)
    facts_lib.check_groups(facts, splits)
    readers = Readers(facts.get("readers", 1))
    all_columns = {}
    for split, examples in splits.items():
        columns = columns_lib.open_split(split, examples, rules, readers)
        is_cut = isinstance(examples, columns_lib.First) and examples.is_cut
        groups = facts_lib.groups(facts, split, len(columns), is_cut)
        all_columns[split] = dataclasses.replace(columns, groups=groups)
    first = next(iter(all_columns.values()))
    all_columns = {
        split: columns_lib.in_order_of(first, columns)
        for split, columns in all_columns.items()
    }
    columns_lib.check_alike(all_columns)
    size = first.images.shape[1:3]
    if image_size and tuple(image_size) != tuple(size):
        raise InputError(
            f"{name} has images of {size[0]}x{size[1]}, but --image_size or the model "
            f"needs {image_size[0]}x{image_size[1]}; resize images, targets and masks "
            "in the function."
        )
    info = facts_lib.dataset_info(name, facts, all_columns, rules)
    return Source(
        info,
        lambda split: only(all_columns[split], tasks),
        declared=tuple(rules.tasks[name] for name in rules.declared),
        unknown={
            split: columns_lib.unknown(columns)
            for split, columns in all_columns.items()
        },
    )


def only(columns: Columns, tasks: Sequence[str] | None) -> Columns:
    """The columns with the targets and masks of some tasks only."""
    if tasks is None:
        return columns
    targets, masks = (
        {task: values[task] for task in tasks if task in values}
        for values in (columns.targets, columns.masks)
    )
    return dataclasses.replace(columns, targets=targets, masks=masks)


def _call_function(name: str, data_dir: str | None) -> Any:
    """Calls the user's function and returns its result."""
    function = own_function(name)
    arguments = {}
    if data_dir:
        if "data_dir" not in inspect.signature(function).parameters:
            raise InputError(
                f"--data_dir is passed to {name} as the argument data_dir, but it "
                "does not take one; add the argument to the function, or leave out "
                "the flag."
            )
        arguments["data_dir"] = data_dir
    return called(name, function, "a dict", **arguments)


def called(name: str, function: Callable[..., Any], what: str, **arguments: Any) -> Any:
    """Calls a user's function and returns its result; errors say it must give `what`.

    Raises:
      InputError: the function fails.
    """
    try:
        return function(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} must give {what}, but raised {_describe(error)}"
        ) from error


def own_function(name: str, flag: str = "--dataset") -> Callable[..., Any]:
    """The function of package.module:function, as a flag names it.

    Modules of the current directory are found.

    Raises:
      InputError: there is no such function, or its module cannot be imported.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise InputError(
            f"{flag} must have the form package.module:function, such as "
            f"my_data:examples; got {name!r}."
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # As with `python -m`.
    importlib.invalidate_caches()  # The file may be new.
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_error(name, flag, error) from error
        raise InputError(
            f"There is no module {error.name!r} for {flag}={name}; run the command in "
            f"its directory (this is {os.getcwd()!r}), or install it."
        ) from error
    except Exception as error:
        raise _import_error(name, flag, error) from error
    function = getattr(module, function_name, None)
    if callable(function):
        return function
    hint = did_you_mean(function_name, dir(module))
    actual = "none" if function is None else f"a {type(function).__name__} of that name"
    raise InputError(
        f"The module {module_name!r} must have a function {function_name!r}, but has "
        f"{actual}.{hint}"
    )


def _import_error(name: str, flag: str, error: Exception) -> InputError:
    return InputError(
        f"The module of {flag}={name} cannot be imported: {_describe(error)}"
    )


def _describe(error: Exception) -> str:
    """The error in one line, and where in the user's code it came from."""
    text = " ".join(str(error).split()) or "no message"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_LIBRARY_PATHS)
        and "site-packages" not in frame.filename
    ]
    where = ""
    if frames:
        where = f" ({os.path.relpath(frames[-1].filename)}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {text}{where}."


def _splits_and_facts(name: str, data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The splits, and the facts, of the dict that the function returned."""
    keys = (*SPLITS, *facts_lib.KEYS)
    if not isinstance(data, Mapping):
        raise InputError(
            f"{name} must return a dict such as {{'train': ..., 'validation': ...}}, "
            f"but returned a {type(data).__name__}."
        )
    check_keys(data, keys, f"{name} may return", "but returned")
    splits = {split: data[split] for split in SPLITS if split in data}
    if not splits:
        raise InputError(
            f"{name} must return at least one split of {', '.join(SPLITS)}, but "
            f"returned {', '.join(data) or 'an empty dict'}."
        )
    return splits, {key: data[key] for key in facts_lib.KEYS if key in data}
