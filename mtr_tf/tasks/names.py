# SPDX-License-Identifier: Apache-2.0
"""The names of tasks, without TensorFlow, for flags, study files and reports.

Names and letters are Taskonomy's.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Protocol

from mtr_tf.errors import InputError

# Words that mean something else where tasks are named or shown: groups of tasks, an
# attack loss, tags of TensorBoard.
RESERVED = ("all", "each", "main", "none", "optimizer", "own", "total")


@dataclasses.dataclass(frozen=True)
class Names:
    """What a task is called.

    Attributes:
      name: The one name used in code, files and tables.
      letter: The paper's code for it, case-sensitive.
      aliases: Other names the command line takes, lower case.
    """

    name: str
    letter: str
    aliases: tuple[str, ...] = ()


NAMES = (
    Names("seg", "s", ("segmentsemantic", "segment_semantic")),
    Names("depth", "d", ("depth_zbuffer",)),
    Names("depth_euclidean", "D"),
    Names("normal", "n"),
    Names("edge_texture", "e"),
    Names("edge_occlusion", "E"),
    Names("keypoints2d", "k"),
    Names("keypoints3d", "K"),
    Names("reshading", "r"),
    Names("curvature", "p", ("principal_curvature",)),
    Names("autoencoder", "A", ("reconstruct",)),
)


class Named(Protocol):
    """Anything with the names of a task."""

    @property
    def name(self) -> str:
        """The one name."""

    @property
    def letter(self) -> str:
        """A code of one character; may be empty."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names, which are taken in any case."""


def resolve(
    names: str | Iterable[str], choices: Iterable[Named] = NAMES
) -> tuple[str, ...]:
    """Returns the tasks' full names, in the order given.

    Args:
      names: Names and aliases in any case, and letters in their own case (`d` is depth,
        `D` is depth_euclidean); or one string of these, separated by commas.
      choices: The known tasks; by default those of the paper.

    Raises:
      InputError: An unknown name, the same task twice, or none at all.
    """
    choices = tuple(choices)
    name_list = _split_names(names, choices)
    return _check_unique(
        tuple(_resolve_one(name, choices) for name in name_list), name_list
    )


def canonical(
    names: str | Iterable[str], choices: Iterable[Named] = NAMES
) -> tuple[str, ...]:
    """Returns the full names of known tasks, and other names unchanged.

    Whether other tasks exist is known only once the data set that declares them is
    open.

    Args:
      names: As for `resolve`.
      choices: The known tasks; by default those of the paper.

    Raises:
      InputError: The same task twice, or none at all.
    """
    choices = tuple(choices)
    name_list = _split_names(names, choices)
    full_names = tuple(_lookup(name, choices) or name for name in name_list)
    return _check_unique(full_names, name_list)


def _split_names(names: str | Iterable[str], tasks: Sequence[Named]) -> list[str]:
    name_list = names.split(",") if isinstance(names, str) else list(names)
    name_list = [name.strip() for name in name_list]
    if not any(name_list):
        raise InputError(
            f"At least one task must be named; the tasks are {_listing(tasks)}."
        )
    return name_list


def _check_unique(
    full_names: tuple[str, ...], name_list: Sequence[str]
) -> tuple[str, ...]:
    for name in full_names:
        if full_names.count(name) > 1:
            raise InputError(
                f"Each task may be named only once, but '{','.join(name_list)}' names "
                f"'{name}' {full_names.count(name)} times."
            )
    return full_names


def _lookup(name: str, tasks: Sequence[Named]) -> str | None:
    """The full name of a task; None if no task has this name, alias or letter."""
    for task in tasks:
        if name and name in (task.name, task.letter):
            return task.name
    for task in tasks:
        if name.lower() in map(str.lower, (task.name, *task.aliases)):
            return task.name
    return None


def _resolve_one(name: str, tasks: Sequence[Named]) -> str:
    full_name = _lookup(name, tasks)
    if full_name:
        return full_name
    if not name:
        raise InputError(
            "A task's name must not be empty (perhaps there is an extra comma); the "
            f"tasks are {_listing(tasks)}."
        )
    by_name = {n: task.name for task in tasks for n in (task.name, *task.aliases)}
    if len(name) == 1:
        letters = [task.letter for task in tasks]
        guesses = [name.swapcase()] if name.swapcase() in letters else []
    else:
        matches = difflib.get_close_matches(name.lower(), by_name)
        guesses = dict.fromkeys(by_name[match] for match in matches)
    hint = f" Did you mean {' or '.join(map(repr, guesses))}?" if guesses else ""
    raise InputError(f"Unknown task '{name}'.{hint} The tasks are {_listing(tasks)}.")


def _listing(tasks: Sequence[Named]) -> str:
    return ", ".join(
        f"{task.name} ({task.letter})" if task.letter else task.name for task in tasks
    )
