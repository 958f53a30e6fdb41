# SPDX-License-Identifier: Apache-2.0
"""The one exception for what a user can put right, and a hint at what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
MARK = "mtr_tf.errors.InputError: "  # Before our sentence in an error of TensorFlow.


class InputError(ValueError):
    """A setting, file or argument cannot be used as given.

    The message says what must hold, what was given and what to do. The binaries print
    it as one line, without a stack trace, and exit with code 1.
    """


def present(value: T | None, what: str) -> T:
    """A value that may be None by its type, where the caller knows that it is not.

    Args:
      value: What is there.
      what: A few words for it.

    Raises:
      TypeError: It is None after all, which is a fault of the code.
    """
    if value is None:
        raise TypeError(f"{what} must be there, got None.")
    return value


def did_you_mean(given: object, known: Iterable[str], before: str = " Did") -> str:
    """Returns ` Did you mean 'x'?` of the nearest known word; empty if none is near.

    Args:
      given: What the user has written.
      known: The words that could be meant.
      before: "; did", where the hint goes on with a sentence.
    """
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(str(given).lower(), by_lower, 1, cutoff=0.4)
    return f"{before} you mean {by_lower[near[0]]!r}?" if near else ""


def input_error_within(error: Exception) -> str | None:
    """What an `InputError` said that TensorFlow passes on in an error of its own.

    It was raised while a batch was read, or is the sentence of a failed assertion
    (`attacks.base.require`), whose parts TensorFlow puts in brackets. None for any
    other error.
    """
    mark = re.escape(MARK)
    found = re.search(rf"(^|assertion failed: \[){mark}(.+)$", str(error), re.MULTILINE)
    if not found:
        return None
    asserted, told = found.groups()
    if asserted:
        told = told.rstrip("]").replace("] [", " ").replace("\\'", "'")
        told = re.sub(r" ([;,])", r"\1", told)
    return told
