# SPDX-License-Identifier: Apache-2.0
"""Taskonomy: real indoor scenes with targets for all eleven tasks.

Zamir et al., "Taskonomy: Disentangling Task Transfer Learning", CVPR 2018. The data are
the user's own download. `finding` says which folders are understood, `splitting` which
view is in which split, `layout` what the targets are, `transforms` how they are made
from the files, and `released` how the paper's released code makes them. Importing this
package registers the TFDS builder; it does not import TensorFlow.
"""

from mtr_tf.data.taskonomy.reading import open_source
from mtr_tf.data.taskonomy.taskonomy_dataset_builder import Taskonomy
from mtr_tf.data.taskonomy.taskonomy_dataset_builder import TaskonomyConfig

__all__ = ["Taskonomy", "TaskonomyConfig", "open_source"]
