# SPDX-License-Identifier: Apache-2.0
"""How targets are stored: one array holds a target and where it is known.

Labels are bytes, class + 1. Bounded targets are 16-bit codes from 1, in 65534 steps
between the bounds: finer than the files, which have 8 bits, or 16 bits before they are
averaged. In both, code 0 stands for "not known". Unbounded targets are float32, with
NaN for "not known".
"""

from __future__ import annotations

import numpy as np

from mtr_tf.data.taskonomy import layout

_STEPS = 65534


def spec(task: str, size: tuple[int, int]) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape and type of a task's codes."""
    domain = layout.DOMAINS[task]
    if domain.stored == np.uint8:
        return size, domain.stored
    return (*size, domain.channels), domain.stored


def unknown(task: str, size: tuple[int, int]) -> np.ndarray:
    """The codes of a target that is not known anywhere."""
    shape, kind = spec(task, size)
    return np.full(shape, np.nan if kind == np.float32 else 0, kind)


def _span(task: str) -> tuple[float, float]:
    """(low, high) of the targets of a task that is stored as uint16."""
    span = layout.DOMAINS[task].span
    assert span is not None  # noqa: S101
    return span


def encode(task: str, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Codes of a target ([h, w] labels or [h, w, C]) that is known where `valid`."""
    shape, kind = spec(task, valid.shape)
    if kind == np.uint8:
        codes = target + 1
    elif kind == np.uint16:
        low, high = _span(task)
        codes = 1 + np.rint((target - low) / (high - low) * _STEPS)
    else:
        codes = target
    valid_values = valid.reshape(valid.shape + (1,) * (len(shape) - 2))
    return np.where(valid_values, codes, unknown(task, valid.shape)).astype(kind)


def target(task: str, codes: np.ndarray) -> np.ndarray:
    """Targets of codes [..., h, w] or [..., h, w, C]; 0 where not known.

    Returns:
      uint8 labels, or float32.
    """
    valid = _valid_mask(codes)
    if codes.dtype == np.uint8:
        return np.where(valid, codes - 1, 0).astype(np.uint8)
    if codes.dtype == np.uint16:
        low, high = map(np.float32, _span(task))
        step = (high - low) / np.float32(_STEPS)
        codes = low + (codes.astype(np.float32) - np.float32(1)) * step
    return np.where(valid, codes, np.float32(0))


def metres(task: str, codes: np.ndarray) -> np.ndarray:
    """Depths in metres of the codes of logarithms: float32 [..., 1], 0 where not known.

    From a mean of logarithms, this is the geometric mean of the depths.
    """
    steps = np.expm1(target(task, codes) * np.float32(layout.LOG_SCALE))
    return steps / np.float32(layout.STEPS_OF_A_METRE)


def mask(codes: np.ndarray) -> np.ndarray:
    """Where a target is known: bool [N, h, w] of codes [N, h, w] or [N, h, w, C]."""
    valid = _valid_mask(codes)
    return valid if codes.dtype == np.uint8 else valid[..., 0]


def _valid_mask(codes: np.ndarray) -> np.ndarray:
    return ~np.isnan(codes) if codes.dtype == np.float32 else codes != 0
