# SPDX-License-Identifier: Apache-2.0
"""Turns are taken one at a time, with or without locks of the file system."""

from __future__ import annotations

import errno
import fcntl
import threading
import types

import pytest

from mtr_tf.data import turns
from mtr_tf.errors import InputError

FOR_EVER = 1e9


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The path of a lock whose claims never expire; checks are frequent."""
    monkeypatch.setattr(turns, "_SILENT_SECONDS", FOR_EVER)
    monkeypatch.setattr(turns, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(turns, "_BEAT_SECONDS", 0.001)
    return tmp_path / ".it.lock"


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)


def take_turns(place, count):
    """Runs threads; how many held the turn at once each time, and which waited."""
    holders, counts, waiters = [], [], []

    def take_turn(number):
        with turns.turn(place, "it", lambda: waiters.append(number)):
            holders.append(number)
            counts.append(len(holders))
            holders.remove(number)

    threads = [threading.Thread(target=take_turn, args=(n,)) for n in range(count)]
    with turns.turn(place, "it"):
        for thread in threads:
            thread.start()
        while len(waiters) < count:
            assert not counts
    for thread in threads:
        thread.join()
    return counts, sorted(waiters)


def test_with_locks(place):
    assert take_turns(place, 4) == ([1] * 4, [0, 1, 2, 3])
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_without_locks(place, no_locks):
    assert take_turns(place, 4) == ([1] * 4, [0, 1, 2, 3])
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_claim_of_this_machine_ends_with_its_process(place):
    claim = place.with_suffix(".claim")
    claim.write_text(f"{turns.machine()} 1 ab 7")  # As after a kill.
    with turns.turn(place, "it"):
        assert claim.read_text() != f"{turns.machine()} 1 ab 7"
    assert not claim.exists()


@pytest.mark.parametrize("content", ["elsewhere 1 ab 7", ""])
def test_a_claim_that_is_silent_for_long_is_taken_over(place, monkeypatch, content):
    claim, contents = place.with_suffix(".claim"), []
    claim.write_text(content)
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(turns, "_SILENT_SECONDS", 60.0)

    def look(seconds):
        contents.append(claim.read_text())
        if len(contents) == 2:  # A sign of life: the minute starts again.
            claim.write_text("elsewhere 1 ab 8")

    time = types.SimpleNamespace(monotonic=lambda: float(next(clock)), sleep=look)
    monkeypatch.setattr(turns, "time", time)
    with turns.turn(place, "it"):
        assert claim.read_text() not in (content, "elsewhere 1 ab 8")
    assert contents == [content, content, *["elsewhere 1 ab 8"] * 3]
    assert not claim.exists()


def test_who_was_taken_for_dead_leaves_the_other_one_alone(place):
    claim = place.with_suffix(".claim")
    with turns.turn(place, "it"):
        claim.write_text("elsewhere 1 ab")
    assert claim.read_text() == "elsewhere 1 ab"


def test_a_dead_claim_that_must_not_be_removed_is_one_sentence(place, monkeypatch):
    """Like another user's in a sticky folder: the removal is not repeated."""
    claim, attempts = place.with_suffix(".claim"), []
    claim.write_text(f"{turns.machine()} 1 ab 7")

    def replace(*names):
        attempts.append(names)
        assert len(attempts) == 1, "a busy loop"
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(turns.os, "replace", replace)
    with pytest.raises(InputError) as error, turns.turn(place, "rooms"):
        pass
    owner = f"the user {claim.owner()}"
    assert str(error.value) == (
        f"{claim} says that a process of {owner} is making rooms, but there is no sign "
        "of life of that process, and its file cannot be taken away (Operation not "
        f"permitted); have {owner} or an administrator remove {claim}, or choose "
        "another folder, then repeat the command."
    )
    assert claim.exists()


def test_a_dead_claim_is_tried_again_in_a_while(place, monkeypatch):
    """For example, the file system is away for a moment."""
    claim, waits, attempts = place.with_suffix(".claim"), [], []
    replace = turns.os.replace
    claim.write_text(f"{turns.machine()} 1 ab 7")

    def fail(*names):
        attempts.append(names)
        assert len(attempts) == len(waits) + 1, "a busy loop"
        raise OSError(errno.ESTALE, "Stale file handle")

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            monkeypatch.setattr(turns.os, "replace", replace)

    time = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep)
    monkeypatch.setattr(turns, "time", time)
    monkeypatch.setattr(turns.os, "replace", fail)
    with turns.turn(place, "it"):
        assert waits == [turns._LOOK_SECONDS] * 3
    assert not claim.exists()
