# SPDX-License-Identifier: Apache-2.0
"""mtr_tf: train multi-output vision models and measure how robust each output is.

A Keras 3 / TensorFlow implementation of "Multitask Learning Strengthens Adversarial
Robustness" (Mao et al., ECCV 2020, arXiv 2007.07236). Importing this package does not
import TensorFlow, so that `--help` is instant; its modules do.
"""

__version__ = "0.2.0"
