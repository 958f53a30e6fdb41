# SPDX-License-Identifier: Apache-2.0
"""Every setting of the binaries: its default, its help, its range, and cross-checks.

The flags are made from these records (`cli.flags.define`), a run keeps them in its
`config.json`, and nothing else in the package holds a default of its own.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any

from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean

# What another value of a setting leads to (see `setting`).
RESULTS, EXTRAS, NOTHING = "results", "extras", "nothing"


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    changes: str = RESULTS,
) -> Any:
    """A dataclass field with what a flag needs; the range includes both ends.

    A default of None makes a flag that is true, false or not said at all. `changes` is
    what another value leads to: other RESULTS, other EXTRAS beside the same results
    (saved examples, measures), or NOTHING else (where it runs, and how fast).
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "changes": changes,
    }
    return dataclasses.field(default=default, metadata=metadata)


FORMAT = setting(
    "text",
    "How tables are printed.",
    choices=("text", "markdown", "csv", "json"),
    changes=NOTHING,
)

# The types that a field takes, where they are not just that of its default.
_TAKEN: dict[type, tuple[type, ...]] = {
    float: (float, int),
    type(None): (bool, type(None)),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the records: range checks of each field, and to and from plain dicts."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_range(field, getattr(self, field.name))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON takes them (tuples as lists)."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    def that_change(self, *what: str) -> dict[str, Any]:
        """Those of `to_dict` that change one of these: RESULTS, EXTRAS, NOTHING."""
        values = self.to_dict()
        return {
            field.name: values[field.name]
            for field in dataclasses.fields(self)
            if field.metadata["changes"] in what
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """The record of a dict that `to_dict` made; unknown keys raise `InputError`."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                hint = did_you_mean(key, names)
                raise InputError(f"there is no setting {key!r}.{hint}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for field in dataclasses.fields(cls):
            value, kind = values.get(field.name, field.default), type(field.default)
            allowed = _TAKEN.get(kind, (kind,))
            if type(value) not in allowed:
                raise InputError(
                    f"{field.name} must be of type {allowed[0].__name__}, got {value!r}"
                )
        return cls(**values)


def check_range(field: dataclasses.Field, value: Any) -> None:
    """Raises `InputError` where a field's value is outside its choices or range."""
    choices, low, high = (field.metadata[k] for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise InputError(
            f"--{field.name} must be one of {', '.join(choices)}, got {value!r}."
        )
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if not math.isfinite(number):
            raise InputError(f"--{field.name} must be a finite number, got {number}.")
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise InputError(f"--{field.name} must be {bounds}, got {number}.")


def parse_image_size(text: str) -> tuple[int, int] | None:
    """`64` or `96x128` (height x width) as (height, width); empty gives None."""
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise InputError(
            "--image_size must be one number (64) or height x width (96x128), "
            f"got {text!r}."
        )
    return int(parts[0]), int(parts[-1])


# Fields that both binaries have.
STRATEGY = setting(
    "auto",
    "tf.distribute strategy; auto: mirrored over the GPUs if there are several, "
    "else one device.",
    choices=("auto", "one_device", "mirrored"),
    changes=NOTHING,
)
REPLICAS = setting(
    0,
    "Devices that --strategy=mirrored takes; 0: all GPUs. Without a GPU the CPU is "
    "split into that many, for trials.",
    low=0,
    changes=NOTHING,
)


JIT = setting(
    "auto",
    "Compile graphs by XLA; auto: on GPUs, where the work ahead is worth the half "
    "minute that it takes (docs/gpu.md).",
    choices=("auto", "on", "off"),
    changes=NOTHING,
)


DETERMINISTIC = setting(True, "Use deterministic kernels: equal seeds give equal bits.")
