# SPDX-License-Identifier: Apache-2.0
"""Seeded damage to files and values, and the cases of a fuzz test.

    @fuzz_fixture.tiers(quick=40)
    def test_...(cases):
        for rng in cases:
            with cases.refused():        # `InputError` is an answer
                ...                      # and so is the right result

The quick tier tries the first few cases; `pytest -m fuzz` goes on for `--fuzz_seconds`.
A failure names the case: `--fuzz_first=NUMBER --fuzz_seconds=0` repeats it alone.
"""

from __future__ import annotations

import collections
import contextlib
import json
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mtr_tf.errors import InputError

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 1e-320)


class Cases:
    """Random generators, one per case; counts how the cases end."""

    def __init__(self, request, quick: int, least: int):
        self._first, self._least, self._seconds = 0, quick, 0.0
        if request.param == "fuzz":
            self._first = request.config.getoption("--fuzz_first")
            self._seconds = request.config.getoption("--fuzz_seconds")
            self._least = 1 if self._first else max(least, 1)
        self.counts: collections.Counter[str] = collections.Counter()
        self.number = -1

    def __iter__(self) -> Iterator[np.random.Generator]:
        start = time.monotonic()
        self.number = self._first
        while (
            self.number - self._first < self._least
            or time.monotonic() - start < self._seconds
        ):
            try:
                yield np.random.default_rng(self.number)
            finally:
                self.counts["cases"] += 1
            self.number += 1

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """Accepts a refusal in one sentence; names the case of any other error."""
        try:
            yield
        except InputError as error:
            self.counts["refused"] += 1
            sentence = str(error)
            assert sentence.strip(), f"case {self.number}: nothing is said"
            assert len(sentence) < 3000, f"case {self.number}: {sentence[:3000]}"
        except Exception as error:
            raise AssertionError(
                f"case {self.number} escapes as {type(error).__name__}: {error}"
            ) from error


def tiers(quick: int, least: int = 0) -> Callable:
    """Gives a test its `cases` in both tiers.

    Args:
      quick: The number of cases in the quick tier.
      least: The least number of cases in the fuzz tier, whatever its seconds.
    """
    params = ["quick", pytest.param("fuzz", marks=pytest.mark.fuzz)]

    def decorate(test):
        test.fuzz_settings = (quick, least)
        return pytest.mark.parametrize("cases", params, indirect=True)(test)

    return decorate


# Damage.


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one to three faults of the kinds that files have."""
    for _ in range(rng.integers(1, 4)):
        content = _FAULTS[rng.integers(len(_FAULTS))](bytearray(content), rng)
    return bytes(content)


def _place(content, rng) -> int:
    return int(rng.integers(len(content))) if len(content) else 0


def _part(content, rng) -> slice:
    start = _place(content, rng)
    return slice(start, start + int(2 ** rng.uniform(0, 8)))


def _flip(content, rng):
    if content:
        content[_place(content, rng)] ^= 1 << int(rng.integers(8))
    return content


def _set(content, rng):
    if content:
        content[_place(content, rng)] = INTERESTING[rng.integers(len(INTERESTING))]
    return content


def _cut(content, rng):
    del content[_part(content, rng)]
    return content


def _truncate(content, rng):
    return content[: _place(content, rng)]


def _repeat(content, rng):
    part = _part(content, rng)
    return content[: part.stop] + content[part] + content[part.stop :]


def _insert(content, rng):
    place = _place(content, rng)
    extra = rng.integers(0, 256, int(rng.integers(1, 16)), np.uint8).tobytes()
    return content[:place] + extra + content[place:]


def _blank(content, rng):
    part = _part(content, rng)
    content[part] = bytes(len(content[part]))
    return content


def _number(content, rng):
    """Overwrites four bytes with a number that may be read as a size."""
    place = _place(content, rng)
    value = int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
    order = ("big", "little")[rng.integers(2)]
    content[place : place + 4] = value.to_bytes(4, order)
    return content


_FAULTS = (_flip, _flip, _set, _cut, _truncate, _repeat, _insert, _blank, _number)


def other(rng: np.random.Generator) -> Any:
    """A JSON value of any kind, to stand in the place of another."""
    values = [None, True, False, "", "x" * 300, "\udc80", "<b>", "../..", [], {}, [[]]]
    values += [*NUMBERS, float("nan"), float("inf"), {"a": {"b": []}}, nested(50)]
    return values[rng.integers(len(values))]


def nested(depth: int) -> list:
    """A list in a list in a list ..."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def changed(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value with one to three entries replaced, dropped or added."""
    value = json.loads(json.dumps(value))
    holder = {"": value}
    for _ in range(rng.integers(1, 4)):
        _change(holder, rng)
    return holder[""]


def _change(value: Any, rng: np.random.Generator) -> None:
    """Changes something within a dict or list."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        if isinstance(value, dict):
            value["new"] = other(rng)
        else:
            value.append(other(rng))
        return
    key = keys[rng.integers(len(keys))]
    inner = value[key]
    if isinstance(inner, dict | list) and rng.random() < 0.8:
        _change(inner, rng)
        return
    change = rng.integers(4)
    if change == 0 and key != "":
        del value[key]
    elif change == 1 and isinstance(inner, int | float) and not isinstance(inner, bool):
        value[key] = inner + NUMBERS[rng.integers(len(NUMBERS))]
    elif change == 2 and isinstance(value, dict) and key != "":
        value[f"{key}x"] = value.pop(key)
    else:
        value[key] = other(rng)


def damaged_json(value: Any, rng: np.random.Generator) -> bytes:
    """A JSON file that is damaged or has other values."""
    if rng.random() < 0.3:
        return damaged(json.dumps(value).encode(), rng)
    if rng.random() < 0.02:
        return b"[" * 100_000
    return json.dumps(changed(value, rng)).encode()
