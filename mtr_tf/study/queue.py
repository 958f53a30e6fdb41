# SPDX-License-Identifier: Apache-2.0
"""The queue of cells: which one is next, and which are done, failed or missing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from collections.abc import Sequence

from mtr_tf.study.commands import Cell

DONE = "done"
MISSING = "missing"
FAILED = "failed"
_RUNNING = "running"


class Queue:
    """The cells of a study, in order; each is done once, after the cells it needs.

    The next cell is the first one that is missing and has all that it needs. So seeds
    are completed one after the other, and a worker never waits while there is work.
    """

    def __init__(self, cells: Sequence[Cell], folders: Iterable[str]):
        """Takes all cells, each after its needs, and the folders of those to run."""
        self.cells = tuple(cells)
        self._states = dict.fromkeys((cell.folder for cell in cells), MISSING)
        self._chosen = set(folders)
        self._needed_by: dict[str, list[int]] = {}
        for number, cell in enumerate(self.cells):
            for need in cell.needs:
                self._needed_by.setdefault(need, []).append(number)
        self._next: list[int] = list(range(len(self.cells)))  # A heap of candidates.

    def set(self, cell: Cell, state: str) -> None:
        """Sets the state of a cell."""
        self._states[cell.folder] = state
        if state == DONE:
            for number in self._needed_by.get(cell.folder, ()):
                heapq.heappush(self._next, number)

    def retry(self) -> None:
        """Marks failed cells as missing, so that they run again."""
        for folder, state in self._states.items():
            if state == FAILED:
                self._states[folder] = MISSING
        self._next = list(range(len(self.cells)))

    def take(self) -> Cell | None:
        """The next cell, which counts as running from now on; None if none can run."""
        while self._next:
            cell = self.cells[heapq.heappop(self._next)]
            ready = all(self._states[need] == DONE for need in cell.needs)
            if ready and self._waits(cell):
                self._states[cell.folder] = _RUNNING
                return cell
        return None

    def waiting(self) -> list[Cell]:
        """The chosen cells that are still to run, without those that are blocked."""
        # Cells that need a failed one, directly or through others, are blocked.
        cells, blocked_folders = [], set()
        for cell in self.cells:
            state = self._states[cell.folder]
            is_blocked = state == MISSING and blocked_folders.intersection(cell.needs)
            if state == FAILED or is_blocked:
                blocked_folders.add(cell.folder)
            elif self._waits(cell):
                cells.append(cell)
        return cells

    def _waits(self, cell: Cell) -> bool:
        return cell.folder in self._chosen and self._states[cell.folder] == MISSING

    def state(self, cell: Cell) -> str:
        """The state of a cell: done, failed or missing; running ones are missing."""
        state = self._states[cell.folder]
        return MISSING if state == _RUNNING else state

    def is_spent(self, cell: Cell) -> bool:
        """Whether other cells need this one, and all of them are done."""
        users = [self.cells[number] for number in self._needed_by.get(cell.folder, ())]
        return bool(users) and all(self._states[user.folder] == DONE for user in users)

    def count(self, state: str) -> int:
        """The number of chosen cells in a state."""
        return sum(
            self.state(cell) == state
            for cell in self.cells
            if cell.folder in self._chosen
        )
