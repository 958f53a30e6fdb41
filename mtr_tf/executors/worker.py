# SPDX-License-Identifier: Apache-2.0
"""Runs `python -m MODULE --flags` for a runner, and ends when the runner is gone.

    python -m mtr_tf.executors.worker mtr_tf.train --tasks=seg

The runner holds the other end of this process's standard input. Anything that it
writes there asks this process to stop, like a signal. However the runner ends, even by
kill -9, the system closes that end, and this process ends at once. That is safe:
commands can be killed at any moment.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading

from mtr_tf.cli import stopping


def _end_with_the_runner() -> None:
    while os.read(0, 1):  # Not sys.stdin: its lock would be held at a normal exit.
        if not stopping.came():  # Some schedulers signal all processes.
            os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)


def main() -> None:
    """Runs the command of the module in `sys.argv`."""
    for signum in (signal.SIGUSR1, signal.SIGUSR2):  # Schedulers send them to submitit.
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    module = importlib.import_module(sys.argv[1])
    sys.argv = [str(module.__file__), *sys.argv[2:]]
    module.run()


if __name__ == "__main__":
    main()
