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
      spare: Those of them that are not attacked; `each` and `all` are the others.

    Raises:
      InputError: A task is unknown, the model lacks it, or it is spared.
    """
    parsed: list[tuple[str, ...]] = []
    others = tuple(task for task in tasks if task not in spare)
    if not others:
        raise InputError(
            f"--spare must leave a task to attack, but {', '.join(spare)} are all "
            "tasks; leave one out."
        )
    for text in groups:
        if text.lower() == "each":
            parsed += [(task,) for task in others]
        elif text.lower() == "all":
            parsed.append(others)
        else:
            parsed.append(select(text.split("+"), tasks, "--attack_tasks"))
    for task in dict.fromkeys(task for group in parsed for task in group):
        if task in spare:
            raise InputError(
                f"--spare must name tasks that are not attacked, but {task} is in "
                "--attack_tasks too; remove it from one of the two."
            )
    return tuple(dict.fromkeys(parsed))


def select(
    names: Sequence[str], tasks: Iterable[str] | Mapping[str, Named], flag: str
) -> tuple[str, ...]:
    """The tasks that a flag names, in the model's order; all if it names none.

    Args:
      names: Names, aliases and letters.
      tasks: The model's, by name; of a mapping the aliases and letters count too.
      flag: For messages.

    Raises:
      InputError: A task is unknown, or the model lacks it.
    """
    has = tuple(tasks)
    if not names:
        return has
    named = resolve(names, _known(tasks))
    check_has(named, has, flag)
    return tuple(task for task in has if task in named)


def spared(
    names: Sequence[str], tasks: Iterable[str] | Mapping[str, Named]
) -> tuple[str, ...]:
    """The tasks of --spare, as `select` reads them; none if it names none."""
    return select(names, tasks, "--spare") if names else ()


def _known(tasks: Iterable[str] | Mapping[str, Named]) -> list[Names]:
    """The eleven, and a model's own tasks, with all that they are called.

    A task that takes the place of one of the eleven is called as that one is, too.
    """
    is_known = isinstance(tasks, Mapping)
    own = tasks.values() if is_known else [Names(task, "") for task in tasks]
    known = {each.name: each for each in NAMES}
    for each in own:
        usual = known.get(each.name, Names(each.name, ""))
        letter = each.letter or usual.letter
        aliases = (*usual.aliases, *each.aliases)
        known[each.name] = Names(each.name, letter, aliases)
    return list(known.values())


def check_has(asked: Sequence[str], tasks: Sequence[str], flag: str) -> None:
    """Raises `InputError` with both lists if the model lacks a task."""
    missing = [task for task in asked if task not in tasks]
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
