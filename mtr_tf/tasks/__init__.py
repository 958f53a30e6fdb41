# SPDX-License-Identifier: Apache-2.0
"""Tasks: what an output of a model means, and how it is scored.

`tasks.names` has their names; TensorFlow is imported with the first use of the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from typing import Any

from mtr_tf.tasks.names import resolve

if TYPE_CHECKING:
    from mtr_tf.tasks.table import NOT_FINITE
    from mtr_tf.tasks.table import TASKS
    from mtr_tf.tasks.table import Task
    from mtr_tf.tasks.table import statistics
    from mtr_tf.tasks.table import task_losses

__all__ = ["NOT_FINITE", "TASKS", "Task", "resolve", "statistics", "task_losses"]


def __getattr__(name: str) -> Any:
    """The table, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("mtr_tf.tasks.table"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
