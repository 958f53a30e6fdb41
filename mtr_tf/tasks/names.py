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

# Words that stand for something where a task is named, or for what is no task where
# tasks are shown: groups of tasks, an attack loss, tags of TensorBoard.
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
    """Anything that is called as a task is."""

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
    names: str | Iterable[str], known: Iterable[Named] = NAMES
) -> tuple[str, ...]:
    """Returns the tasks' full names, in the order given.

    Args:
      names: Names and aliases in any case, and letters in their own (`d` is depth, `D`
        is depth_euclidean); or one string of them with commas between.
      known: The known tasks; by default those of the paper.

    Raises:
      InputError: An unknown name, the same task twice, or none at all.
    """
    known = tuple(known)
    given = _given(names, known)
    return _different(tuple(_resolve_one(name, known) for name in given), given)


def canonical(
    names: str | Iterable[str], known: Iterable[Named] = NAMES
) -> tuple[str, ...]:
    """Returns the full names of known tasks, and other names unchanged.

    Whether other tasks exist is known only once the data set that declares them is
    open.

    Args:
      names: As for `resolve`.
      known: The known tasks; by default those of the paper.

    Raises:
      InputError: The same task twice, or none at all.
    """
    known = tuple(known)
    given = _given(names, known)
    resolved = tuple(_lookup(name, known) or name for name in given)
    return _different(resolved, given)


def _given(names: str | Iterable[str], known: Sequence[Named]) -> list[str]:
    given = names.split(",") if isinstance(names, str) else list(names)
    given = [name.strip() for name in given]
    if not any(given):
        raise InputError(
            f"At least one task must be named; the tasks are {_listing(known)}."
        )
    return given


def _different(resolved: tuple[str, ...], given: Sequence[str]) -> tuple[str, ...]:
    for name in resolved:
        if resolved.count(name) > 1:
            raise InputError(
                f"Each task may be named only once, but '{','.join(given)}' names "
                f"'{name}' {resolved.count(name)} times."
            )
    return resolved


def _lookup(name: str, known: Sequence[Named]) -> str | None:
    """The task's own name; None where no task is called so."""
    for each in known:
        if name and name in (each.name, each.letter):
            return each.name
    for each in known:
        if name.lower() in map(str.lower, (each.name, *each.aliases)):
            return each.name
    return None


def _resolve_one(name: str, known: Sequence[Named]) -> str:
    found = _lookup(name, known)
    if found:
        return found
    if not name:
        raise InputError(
            "A task's name must not be empty (perhaps there is an extra comma); the "
            f"tasks are {_listing(known)}."
        )
    by_name = {n: each.name for each in known for n in (each.name, *each.aliases)}
    if len(name) == 1:
        letters = [each.letter for each in known]
        near = [name.swapcase()] if name.swapcase() in letters else []
    else:
        matches = difflib.get_close_matches(name.lower(), by_name)
        near = dict.fromkeys(by_name[match] for match in matches)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(f"Unknown task '{name}'.{hint} The tasks are {_listing(known)}.")


def _listing(known: Sequence[Named]) -> str:
    return ", ".join(
        f"{each.name} ({each.letter})" if each.letter else each.name for each in known
    )
