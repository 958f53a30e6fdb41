# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a Taskonomy folder.

A file is known by its name, point_P_view_V_domain_DOMAIN.png, and its building by what
the path says besides the domain. So all published arrangements are understood:
DOMAIN/FILE (one building, as the sample), BUILDING/DOMAIN/FILE, DOMAIN/BUILDING/FILE,
DOMAIN/taskonomy/BUILDING/FILE (the Omnidata downloads) and BUILDING_DOMAIN/DOMAIN/FILE
(the unpacked archives).

Where folders are called mask_valid (Omnidata's masks of holes), files are masks,
whatever domain their names have.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from mtr_tf import files
from mtr_tf.data.taskonomy import layout
from mtr_tf.errors import InputError

# A file so small holds no picture; the released loader takes such labels as missing.
EMPTY_BYTES = 100
_LARGEST_LIST = 2**24  # Bytes.

_FILE = re.compile(r"(point_(\d+)_view_(\d+))_domain_(\w+)\.png")
_LIST = re.compile(r"train_val_test_\w+\.csv")
SPLITS = {"train": "train", "val": "validation", "test": "test"}
_NOT_BUILDINGS = {*layout.TASK_OF_NAME, "taskonomy"}
_OTHER_FOLDERS = ("rgb_large",)  # The same pictures once more, under the same names.
_WHAT = (
    "a folder of Taskonomy with files such as rgb/point_0_view_0_domain_rgb.png in it, "
    "of one building or of several"
)


class Place(NamedTuple):
    """Where a view's file of a domain is, and how large.

    Attributes:
      folder: the file's.
      domain: its name in the file's name.
      size: in bytes.
    """

    folder: str
    domain: str
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """One picture and where the files of its domains are.

    Attributes:
      building: its name, "" where the folder names none.
      point: number of the point that is looked at.
      view: number of the view of that point.
      stem: how its files' names begin, `point_P_view_V`.
      places: its files, by task and `layout.RGB`.
    """

    building: str
    point: int
    view: int
    stem: str
    places: dict[str, Place]

    @property
    def name(self) -> str:
        """`BUILDING/point_P_view_V`, without the building where there is none."""
        return "/".join(filter(None, (self.building, self.stem)))

    def path(self, task: str) -> pathlib.Path | None:
        """The file of a task or of `layout.RGB`; None where there is none."""
        if task not in self.places:
            return None
        place = self.places[task]
        return pathlib.Path(place.folder, f"{self.stem}_domain_{place.domain}.png")


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
      views: those with a picture, by building, point and view.
      without_picture: how many have other files, but no picture.
      lists: split by building, from the lists; None where there are no lists.
      fingerprint: 16 hexadecimal digits that change with the files' names and sizes.
    """

    views: Sequence[View]
    without_picture: int
    lists: Mapping[str, str] | None
    fingerprint: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of which at least one view has a file, in the order of `DOMAINS`."""
        found = {task for view in self.views for task in view.places}
        return tuple(task for task in layout.DOMAINS if task in found)


def scan(data_dir: str | None) -> Listing:
    """Lists a Taskonomy folder; opens no picture.

    Raises:
      InputError: there is no such folder or no view in it; a file is there twice; a
        split list is broken.
    """
    if not data_dir:
        raise InputError(
            f"Taskonomy is not downloaded automatically; give --data_dir: {_WHAT}."
        )
    root = pathlib.Path(data_dir).expanduser()
    if not root.is_dir():
        raise InputError(
            f"--data_dir must be an existing folder, got '{data_dir}'. Taskonomy needs "
            f"{_WHAT}."
        )
    digest = hashlib.sha256()
    found: dict[tuple[str, int, int], View] = {}
    lists = []
    for folder, entry in _files(root):
        if _LIST.fullmatch(entry.name):
            lists.append(pathlib.Path(entry.path))
            digest.update(_read_list(lists[-1]))
        elif _add(found, root, folder, entry):
            where = os.path.relpath(entry.path, root)
            digest.update(os.fsencode(f"{where} {entry.stat().st_size}\n"))
    views = [found[key] for key in sorted(found) if layout.RGB in found[key].places]
    if not views:
        raise InputError(f"'{data_dir}' must be {_WHAT}; none was found there.")
    return Listing(
        views, len(found) - len(views), _read_lists(lists), digest.hexdigest()[:16]
    )


def summary(
    listing: Listing,
    chosen: Mapping[str, Sequence[View]],
    tasks: Sequence[str] | None = None,
) -> str:
    """One line: views by split, and what is missing of some tasks, by domain."""
    tasks = [task for task in listing.tasks if tasks is None or task in tasks]
    used = [view for views in chosen.values() for view in views]
    buildings = len({view.building for view in used})
    counts = " and ".join(f"{len(views)} {split}" for split, views in chosen.items())
    plural = "s" if buildings > 1 else ""
    line = f"Taskonomy: {counts} views of {buildings} building{plural}"
    have = Counter(task for view in used for task in view.places)
    absent = [
        f"{layout.name(task)} {len(used) - have[task]}"
        for task in tasks
        if have[task] < len(used)
    ]
    if absent:
        line += f"; masked where a file is missing: {', '.join(absent)} views"
    blind = sum(_is_blind(view, tasks) for view in used)
    if blind:
        line += (
            f"; holes count as surfaces in {blind} views without depth_euclidean, "
            "depth_zbuffer, mask_valid, normal or principal_curvature"
        )
    unused = len(listing.views) - len(used)
    if unused:
        line += f"; {unused} views of buildings outside the split lists are not used"
    if listing.without_picture:
        line += f"; {listing.without_picture} views without rgb are not used"
    return line + "."


def _is_blind(view: View, tasks: Sequence[str]) -> bool:
    """Whether a target of the view is known but for holes, and no file shows these."""
    shown = (*layout.DEPTHS, layout.MASK, *layout.HOLES)
    return not any(task in view.places for task in shown) and any(
        task in view.places and layout.DOMAINS[task].masked_by_depth for task in tasks
    )


def _files(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.DirEntry]]:
    """Yields (folder, file) of all files below, in the order of their names."""
    with os.scandir(root) as entries:
        here = sorted(entries, key=lambda entry: entry.name)
    for entry in here:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name not in _OTHER_FOLDERS:
                yield from _files(pathlib.Path(entry.path))
        else:
            yield root, entry


