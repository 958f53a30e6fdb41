# SPDX-License-Identifier: Apache-2.0
"""The settings of all commands: default, help, range, and cross-checks.

The flags are made from these records (`cli.flags.define`), a run keeps them in its
`config.json`, and nothing else in the package holds a default of its own.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import re
import typing
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean

_QUOTED = 80  # Characters of a value in a message.
LONGEST_SIDE = 16384  # Of pictures, in pixels.
LEAST_LEVELS = 0.1  # Of 0-255: nobody would notice smaller changes of a picture.
MOST_EXAMPLES = 10**9
# What another value of a setting changes (see `setting`).
RESULTS, EXTRAS, NOTHING = "results", "extras", "nothing"


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    words: Sequence[str] = (),
    within: tuple[float, float] | None = None,
    path: bool = False,
    address: bool = False,
    changes: str = RESULTS,
) -> Any:
    """A dataclass field with what a flag needs.

    A default of None makes a flag that is true, false or not given. `words` are words
    that a setting for a number takes instead of a number; `within` is the range of its
    numbers, both ends included. `path` says that the setting names files, `address`
    that these may be at an address, and `changes` what another value leads to: other
    RESULTS, other EXTRAS beside the same results (saved examples, measures), or NOTHING
    else (it only says where the command runs, and how fast).
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "words": tuple(words),
        "within": within,
        "path": path,
        "address": address,
        "changes": changes,
    }
    return dataclasses.field(default=default, metadata=metadata)


FORMAT = setting(
    "text",
    "Format of printed tables.",
    choices=("text", "markdown", "csv", "json"),
    changes=NOTHING,
)

