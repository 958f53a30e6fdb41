# SPDX-License-Identifier: Apache-2.0
"""The one exception for what a user can put right, and a hint at what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A setting, file or argument cannot be used as given.

    The message says what must hold, what was given and what to do. The binaries print
    it as one line, without a stack trace, and exit with code 1.
    """


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` of the nearest known word; empty if none is near."""
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(str(given).lower(), by_lower, 1, cutoff=0.4)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
