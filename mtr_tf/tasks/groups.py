# SPDX-License-Identifier: Apache-2.0
"""Groups of tasks that are attacked together, as the command line names them."""

from __future__ import annotations

from collections.abc import Sequence

from mtr_tf import tasks as tasks_lib
from mtr_tf.errors import InputError


def parse_groups(
    groups: Sequence[str], tasks: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Reads --attack_tasks: task names joined by `+`, `each` and `all`.

    Args:
      groups: Such as ("seg+depth", "each").
      tasks: The model's. Tasks inside a group come out in this order.

    Raises:
      InputError: A task is unknown, or the model lacks it.
    """
    found = []
    for text in groups:
        if text.lower() == "each":
            found += [(task,) for task in tasks]
        elif text.lower() == "all":
            found.append(tuple(tasks))
        else:
            named = tasks_lib.resolve(text.split("+"))
            check_has(named, tasks, "--attack_tasks")
            found.append(tuple(task for task in tasks if task in named))
    return tuple(dict.fromkeys(found))


def check_has(asked: Sequence[str], tasks: Sequence[str], flag: str) -> None:
    """Raises `InputError` with both lists where the model lacks a task."""
    missing = [task for task in asked if task not in tasks]
    if missing:
        raise InputError(
            f"{flag} asks for {', '.join(missing)}, but the checkpoint has only the "
            f"tasks {', '.join(tasks)}; name some of these."
        )
