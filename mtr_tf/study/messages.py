# SPDX-License-Identifier: Apache-2.0
"""How the runner reports times, and why a command failed."""

from __future__ import annotations

import re
import signal

# Log lines of TensorFlow's and our own; what an error begins with.
_NOISE = re.compile(r"[IWEF]\d{4} |WARNING: All log messages|\d\d:\d\d:\d\d |\$ ")
_ERROR = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")


def interval(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 1 h 30 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def last_words(log: bytes, code: int) -> str:
    """The line of a log that says why its command failed.

    Args:
      log: what the command said.
      code: its exit code.
    """
    lines = [line.strip() for line in log.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    errors = [line for line in lines if _ERROR.match(line)]
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", which often means too little memory" if code == -9 else ""
        return f"it was ended by {name}{hint}"
    said = (errors or lines or [f"it ended with code {code}"])[-1]
    return said.removeprefix("error: ")
