# SPDX-License-Identifier: Apache-2.0
"""The units that intervals draw: images, groups of them, or blocks of frames.

A bootstrap assumes that what it draws is independent. Images of one building or city
are not, and neither are neighbouring frames of a video. In these cases whole groups are
drawn, or blocks of consecutive frames (Carlstein, "The use of subseries values", 1986).
With few units, intervals must be wider than percentiles; `widened` does this. With one
or two units there is no interval.

In simulations the mean lies in its 95 % interval in 93 to 96 of 100 cases for 3 or more
groups or images (88 to 94 where values are exponential). With blocks of an eighth of
all frames, at least 20, it does in 89 to 94 of 100 for 60 to 1000 frames whose
neighbours correlate by .85, as on CamVid; with single frames it does in 42. See
tests/evaluation/intervals_test.py.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from scipy import special  # pyrefly: ignore[untyped-import]  # No annotations.

from mtr_tf.errors import InputError

if TYPE_CHECKING:
    from mtr_tf.data.source import Groups

LEAST = 3  # With fewer units there is no interval.
_BLOCK = 20  # Frames of a block, at least.
_BLOCKS = 8  # Blocks at most of a long video.


@dataclasses.dataclass(frozen=True)
class Units:
    """The units that an interval draws.

    Attributes:
      of: int64 `[images]`, the number of each image's unit, from 0.
      over: "images", or the number and kind of units, such as "3 cities".
    """

    of: np.ndarray
    over: str

    @property
    def count(self) -> int:
        """How many units there are."""
        return int(self.of.max()) + 1 if len(self.of) else 0

    def sums(self, rows: np.ndarray) -> np.ndarray:
        """Sums over the images of each unit, float64 `[units, ...]`."""
        rows = np.asarray(rows, np.float64)
        if np.array_equal(self.of, np.arange(len(rows))):
            return rows
        sums = np.zeros((self.count, *rows.shape[1:]))
        np.add.at(sums, self.of, rows)
        return sums

    def count_known(self, values: np.ndarray) -> np.ndarray:
        """How many units have a number, not NaN, in each column of `[images, ...]`."""
        values = np.asarray(values)
        columns = ~np.isnan(values.reshape(len(values), -1))
        counts = [len(np.unique(self.of[column])) for column in columns.T]
        return np.array(counts, int).reshape(values.shape[1:])


def independent(count: int) -> Units:
    """`count` images that do not depend on each other."""
    return Units(np.arange(count), "images")


def units(groups: Groups | None, count: int) -> Units:
    """The units of the first `count` images of a split.

    Args:
      groups: those of the split (`data.source.Columns.groups`).
      count: number of images.
    """
    if groups is None:
        return independent(count)
    _, first_image, group = np.unique(
        np.asarray(groups.of[:count]), return_index=True, return_inverse=True
    )
    group = group.reshape(-1)
    if not groups.frames:
        return Units(group.astype(np.int64), f"{len(first_image)} {groups.name}")
    # Sorted by video, since frames of several may alternate.
    order = np.argsort(first_image[group], kind="stable")
    block = np.empty(len(group), np.int64)
    block[order] = _blocks(group[order])
    number = int(block.max()) + 1 if count else 0
    length = round(count / max(number, 1))
    noun = "block" if number == 1 else "blocks"
    return Units(block, f"{number} {noun} of about {length} frames")


def _blocks(sequence: np.ndarray) -> np.ndarray:
    """The number of each frame's block; blocks do not cross sequences.

    Args:
      sequence: int64 `[frames]`, the sequence of each frame, one after another.
    """
    shortest = max(_BLOCK, len(sequence) // _BLOCKS)
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    blocks, offset = [], 0
    for frames in np.diff([*starts, len(sequence)]):
        number = max(1, frames // shortest)
        blocks.append(offset + np.arange(frames) * number // frames)
        offset += number
    return np.concatenate([np.zeros(0, np.int64), *blocks]).astype(np.int64)


def draw(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `count` units is drawn, float64 `[resamples, count]`.

    Units are drawn with replacement, as many as there are.

    Raises:
      InputError: less than one resample.
    """
    if resamples < 1:
        raise InputError(f"resamples must be at least 1; got {resamples}.")
    if count == 0:
        return np.zeros((resamples, 0))
    indices = np.random.default_rng(seed).integers(count, size=(resamples, count))
    indices += count * np.arange(resamples)[:, np.newaxis]
    counts = np.bincount(indices.ravel(), minlength=resamples * count)
    return counts.reshape(resamples, count).astype(np.float64)


def widened(
    interval: np.ndarray | tuple[float, float],
    centre: np.ndarray | float,
    count: np.ndarray | int,
    confidence: float,
) -> np.ndarray:
    """A percentile interval of a bootstrap, widened according to the number of units.

    A bootstrap takes the spread of n units for that of the population, and its
    percentiles are those of a normal distribution. So the distances of the ends from
    the centre are multiplied by sqrt(n / (n - 1)) t / z, with t and z the quantiles of
    Student's distribution with n - 1 degrees and of the normal distribution. The
    interval is then about Student's for normal units, and stays skewed for skewed ones.
    The factor at 95 % is 1.44 for 6 units, and 1.02 for 96.

    Args:
      interval: (low, high), numbers or arrays `[...]`.
      centre: The value on all units, `[...]`.
      count: How many units were drawn, a number or `[...]`; for a single unit the
        interval is unchanged.
      confidence: The confidence of the interval.

    Returns:
      float64 `[2, ...]`.
    """
    interval = np.asarray(interval, np.float64)
    n = np.maximum(count, 2)
    level = (1 + confidence) / 2
    student, normal = special.stdtrit(n - 1, level), special.ndtri(level)
    factor = np.sqrt(n / (n - 1)) * student / normal
    wide_interval = centre + factor * (interval - centre)
    return np.where(np.asarray(count) < 2, interval, wide_interval)


def note(over: str, images: int, has_interval: bool) -> str:
    """A line about intervals: what they draw, or why there are none.

    Args:
      over: As in `Units`.
      images: The number of images.
      has_interval: Whether there is any interval.
    """
    text = f"{images} images" if over == "images" else over
    if has_interval:
        return f"intervals: 95 %, over {text}"
    return f"no intervals: they need {LEAST} or more to draw from, but there are {text}"
