# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a Taskonomy folder.

A file is recognised by its name, point_P_view_V_domain_DOMAIN.png, and its building by
the folders other than the domain. So all published arrangements are understood:
DOMAIN/FILE (one building, as the sample), BUILDING/DOMAIN/FILE, DOMAIN/BUILDING/FILE,
DOMAIN/taskonomy/BUILDING/FILE (the Omnidata downloads) and BUILDING_DOMAIN/DOMAIN/FILE
(the unpacked archives).

Files below a folder called mask_valid (Omnidata's masks of holes) are masks, whatever
domain their names have.
"""

from __future__ import annotations

import array
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from mtr_tf import files
from mtr_tf.data.source import given_folder
from mtr_tf.data.taskonomy import layout
from mtr_tf.errors import InputError

# Smaller files hold no picture; the released loader takes such labels as missing.
EMPTY_BYTES = 100
_LARGEST_LIST = 2**24  # Bytes.

# Taskonomy has no longer numbers, and they would not fit into 64 bits.
_FILE = re.compile(r"(point_(\d{1,18})_view_(\d{1,18}))_domain_(\w+)\.png")
_LIST = re.compile(r"train_val_test_\w+\.csv")
SPLITS = {"train": "train", "val": "validation", "test": "test"}
_NOT_BUILDINGS = {*layout.TASK_OF_NAME, "taskonomy"}
_TASKS = (*layout.DOMAINS, layout.RGB, layout.MASK)
_PICTURE = _TASKS.index(layout.RGB)
# Folders to skip: the same pictures again, under the same names; and a folder at the
# root of file systems that only its owner may read.
_OTHER_FOLDERS = ("rgb_large", "lost+found")
_WHAT = (
    "a folder of Taskonomy with files such as rgb/point_0_view_0_domain_rgb.png in it, "
    "of one building or of several"
)


class Place(NamedTuple):
    """Where a view's file of a domain is, and how large it is.

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
    places: Mapping[str, Place]

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


class Views(Sequence[View]):
    """Views of a folder, created on access from a few numbers each."""

    def __init__(self, table: _Table, rows: np.ndarray):
        """`rows` are the numbers of the views in the table, in their order here."""
        self._table, self._rows = table, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Views(self._table, self._rows[place])
        return self._table.view(int(self._rows[place]))

    def select(self, places: Sequence[int]) -> Views:
        """The views at some places of this sequence."""
        return Views(self._table, self._rows[np.asarray(places, np.int64)])


class Names(Sequence[str]):
    """The names of views, created on access."""

    def __init__(self, views: Sequence[View]):
        self._views = views

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Names(self._views[place])
        return self._views[place].name


class _Table:
    """The files of all views, as numbers of folders and sizes: 0.3 KB for each view.

    As Python objects, views would take 2 KB each: 9 GB for all of Taskonomy.
    """

    def __init__(self):
        self._rows: dict[int, int] = {}  # By building, point and view.
        self._buildings, self._folders = _Numbers(), _Numbers()
        self._building, self._place = array.array("i"), array.array("i")
        self._point, self._view = array.array("q"), array.array("q")
        self._size = array.array("q")
        self._stems: dict[int, str] = {}  # Only those with leading zeros.

    def __len__(self) -> int:
        return len(self._building)

    def add(
        self, building: str, match: re.Match, task: str, folder: str, size: int
    ) -> None:
        """Adds a file; raises `InputError` if its view already has one of the task."""
        stem, point, view = match[1], int(match[2]), int(match[3])
        number = self._buildings.of(building)
        key = (number << 120) | (point << 60) | view
        row = self._rows.setdefault(key, len(self._rows))
        if row == len(self):
            self._building.append(number)
            self._point.append(point)
            self._view.append(view)
            self._place.extend([-1] * len(_TASKS))
            self._size.extend([0] * len(_TASKS))
            if stem != f"point_{point}_view_{view}":
                self._stems[row] = stem
        cell = row * len(_TASKS) + _TASKS.index(task)
        if self._place[cell] >= 0:
            raise InputError(
                "A view must have one file per domain, but "
                f"'{self.view(row).path(task)}' and "
                f"'{os.path.join(folder, match[0])}' belong to the same view; remove "
                "one of them."
            )
        self._place[cell] = self._folders.of((folder, match[4]))
        self._size[cell] = size

    def views(self) -> Views:
        """The views with a picture, by building, point and view."""
        self._rows.clear()
        names = self._buildings.things
        rank = np.zeros(len(names), np.int64)
        rank[sorted(range(len(names)), key=names.__getitem__)] = range(len(names))
        building = rank[np.array(self._building)]
        order = np.lexsort((np.array(self._view), np.array(self._point), building))
        pictures = np.array(self._place).reshape(-1, len(_TASKS))[:, _PICTURE] >= 0
        return Views(self, order[pictures[order]])

    def view(self, row: int) -> View:
        """A view by its number."""
        point, view = self._point[row], self._view[row]
        return View(
            self._buildings.things[self._building[row]],
            point,
            view,
            self._stems.get(row, f"point_{point}_view_{view}"),
            _Places(self, row),
        )

    def place(self, row: int, task: str) -> Place | None:
        """Where a view's file of a task is; None if there is none."""
        cell = row * len(_TASKS) + _TASKS.index(task) if task in _TASKS else -1
        if cell < 0 or self._place[cell] < 0:
            return None
        folder, domain = self._folders.things[self._place[cell]]
        return Place(folder, domain, self._size[cell])


class _Numbers:
    """Gives things numbers: 0, 1, ...

    Attributes:
      things: by number.
    """

    def __init__(self):
        self._number: dict[Any, int] = {}
        self.things: list[Any] = []

    def of(self, thing: Any) -> int:
        """The number of a thing; a new thing gets the next number."""
        if thing not in self._number:
            self._number[thing] = len(self.things)
            self.things.append(thing)
        return self._number[thing]


class _Places(Mapping[str, Place]):
    """The files of a view, by task and `layout.RGB`."""

    __slots__ = ("_row", "_table")

    def __init__(self, table: _Table, row: int):
        self._table, self._row = table, row

    def __getitem__(self, task: str) -> Place:
        place = self._table.place(self._row, task)
        if place is None:
            raise KeyError(task)
        return place

    def __contains__(self, task: object) -> bool:
        return self._table.place(self._row, str(task)) is not None

    def __iter__(self) -> Iterator[str]:
        return (task for task in _TASKS if task in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
      views: those with a picture, by building, point and view.
      without_picture: number of views that have other files, but no picture.
      lists: split by building, from the split lists; None if there are no lists.
      fingerprint: 16 hexadecimal digits that change with the files' names and sizes.
    """

    views: Views
    without_picture: int
    lists: Mapping[str, str] | None
    fingerprint: str

    @functools.cached_property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of which at least one view has a file, in the order of `DOMAINS`."""
        view_tasks = {task for view in self.views for task in view.places}
        return tuple(task for task in layout.DOMAINS if task in view_tasks)


def scan(data_dir: str | None) -> Listing:
    """Lists a Taskonomy folder; opens no picture.

    Raises:
      InputError: there is no such folder, or no view in it; a view has two files of one
        domain; a split list is broken.
    """
    root = given_folder("Taskonomy", data_dir, _WHAT)
    digest = hashlib.sha256()
    table, lists = _Table(), []

    @functools.cache
    def folder_facts(folder: pathlib.Path) -> tuple[pathlib.Path, str, bool]:
        relative_path = folder.relative_to(root)
        is_masks = any(layout.MASK in part for part in relative_path.parts)
        return relative_path, _building(relative_path.parts), is_masks

    for folder, entry in _files(root):
        if _LIST.fullmatch(entry.name):
            lists.append(pathlib.Path(entry.path))
            digest.update(_read_list(lists[-1]))
            continue
        match = _FILE.fullmatch(entry.name)
        task = layout.TASK_OF_NAME.get(match[4]) if match else None
        if match is None or task is None:
            continue
        size = entry.stat().st_size
        if size >= EMPTY_BYTES:
            relative_path, building, is_masks = folder_facts(folder)
            task = layout.MASK if is_masks else task
            table.add(building, match, task, str(folder), size)
            digest.update(os.fsencode(f"{relative_path / entry.name} {size}\n"))
    views = table.views()
    if not views:
        raise InputError(f"'{data_dir}' must be {_WHAT}; none was found there.")
    return Listing(
        views, len(table) - len(views), _read_lists(lists), digest.hexdigest()[:16]
    )


def summary(
    listing: Listing,
    views_by_split: Mapping[str, Sequence[View]],
    tasks: Sequence[str] | None = None,
) -> str:
    """One line: views by split, and what is missing of some tasks, by domain."""
    tasks = [task for task in listing.tasks if tasks is None or task in tasks]
    file_counts: Counter[str] = Counter()
    view_count, blind_count, buildings = 0, 0, set()
    for view in itertools.chain.from_iterable(views_by_split.values()):
        view_count += 1
        buildings.add(view.building)
        file_counts.update(iter(view.places))
        blind_count += _is_blind(view, tasks)
    counts = " and ".join(
        f"{len(views)} {split}" for split, views in views_by_split.items()
    )
    plural = "s" if len(buildings) > 1 else ""
    line = f"Taskonomy: {counts} views of {len(buildings)} building{plural}"
    missing = [
        f"{layout.name(task)} {view_count - file_counts[task]}"
        for task in tasks
        if file_counts[task] < view_count
    ]
    if missing:
        line += f"; masked where a file is missing: {', '.join(missing)} views"
    if blind_count:
        line += (
            f"; holes count as surfaces in {blind_count} views without "
            "depth_euclidean, depth_zbuffer, mask_valid, normal or principal_curvature"
        )
    unused_count = len(listing.views) - view_count
    if unused_count:
        line += (
            f"; {unused_count} views of buildings outside the split lists are not used"
        )
    if listing.without_picture:
        line += f"; {listing.without_picture} views without rgb are not used"
    return line + "."


def _is_blind(view: View, tasks: Sequence[str]) -> bool:
    """Whether the view has a target with holes, but no file that shows the holes."""
    hole_tasks = (*layout.DEPTHS, layout.MASK, *layout.HOLES)
    return not any(task in view.places for task in hole_tasks) and any(
        task in view.places and layout.DOMAINS[task].masked_by_depth for task in tasks
    )


def _files(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.DirEntry]]:
    """Yields (folder, file) for all files below `root`, in the order of their names."""
    with os.scandir(root) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    for entry in children:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name not in _OTHER_FOLDERS:
                yield from _files(pathlib.Path(entry.path))
        else:
            yield root, entry


def _building(parts: Sequence[str]) -> str:
    """The building that the folders name: their names without those of domains."""
    names = []
    for part in parts:
        for domain in layout.TASK_OF_NAME:
            part = part.removesuffix(f"_{domain}")
        if part not in _NOT_BUILDINGS and part not in names:
            names.append(part)
    return "/".join(names)


def list_name(building: str) -> str:
    """A building's name as in the lists: its folder's name in lower case."""
    return building.rsplit("/", 1)[-1].lower()


def _read_lists(paths: Sequence[pathlib.Path]) -> dict[str, str] | None:
    """Split by building, from files with the columns id, train, val and test."""
    split_of = {}
    for path in paths:
        for row in _rows(path):
            row_splits = [SPLITS[name] for name in SPLITS if row[name] == "1"]
            name = list_name(row["id"])
            if name in split_of:
                row_splits.append(split_of[name])
            if len(set(row_splits)) > 1:
                raise InputError(
                    "A building must be in one split only, but the lists have "
                    f"{row['id']!r} in {' and '.join(sorted(set(row_splits)))} (the "
                    f"last list is '{path}'); correct or remove one."
                )
            if row_splits:
                split_of[name] = row_splits[0]
    return split_of if paths else None


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a split list, whose columns are checked."""
    try:
        text = _read_list(path).decode("utf-8-sig")  # Spreadsheets write a mark first.
        reader = csv.DictReader(
            io.StringIO(text, newline=""), skipinitialspace=True, restval=""
        )
        columns, rows = reader.fieldnames or (), list(reader)
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
    return rows


def _read_list(path: pathlib.Path) -> bytes:
    """The bytes of a split list."""
    return files.read_bytes(path, _LARGEST_LIST)
