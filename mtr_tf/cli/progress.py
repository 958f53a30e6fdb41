# SPDX-License-Identifier: Apache-2.0
"""Progress of long steps: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator

import tqdm
from absl import logging

LOG_SECONDS = 10.0


@contextlib.contextmanager
def bar(
    total: float, what: str, unit: str = "it", done: float = 0, shown: bool = True
) -> Iterator[Callable]:
    """Yields `advance(n, note="")`; shows the share done and an estimate of time left.

    Args:
      total: the sum of `done` and all advances.
      what: a few words that say what is going on.
      unit: what is counted.
      done: what an earlier process has done.
      shown: whether there is a bar; lines are logged all the same.
    """
    start = logged = time.monotonic()
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules  # A notebook.
    meter = tqdm.tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        disable=not (interactive and shown),
        dynamic_ncols=True,
        leave=True,
    )
    count = done

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal count, logged
        count += n
        if interactive:
            meter.set_postfix_str(note, refresh=False)
            meter.update(n)
            return
        now = time.monotonic()
        if now - logged >= LOG_SECONDS or count >= total:
            logged = now
            seconds_left = (now - start) / max(count - done, 1) * (total - count)
            logging.info(
                "%s: %d of %d %s, %s left%s", what, count, total, unit,
                tqdm.tqdm.format_interval(seconds_left), f", {note}" if note else "",
            )  # fmt: skip

    with meter:
        yield advance
