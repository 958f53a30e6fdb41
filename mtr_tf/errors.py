# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes that users can fix, hints at what they meant, checks."""

from __future__ import annotations

import difflib
import numbers
import re
from collections.abc import Iterable
from typing import TypeGuard
from typing import TypeVar

T = TypeVar("T")
_MIN_LIKENESS = 0.65  # Words that are less similar are not suggested.
MARK = "mtr_tf.errors.InputError: "  # Before our message in a TensorFlow error.
# What TensorFlow, XLA, cuDNN and cuBLAS say if a device has too little memory.
_NO_MEMORY = re.compile(
    r"\bOOM\b|out of memory|Resource_?Exhausted|Dst tensor is not initialized"
    r"|ALLOC_FAILED|No BLAS for stream|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
# Similar messages that are about files.
_FILE_ERRORS = re.compile("No space left|Disk quota|Too many open files", re.IGNORECASE)


NOTE = "note: "  # Prefix of a warning that informs, but does not question the numbers.


class InputError(ValueError):
    """A setting, file or argument cannot be used as given.

    The message says what must hold, what was given and what to do. Commands print it as
    one line, without a stack trace, and exit with code 1.
    """


def present(value: T | None, description: str) -> T:
    """Returns a value whose type allows None, but which the caller knows is not None.

    Args:
      value: The value.
      description: A few words for it, for the error.

    Raises:
      TypeError: It is None after all, which is a bug.
    """
    if value is None:
        raise TypeError(f"{description} must be there, got None.")
    return value


def did_you_mean(word: object, words: Iterable[str], start: str = " Did") -> str:
    """Returns ` Did you mean 'x'?` for the nearest word; empty if none is near.

    Args:
      word: What the user has written.
      words: The words that could be meant.
      start: The beginning of the hint, such as "; did" in the middle of a sentence.
    """
    suggestion = nearest(str(word), words)
    return f"{start} you mean {suggestion!r}?" if suggestion else ""


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of Python or NumPy, but not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a real number of Python or NumPy, but not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_keys(
    keys: Iterable[object], allowed: Iterable[str], may: str, but: str
) -> None:
    """Raises `InputError` for a key that is not allowed.

    Args:
      keys: The keys to check.
      allowed: The allowed keys.
      may: The words before the list of allowed keys: "An example has the keys".
      but: The words before the wrong key: "but example 3 has".
    """
    allowed = tuple(allowed)
    for key in keys:
        if key not in allowed:
            raise InputError(
                f"{may} {', '.join(allowed)}, {but} {key!r}."
                f"{did_you_mean(key, allowed)}"
            )


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that was probably meant; None if none is near.

    A word is near if it has most of the letters in the same order, begins in the same
    way, has its letters as initials (`learning_rate` for a given `lr`), or abbreviates
    it (`ckpt` for a given `checkpoint`).
    """
    likenesses = {
        candidate: _likeness(word.lower(), candidate.lower()) for candidate in words
    }
    best = max(likenesses.values(), default=0.0)
    best_words = [
        candidate for candidate in likenesses if likenesses[candidate] == best
    ]
    return min(best_words, key=len) if best >= _MIN_LIKENESS else None


def _likeness(word: str, candidate: str) -> float:
    """The similarity of two words, from 0 to 1."""
    initials = "".join(part[:1] for part in re.split(r"[\W_]+", candidate))
    is_prefix = len(word) > 2 and candidate.startswith(word)
    if is_prefix or (len(word) > 1 and word == initials):
        return 0.9
    score = 0.0
    ends_match = word.startswith(candidate) or word[-1:] == candidate[-1:]
    letters = iter(word)
    in_order = all(letter in letters for letter in candidate)  # Uses letters up.
    if in_order and ends_match and len(candidate) > 2 and word[0] == candidate[0]:
        score = 0.8
    return max(score, difflib.SequenceMatcher(None, word, candidate).ratio())


def doubts_first(warnings: Iterable[str]) -> list[str]:
    """Sorts warnings: doubts about numbers first, then mere notes (`NOTE`)."""
    return sorted(warnings, key=lambda text: text.startswith(NOTE))


def first_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a TensorFlow error says that a device has too little memory.

    TensorFlow says so in many ways. A full disk does not count, though it is an
    exhausted resource, too.
    """
    text = f"{type(error).__name__}: {_plain_text(error)}"
    return bool(_NO_MEMORY.search(text)) and not _FILE_ERRORS.search(text)


def raise_out_of_memory(error: Exception) -> None:
    """Raises an error of too little memory again: it says nothing about the input."""
    if is_out_of_memory(error):
        raise error


def _plain_text(error: Exception) -> str:
    """The message of an error, without the colour codes that Keras adds."""
    return re.sub(r"\x1b\[\d*m", "", str(error))


def input_error_within(error: Exception) -> str | None:
    """The message of the `InputError` that a TensorFlow error stands for, or None.

    The `InputError` was raised while a batch was read, or its message is that of a
    failed assertion (`attacks.base.require`), whose parts TensorFlow puts in brackets,
    or deterministic kernels are asked for and an operation has none.
    """
    mark = re.escape(MARK)
    match = re.search(rf"(^|assertion failed: \[){mark}(.+)$", str(error), re.MULTILINE)
    if not match:
        return _determinism_message(error)
    assertion, message = match.groups()
    if assertion:
        message = message.rstrip("]").replace("] [", " ").replace("\\'", "'")
        message = re.sub(r" ([;,])", r"\1", message)
    return message


def _determinism_message(error: Exception) -> str | None:
    """The message for an operation without deterministic kernel, or None."""
    if type(error).__name__ not in ("UnimplementedError", "InvalidArgumentError"):
        return None
    match = re.search(r"^.*\bdetermini(sm|stic)\b.*$", _plain_text(error), re.M | re.I)
    if not match:
        return None
    text = re.sub(r"\{\{.*?\}\}|\s\[.*$", "", match[0]).strip(" .\t")  # Without nodes.
    return (
        f"the model uses an operation that has no deterministic kernel ({text[:200]}); "
        "give --nodeterministic, or in Python leave out enable_op_determinism()."
    )
