# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes that a user can fix, hints at what was meant, checks."""

from __future__ import annotations

import difflib
import numbers
import re
from collections.abc import Iterable
from typing import TypeGuard
from typing import TypeVar

T = TypeVar("T")
_NEAR = 0.65  # Words that are less alike are no hint.
MARK = "mtr_tf.errors.InputError: "  # Before our sentence in an error of TensorFlow.
# What TensorFlow, XLA, cuDNN and cuBLAS say where a device has too little memory,
_NO_MEMORY = re.compile(
    r"\bOOM\b|out of memory|Resource_?Exhausted|Dst tensor is not initialized"
    r"|ALLOC_FAILED|No BLAS for stream|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
# and what of that is about files.
_OF_FILES = re.compile("No space left|Disk quota|Too many open files", re.IGNORECASE)


NOTE = "note: "  # Begins a warning that is no doubt about numbers, only about them.


class InputError(ValueError):
    """A setting, file or argument cannot be used as given.

    The message says what must hold, what was given and what to do. The binaries print
    it as one line, without a stack trace, and exit with code 1.
    """


def present(value: T | None, what: str) -> T:
    """A value whose type allows None, if the caller knows that it is not None.

    Args:
      value: What is there.
      what: A few words for it.

    Raises:
      TypeError: It is None after all, which is a bug.
    """
    if value is None:
        raise TypeError(f"{what} must be there, got None.")
    return value


def did_you_mean(given: object, known: Iterable[str], before: str = " Did") -> str:
    """Returns ` Did you mean 'x'?` for the nearest known word; empty if none is near.

    Args:
      given: What the user has written.
      known: The words that could be meant.
      before: "; did", where the hint goes on with a sentence.
    """
    near = nearest(str(given), known)
    return f"{before} you mean {near!r}?" if near else ""


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or NumPy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_keys(
    given: Iterable[object], known: Iterable[str], may: str, but: str
) -> None:
    """Raises `InputError` for a key that is not known.

    Args:
      given: The keys that are there.
      known: Those that may be there.
      may: How the sentence begins that lists them: "An example has the keys".
      but: How it goes on before the key that is wrong: "but example 3 has".
    """
    known = tuple(known)
    for key in given:
        if key not in known:
            raise InputError(
                f"{may} {', '.join(known)}, {but} {key!r}.{did_you_mean(key, known)}"
            )


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None if none is near.

    A word is near if it has most of the letters in the same order, begins in the same
    way, or its parts do (`lr` for `learning_rate`), or if it is short for the other
    (`checkpoint` for `ckpt`).
    """
    likeness = {word: _likeness(given.lower(), word.lower()) for word in known}
    best = max(likeness.values(), default=0.0)
    nearest = [word for word in likeness if likeness[word] == best]
    return min(nearest, key=len) if best >= _NEAR else None


def _likeness(given: str, word: str) -> float:
    """How near two words are, from 0 to 1."""
    initials = "".join(part[:1] for part in re.split(r"[\W_]+", word))
    begins = len(given) > 2 and word.startswith(given)
    if begins or (len(given) > 1 and given == initials):
        return 0.9
    least = 0.0
    ends = given.startswith(word) or given[-1:] == word[-1:]
    letters = iter(given)
    found = all(letter in letters for letter in word)  # In this order.
    if found and ends and len(word) > 2 and given[0] == word[0]:
        least = 0.8
    return max(least, difflib.SequenceMatcher(None, given, word).ratio())


def doubts_first(warnings: Iterable[str]) -> list[str]:
    """Doubts about numbers, and then what is only to be known (`NOTE`)."""
    return sorted(warnings, key=lambda text: text.startswith(NOTE))


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of TensorFlow's says that a device has too little memory.

    It does so in many ways. A full disk, an exhausted resource too, is none of them.
    """
    text = f"{type(error).__name__}: {_plain(error)}"
    return bool(_NO_MEMORY.search(text)) and not _OF_FILES.search(text)


def raise_out_of_memory(error: Exception) -> None:
    """Raises the error if it says that, for it says nothing about what was tried."""
    if is_out_of_memory(error):
        raise error


def _plain(error: Exception) -> str:
    """What an error says, without the colours that Keras puts into it."""
    return re.sub(r"\x1b\[\d*m", "", str(error))


def input_error_within(error: Exception) -> str | None:
    """The message of an `InputError` that an error of TensorFlow's stands for.

    It was raised while a batch was read, or is the sentence of a failed assertion
    (`attacks.base.require`), whose parts TensorFlow puts in brackets; or deterministic
    kernels are asked for, and an operation has none. None for any other error.
    """
    mark = re.escape(MARK)
    found = re.search(rf"(^|assertion failed: \[){mark}(.+)$", str(error), re.MULTILINE)
    if not found:
        return _no_deterministic_kernel(error)
    asserted, told = found.groups()
    if asserted:
        told = told.rstrip("]").replace("] [", " ").replace("\\'", "'")
        told = re.sub(r" ([;,])", r"\1", told)
    return told


def _no_deterministic_kernel(error: Exception) -> str | None:
    """Our sentence for an operation that has none; None for any other error."""
    if type(error).__name__ not in ("UnimplementedError", "InvalidArgumentError"):
        return None
    found = re.search(r"^.*\bdetermini(sm|stic)\b.*$", _plain(error), re.M | re.I)
    if not found:
        return None
    told = re.sub(r"\{\{.*?\}\}|\s\[.*$", "", found[0]).strip(" .\t")  # Without nodes.
    return (
        f"the model uses an operation that has no deterministic kernel ({told[:200]}); "
        "give --nodeterministic, or in Python leave out enable_op_determinism()."
    )