# The types that a field takes, by the type of its default, if more than this one.
_TYPES: dict[type, tuple[type, ...]] = {
    float: (float, int),
    type(None): (bool, type(None)),
}
_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    type(None): "true or false",
    int: "a whole number",
    float: "a number",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the records: checks each field's range; converts to and from plain dicts.

    `~` at the start of a path is the home directory: shells do not expand --flag=~/x.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["path"]:
                object.__setattr__(self, field.name, _expand_home(value))
            check_range(field, value)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dict for JSON (tuples as lists)."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    def that_change(self, *what: str) -> dict[str, Any]:
        """By name, the settings that change any of `what`: RESULTS, EXTRAS, NOTHING."""
        values = self.to_dict()
        return {
            field.name: values[field.name]
            for field in dataclasses.fields(self)
            if field.metadata["changes"] in what
        }

    def not_default(self) -> dict[str, Any]:
        """The values that differ from their defaults, in the record's order."""
        values = {f: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {f.name: value for f, value in values.items() if value != f.default}

    def flags(self) -> list[str]:
        """The flags of the values that differ from their defaults."""
        items = self.not_default().items()
        return [f"--{name}={_flag_text(value)}" for name, value in items]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """The record of a dict from `to_dict`; raises `InputError` for unknown keys."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                hint = did_you_mean(key, names)
                raise InputError(f"there is no setting {key!r}.{hint}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for field in dataclasses.fields(cls):
            value, kind = values.get(field.name, field.default), type(field.default)
            types = _TYPES.get(kind, (kind,))
            if value in field.metadata["words"]:
                continue
            if type(value) not in types:
                raise InputError(
                    f"{field.name} must be of type {types[0].__name__}, got {value!r}"
                )
        return cls(**values)


def _expand_home(path: Any) -> Any:
    """A path, or a tuple of paths, with `~` expanded to the home directory."""
    if isinstance(path, tuple):
        return tuple(map(_expand_home, path))
    return os.path.expanduser(path) if isinstance(path, str) else path


def _flag_text(value: Any) -> str:
    """The text of a value in a flag."""
    if isinstance(value, tuple):
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(map(_flag_text, value))
        return text.getvalue()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def check_range(field: dataclasses.Field, value: Any) -> None:
    """Raises `InputError` if a field's value is outside its choices or range.

    Also if it names a file at an address, and only local files will do.
    """
    choices, ends = field.metadata["choices"], field.metadata["within"]
    if choices and value not in choices:
        raise InputError(unknown_choice(field.name, value, choices))
    if isinstance(value, str) and field.metadata["words"]:
        if value not in field.metadata["words"]:
            raise InputError(not_a_number(field, value))
        return
    values = value if isinstance(value, tuple) else (value,)
    if field.metadata["path"] and not field.metadata["address"]:
        for path in values:
            files.check_local(f"--{field.name}", path)
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"--{field.name} must be a finite number, got {number}.")
        if ends and not ends[0] <= number <= ends[1]:
            raise InputError(
                f"--{field.name} must be from {ends[0]:.10g} to {ends[1]:.10g}, got "
                f"{shortened(number)}."
            )


def check_levels(name: str, eps: float) -> None:
    """Raises `InputError` for a linf length that seems to be in [0, 1], not levels."""
    if 0 < eps < LEAST_LEVELS:
        raise InputError(
            f"{name} must be in levels of 0-255, {LEAST_LEVELS:g} or more; got "
            f"{eps:g}. If you meant {eps:g} in an image in [0, 1], give "
            f"{name}={255 * eps:g}."
        )


def is_step_of_one(step: float, steps: int, radius: float) -> bool:
    """Whether a linf step seems to be in units of [0, 1] rather than levels.

    It does if all steps together do not reach the radius, and a step 255 times as long
    would fit into it; else it is short on purpose.
    """
    is_short = 0 < step < LEAST_LEVELS and step * steps < radius
    return is_short and 255 * step <= radius


def not_a_number(field: dataclasses.Field, value: object) -> str:
    """The message for a value that is not of the type of a setting's default."""
    kind = " or ".join((_TYPE_NAMES[type(field.default)], *field.metadata["words"]))
    return f"--{field.name} must be {kind}, got {shortened(value)}."


def unknown_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """The message for a value that is not one of the choices of a setting."""
    return (
        f"--{name} must be one of {', '.join(choices)}, got {shortened(value)}."
        f"{did_you_mean(value, choices)}"
    )


def shortened(value: object) -> str:
    """A value as one short line, to quote in a message."""
    try:
        text = str(value) if isinstance(value, int | float) else repr(value)
    except ValueError:  # Python writes no more than 4300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def parse_image_size(text: str, flag: str = "--image_size") -> tuple[int, int] | None:
    """`64` or `96x128` (height x width) as (height, width); empty gives None."""
    if not text:
        return None
    parts = text.lower().split("x")
    numbers = [int(p) for p in parts if re.fullmatch(r"[0-9]{1,9}", p)]
    if len(parts) > 2 or len(numbers) < len(parts) or not min(numbers) > 0:
        raise InputError(
            f"{flag} must be one number (64) or height x width (96x128), got {text!r}."
        )
    if max(numbers) > LONGEST_SIDE:
        raise InputError(
            f"{flag} must be at most {LONGEST_SIDE} on each side, got {text!r}."
        )
    return numbers[0], numbers[-1]


# Fields that several commands have.
STRATEGY = setting(
    "auto",
    "tf.distribute strategy; auto: multi_worker if TF_CONFIG or SLURM names several "
    "workers (docs/cluster.md), mirrored over the GPUs if there are several, otherwise "
    "one device. Several workers speak by NCCL on GPUs; multi_worker_ring: as "
    "multi_worker, but by TensorFlow's own, slower collectives.",
    choices=("auto", "one_device", "mirrored", "multi_worker", "multi_worker_ring"),
    changes=NOTHING,
)
REPLICAS = setting(
    0,
    "Number of devices for --strategy=mirrored, and for each worker of multi_worker; "
    "0: all GPUs. Without a GPU the CPU is split into that many devices, for tests.",
    within=(0, 128),
    changes=NOTHING,
)


JIT = setting(
    "auto",
    "Compile graphs with XLA; auto: on GPUs, if there is enough work to be worth the "
    "half minute of compiling (docs/gpu.md).",
    choices=("auto", "on", "off"),
    changes=NOTHING,
)


DETERMINISTIC = setting(True, "Use deterministic kernels: equal seeds give equal bits.")

LOCAL, RAY, SLURM = EXECUTORS = ("local", "ray", "slurm")
EXECUTOR_OPTIONS = setting(
    (),
    "NAME=VALUE, for --executor=ray: address, and options of a task (num_gpus=1, "
    "num_cpus=4, memory=...); for slurm: parameters of submitit (timeout_min=600, "
    "gpus_per_node=1, slurm_partition=...).",
    changes=NOTHING,
)
WORKERS = setting(
    0,
    "Number of processes or jobs at a time. 0: for local, one per GPU, or per core "
    "if there is no GPU; for ray and slurm, 100, or twice as many as the Ray cluster "
    "has room for if that is more.",
    within=(0, 1024),
    changes=NOTHING,
)
