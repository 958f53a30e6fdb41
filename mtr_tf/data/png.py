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
LARGEST_FILE = 2**28  # Bytes: more than MOST_PIXELS of a photograph take as PNG.
_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # Width and height come next.

# Pillow's modes for 16 bits of grey; in older versions "I", which holds 32 bits.
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes, name: str) -> np.ndarray:
    """Returns [H, W] uint8 or uint16, or the colours [H, W, 3] uint8; no transparency.

    For a picture with a palette, these are indices into the palette, not colours.

    Args:
      data: the contents of the file.
      name: its name, for messages.

    Raises:
      InputError: the file is incomplete, or not a PNG file.
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
    """Returns Pillow's picture after checking and reading the whole file.

    Arguments and errors are those of `decode`.
    """
    if data.startswith(_START) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        _check_pixels(width, height, name)
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # Its checksums.
        picture = Image.open(io.BytesIO(data), formats=("PNG",))
        _check_pixels(*picture.size, name)  # Strange files may have two headers.
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
    """The bytes of a PNG file.

    Raises:
      InputError: the file cannot be read, or is larger than LARGEST_FILE.
    """
    try:
        return files.read_bytes(path, LARGEST_FILE)
    except OSError as error:
        raise InputError(
            f"'{os.fspath(path)}' must be a complete PNG file, but cannot be read "
            f"({error.strerror or error}); restore it, or download it again."
        ) from error
