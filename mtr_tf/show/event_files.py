# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's files of a training that continues: each step appears once, in order.

A training that was killed may have written steps after its last checkpoint, which it
repeats when it continues. Readers take files in the order of their names, which begin
with the time. So a training that continues first puts the valid steps into one file,
whose name sorts before that of its next file.
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

# The names that `Board` gives: TIME.HOST.PID.NUMBER.SUFFIX; a training has no suffix.
_TRAINING_FILE = re.compile(r"events\.out\.tfevents\.\d+\..*\.\d+\.\d+\.(before)?")


def keep_until(
    folder: pathlib.Path,
    step: int,
    places: Mapping[pathlib.Path, Callable[[str], str]],
) -> None:
    """Merges the events of several folders into one file, keeping steps 1 to `step`.

    The next start of the training writes step 0 again. The merged file begins a new
    session, which tells readers that have the old files open to forget them.

    Args:
      folder: Where the merged file is written.
      step: The last step that is kept.
      places: {folder with event files, `folder` among them: function from an old tag
        to the new one}.
    """
    sources = {
        file: rename
        for place, rename in places.items()
        for file in files.listed(place)
        if _TRAINING_FILE.fullmatch(file.name)
    }
    if not sources:
        return
    folder.mkdir(exist_ok=True)
    files.clear_leftovers(*places)
    events = {}
    for file, rename in sources.items():
        for event in _events(file):
            if 0 < event.step <= step:
                for value in event.summary.value:
                    value.tag = rename(value.tag)
                tags = tuple(value.tag for value in event.summary.value)
                events[event.step, tags] = event
    stamp = f"{int(time.time()) - 1:010d}.{socket.gethostname()}.{os.getpid()}"
    path = folder / "before"  # A name that readers ignore, until it is complete.
    with (
        files.whole_file(path) as temp_path,
        tf.io.TFRecordWriter(str(temp_path)) as writer,
    ):
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        session_start = {"session_log": start}  # Twice: readers skip the first one.
        for fields in ({"file_version": "brain.Event:2"}, session_start, session_start):
            event = tf.compat.v1.Event(wall_time=time.time(), **fields)
            writer.write(event.SerializeToString())
        for key in sorted(events, key=lambda key: key[0]):
            writer.write(events[key].SerializeToString())
    merged_file = path.rename(folder / f"events.out.tfevents.{stamp}.0.before")
    for file in sources:
        if file != merged_file:
            file.unlink()
    for place in reversed(list(places)):
        with contextlib.suppress(OSError):  # It is not empty.
            place.rmdir()


def _events(file: pathlib.Path) -> Iterator[tf.compat.v1.Event]:
    """The events of a file with a summary, up to where a killed process stopped."""
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    while True:
        try:
            event = tf.compat.v1.Event.FromString(next(records))
        except (StopIteration, tf.errors.DataLossError, ValueError):
            return
        if event.HasField("summary"):
            yield event
