# SPDX-License-Identifier: Apache-2.0
"""Decodes PNG files of 8 or 16 bits as they are."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from mtr_tf.errors import InputError

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
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # The checksums.
        picture = Image.open(io.BytesIO(data), formats=("PNG",))
        picture.load()
    except (
        OSError,  # Also Pillow's "truncated" and "cannot identify".
        SyntaxError,  # Pillow's "broken PNG file".
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise InputError(
            f"'{name}' must be a whole PNG file, but cannot be read ({error}); fetch "
            "it again."
        ) from error
    return picture
