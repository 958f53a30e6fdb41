# SPDX-License-Identifier: Apache-2.0
"""Commands in processes of their own, to send signals to."""

from __future__ import annotations

import signal
import subprocess


def start(command, **options) -> subprocess.Popen:
    """Starts a command that Ctrl-C stops.

    Who runs the tests in the background (`pytest &`) has them, and what they start,
    ignore it.
    """

    def restore():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)

    return subprocess.Popen(command, preexec_fn=restore, **options)
