# SPDX-License-Identifier: Apache-2.0
"""Rooms: ray-cast indoor scenes with exact targets for all eleven tasks.

`open_source` prepares the data set if that has not been done, and reads it. `render`
says what the targets mean, with their axes, signs and units; `scene`, `sampling`,
`geometry`, `textures` and `shading` make the scenes. Importing this package registers
the TFDS builder ("rooms/32", "rooms/64", "rooms/128"); it does not import TensorFlow.
"""

from mtr_tf.data.rooms.reading import open_source
from mtr_tf.data.rooms.rooms_dataset_builder import Rooms
from mtr_tf.data.rooms.rooms_dataset_builder import RoomsConfig

__all__ = ["Rooms", "RoomsConfig", "open_source"]
