# SPDX-License-Identifier: Apache-2.0
"""How the runner reports times."""

from __future__ import annotations


def interval(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 1 h 30 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
