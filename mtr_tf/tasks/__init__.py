# SPDX-License-Identifier: Apache-2.0
"""Tasks: what an output of a model means, and how it is scored.

`tasks.names` has the names of the paper's tasks; TensorFlow is imported when anything
else is first used.

    flow = tasks.Task("flow", kind="numbers", channels=2, unit="px")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from typing import Any

from mtr_tf.tasks.names import canonical
from mtr_tf.tasks.names import resolve

if TYPE_CHECKING:
    from mtr_tf.tasks.table import NOT_FINITE
    from mtr_tf.tasks.table import TASKS
    from mtr_tf.tasks.table import statistics
    from mtr_tf.tasks.table import task_losses
    from mtr_tf.tasks.table import task_set
    from mtr_tf.tasks.task import KINDS
    from mtr_tf.tasks.task import Kind
    from mtr_tf.tasks.task import Task
    from mtr_tf.tasks.task import TaskSet

_IN_TASK = ("KINDS", "Kind", "Task", "TaskSet")  # All else is in `table`.
__all__ = [
    "KINDS",
    "NOT_FINITE",
    "TASKS",
    "Kind",
    "Task",
    "TaskSet",
    "canonical",
    "resolve",
    "statistics",
    "task_losses",
    "task_set",
]


def __getattr__(name: str) -> Any:
    """Imports a name of `table` or `task` when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module_name = "task" if name in _IN_TASK else "table"
    module = importlib.import_module(f"mtr_tf.tasks.{module_name}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
