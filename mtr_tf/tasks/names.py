# SPDX-License-Identifier: Apache-2.0
"""The names of tasks, without TensorFlow: for flags, study files and reports.

Names and letters are Taskonomy's.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from mtr_tf.errors import InputError


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
_BY_LETTER = {each.letter: each.name for each in NAMES}
_BY_NAME = {alias: each.name for each in NAMES for alias in (each.name, *each.aliases)}


def resolve(names: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the tasks' own names, in the order given.

    Args:
      names: Names and aliases in any case, and letters in their own (`d` is depth, `D`
        is depth_euclidean); or one string of them with commas between.

    Raises:
      InputError: An unknown name, the same task twice, or none at all.
    """
    given = names.split(",") if isinstance(names, str) else list(names)
    given = [name.strip() for name in given]
    if not any(given):
        raise InputError(f"At least one task must be named, out of {_listing()}.")
    resolved = tuple(_resolve_one(name) for name in given)
    for name in resolved:
        if resolved.count(name) > 1:
            raise InputError(
                f"Tasks must differ, got '{name}' {resolved.count(name)} times in "
                f"'{','.join(given)}'."
            )
    return resolved


def _resolve_one(name: str) -> str:
    known = _BY_LETTER.get(name) or _BY_NAME.get(name.lower())
    if known:
        return known
    if not name:
        raise InputError(
            "A task's name must not be empty (is there a comma too many?); "
            f"the tasks are {_listing()}."
        )
    if len(name) == 1:
        near = [name.swapcase()] if name.swapcase() in _BY_LETTER else []
    else:
        matches = difflib.get_close_matches(name.lower(), _BY_NAME)
        near = dict.fromkeys(_BY_NAME[match] for match in matches)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(f"Unknown task '{name}'.{hint} The tasks are {_listing()}.")


def _listing() -> str:
    return ", ".join(f"{each.name} ({each.letter})" for each in NAMES)
