# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's files of a training that continues: each step is there once, in order.

A training that was killed has already shown steps after its last checkpoint, which it
will do again; and readers take files in the order of their names, which begin with the
time. So, when training continues, it puts the valid steps into one file, whose name
comes before that of the next.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import socket
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

import tensorflow as tf

from mtr_tf import files

# As `Board` has them named: TIME.HOST.PID.NUMBER.SUFFIX; a training has no suffix.
_OF_TRAINING = re.compile(r"events\.out\.tfevents\.\d+\..*\.\d+\.\d+\.(before)?")


def keep_until(
    folder: pathlib.Path,
    step: int,
    places: Mapping[pathlib.Path, Callable[[str], str]],
) -> None:
    """Leaves of the steps in a folder those from 1 to `step`.

    What stands at step 0 is for the next start to write. A reader that has the former
    files open learns by a session's start to forget them.

    Args:
      folder: Where they are written.
      step: The last that is kept.
      places: Folders from which they are put there, that one too, each with what makes
        its tags the new ones.
    """
    former = {
        file: renamed
        for place, renamed in places.items()
        for file in files.listed(place)
        if _OF_TRAINING.fullmatch(file.name)
    }
    if not former:
        return
    folder.mkdir(exist_ok=True)
    files.clear_leftovers(*places)
    kept = {}
    for file, renamed in former.items():
        for event in _events(file):
            if 0 < event.step <= step:
                for value in event.summary.value:
                    value.tag = renamed(value.tag)
                tags = tuple(value.tag for value in event.summary.value)
                kept[event.step, tags] = event
    stamp = f"{int(time.time()) - 1:010d}.{socket.gethostname()}.{os.getpid()}"
    written = folder / "before"  # No name that readers know, until it is whole.
    with files.whole_file(written) as beside, tf.io.TFRecordWriter(str(beside)) as out:
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        again = {"session_log": start}  # Twice: readers pass over the first they meet.
        for head in ({"file_version": "brain.Event:2"}, again, again):
            event = tf.compat.v1.Event(wall_time=time.time(), **head)
            out.write(event.SerializeToString())
        for key in sorted(kept, key=lambda key: key[0]):
            out.write(kept[key].SerializeToString())
    whole = written.rename(folder / f"events.out.tfevents.{stamp}.0.before")
    for file in former:
        if file != whole:
            file.unlink()
    for place in reversed(list(places)):
        with contextlib.suppress(OSError):  # It is not empty.
            place.rmdir()


def _events(file: pathlib.Path) -> Iterator[tf.compat.v1.Event]:
    """The events of a file with a summary, up to where a killed process broke off."""
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    while True:
        try:
            event = tf.compat.v1.Event.FromString(next(records))
        except (StopIteration, tf.errors.DataLossError, ValueError):
            return
        if event.HasField("summary"):
            yield event
