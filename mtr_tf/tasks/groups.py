# SPDX-License-Identifier: Apache-2.0
"""Groups of tasks, as flags name them: attacked together, main or auxiliary."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from mtr_tf.errors import InputError
from mtr_tf.tasks.names import NAMES
from mtr_tf.tasks.names import Named
from mtr_tf.tasks.names import Names
from mtr_tf.tasks.names import resolve


def parse_groups(
    groups: Sequence[str],
    tasks: Iterable[str] | Mapping[str, Named],
    spare: Sequence[str] = (),
) -> tuple[tuple[str, ...], ...]:
    """Reads --attack_tasks: task names joined by `+`, `each` and `all`.

    Args:
      groups: Such as ("seg+depth", "each").
      tasks: The model's, as `select` takes them. Tasks inside a group come out in this
        order.
      spare: The tasks that are not attacked; `each` and `all` mean the others.

    Raises:
      InputError: A task is unknown, the model lacks it, or it is spared too; or all
        tasks are spared.
    """
    task_groups: list[tuple[str, ...]] = []
    candidates = tuple(task for task in tasks if task not in spare)
    if not candidates:
        raise InputError(
            f"--spare must leave a task to attack, but {', '.join(spare)} are all "
            "tasks; leave one out."
        )
    for text in groups:
        if text.lower() == "each":
            task_groups += [(task,) for task in candidates]
        elif text.lower() == "all":
            task_groups.append(candidates)
        else:
            task_groups.append(select(text.split("+"), tasks, "--attack_tasks"))
    for task in dict.fromkeys(task for group in task_groups for task in group):
        if task in spare:
            raise InputError(
                f"--spare must name tasks that are not attacked, but {task} is in "
                "--attack_tasks too; remove it from one of the two."
            )
    return tuple(dict.fromkeys(task_groups))


def select(
    names: Sequence[str], tasks: Iterable[str] | Mapping[str, Named], flag: str
) -> tuple[str, ...]:
    """The tasks that a flag names, in the model's order; all if it names none.

    Args:
      names: Names, aliases and letters.
      tasks: The model's, by name; in a mapping their aliases and letters count too.
      flag: For messages.

    Raises:
      InputError: A task is unknown, or the model lacks it.
    """
    model_tasks = tuple(tasks)
    if not names:
        return model_tasks
    named_tasks = resolve(names, _all_names(tasks))
    check_has(named_tasks, model_tasks, flag)
    return tuple(task for task in model_tasks if task in named_tasks)


def spared(
    names: Sequence[str], tasks: Iterable[str] | Mapping[str, Named]
) -> tuple[str, ...]:
    """The tasks of --spare, as `select` reads them; none if it names none."""
    return select(names, tasks, "--spare") if names else ()


def _all_names(tasks: Iterable[str] | Mapping[str, Named]) -> list[Names]:
    """All names of the eleven tasks and of the model's tasks.

    A task that takes the place of one of the eleven also has that one's names.
    """
    is_mapping = isinstance(tasks, Mapping)
    model_names = tasks.values() if is_mapping else [Names(task, "") for task in tasks]
    by_name = {names.name: names for names in NAMES}
    for names in model_names:
        default = by_name.get(names.name, Names(names.name, ""))
        letter = names.letter or default.letter
        aliases = (*default.aliases, *names.aliases)
        by_name[names.name] = Names(names.name, letter, aliases)
    return list(by_name.values())


def check_has(names: Sequence[str], tasks: Sequence[str], flag: str) -> None:
    """Raises `InputError`, with both lists, if the model lacks one of `names`."""
    missing = [task for task in names if task not in tasks]
    if missing:
        raise InputError(
            f"{flag} names {', '.join(missing)}, but the checkpoint has only the "
            f"tasks {', '.join(tasks)}; name some of these."
        )


def task_weights(
    tasks: Sequence[str], main_tasks: Sequence[str], aux_weight: float
) -> dict[str, float]:
    """Main tasks have weight 1/#main each, auxiliary tasks aux_weight/#auxiliary each.

    This is the rule of the paper's released training loop. If no main task is named,
    all are main and have equal weights.

    Raises:
      InputError: a main task is not among the tasks.
    """
    main = main_tasks or tasks
    missing = [task for task in main if task not in tasks]
    if missing:
        raise InputError(
            f"--main_tasks must be among --tasks ({', '.join(tasks)}), but "
            f"{', '.join(missing)} is not; add it to --tasks or remove it."
        )
    auxiliaries = len(tasks) - len(main)
    return {
        task: 1 / len(main) if task in main else aux_weight / auxiliaries
        for task in tasks
    }
