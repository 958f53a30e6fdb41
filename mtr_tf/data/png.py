# SPDX-License-Identifier: Apache-2.0
"""Decodes PNG files of 8 or 16 bits as they are."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
from PIL import Image

from mtr_tf import files
from mtr_tf.errors import InputError

MOST_PIXELS = 2**26  # 8192 x 8192: the largest picture's memory is a fifth of a GB.
LARGEST_FILE = 2**28  # Bytes: more than so many pixels of photographs take as PNG.
_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # Width and height come next.

# What Pillow calls 16 bits of grey; "I" in older versions, with 32 bits to hold them.
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes, name: str) -> np.ndarray:
    """Returns [H, W] uint8 or uint16, or the colours [H, W, 3] uint8; no transparency.

    The numbers of a palette's colours are returned, not the colours.

    Args:
      data: of the file.
      name: its name, for messages.

    Raises:
      InputError: it is not whole, or is no PNG file.
    """
    picture = read(data, name)
    if picture.mode in _SIXTEEN_BITS:
        return np.asarray(picture).astype(np.uint16)
    if picture.mode in ("L", "P"):
        return np.asarray(picture)
    if picture.mode in ("1", "LA"):
        return np.asarray(picture.convert("L"))
    return np.asarray(picture.convert("RGB"))


def read(data: bytes, name: str) -> Image.Image:
    """Returns the picture as Pillow has it, once all of the file is checked and read.

    The arguments, and what is raised, are those of `decode`.
    """
    if data.startswith(_START) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        _check_pixels(width, height, name)
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # The checksums.
        picture = Image.open(io.BytesIO(data), formats=("PNG",))
        _check_pixels(*picture.size, name)  # Of a second head, in strange files.
        picture.load()
    except InputError:
        raise
    except Exception as error:  # Pillow raises nearly every kind on a damaged file.
        raise InputError(
            f"'{name}' must be a complete PNG file, but cannot be read "
            f"({type(error).__name__}: {files.reason(error)}); download it again."
        ) from error
    return picture


def _check_pixels(width: int, height: int, name: str) -> None:
    """Raises `InputError` for a picture that is too large, before it is read."""
    if width * height > MOST_PIXELS:
        raise InputError(
            f"'{name}' must have at most {MOST_PIXELS:,} pixels, but has {width} x "
            f"{height}; make it smaller, or remove it."
        )


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of a file, which may be a PNG file by its size.

    Raises:
      InputError: it cannot be read, or is too large.
    """
    try:
        return files.read_bytes(path, LARGEST_FILE)
    except OSError as error:
        raise InputError(
            f"'{os.fspath(path)}' must be a complete PNG file, but cannot be read "
            f"({error.strerror or error}); restore it, or download it again."
        ) from error