def _add(
    found: dict[tuple[str, int, int], View],
    root: pathlib.Path,
    folder: pathlib.Path,
    entry: os.DirEntry,
) -> bool:
    """Adds a file to its view; whether it is one of a domain that is read."""
    match = _FILE.fullmatch(entry.name)
    if match is None:
        return False
    task = layout.TASK_OF_NAME.get(match[4])
    parts = folder.relative_to(root).parts
    if task and any(layout.MASK in part for part in parts):
        task = layout.MASK
    if not task or entry.stat().st_size < EMPTY_BYTES:
        return False
    building = _building(parts)
    key = (building, int(match[2]), int(match[3]))
    view = found.setdefault(key, View(*key, match[1], {}))
    if task in view.places:
        raise InputError(
            f"A view must have one file per domain, but '{view.path(task)}' and "
            f"'{entry.path}' belong to the same view; remove one of them."
        )
    view.places[task] = Place(str(folder), match[4], entry.stat().st_size)
    return True


def _building(parts: Sequence[str]) -> str:
    """The building that the folders name: what is left of them besides domains."""
    names = []
    for part in parts:
        for domain in layout.TASK_OF_NAME:
            part = part.removesuffix(f"_{domain}")
        if part not in _NOT_BUILDINGS and part not in names:
            names.append(part)
    return "/".join(names)


def list_name(building: str) -> str:
    """A building as lists have it: its own folder's name, in small letters."""
    return building.rsplit("/", 1)[-1].lower()


def _read_lists(paths: Sequence[pathlib.Path]) -> dict[str, str] | None:
    """Split by building, from files with the columns id, train, val and test."""
    split_of = {}
    for path in paths:
        for row in _rows(path):
            chosen = [SPLITS[name] for name in SPLITS if row[name] == "1"]
            name = list_name(row["id"])
            if name in split_of:
                chosen.append(split_of[name])
            if len(set(chosen)) > 1:
                raise InputError(
                    "A building must be in one split only, but the lists have "
                    f"{row['id']!r} in {' and '.join(sorted(set(chosen)))} (the last "
                    f"list is '{path}'); correct or remove one."
                )
            if chosen:
                split_of[name] = chosen[0]
    return split_of if paths else None


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a split list, which has the columns that it must have."""
    try:
        text = _read_list(path).decode()
        rows = csv.DictReader(
            io.StringIO(text, newline=""), skipinitialspace=True, restval=""
        )
        columns, found = rows.fieldnames or (), list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"A split list must be a text table in UTF-8, but '{path}' is not "
            f"({files.reason(error)}); download it again."
        ) from error
    if not {"id", *SPLITS} <= set(columns):
        raise InputError(
            "A split list must have the columns id, train, val and test, but "
            f"'{path}' has {', '.join(columns) or 'none'}; download it again."
        )
    return found


def _read_list(path: pathlib.Path) -> bytes:
    """The bytes of a split list."""
    return files.read_bytes(path, _LARGEST_LIST)
