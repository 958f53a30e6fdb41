# SPDX-License-Identifier: Apache-2.0
"""mtr_tf: train multi-output vision models and measure how robust each output is.

A Keras 3 / TensorFlow implementation of "Multitask Learning Strengthens Adversarial
Robustness" (Mao et al., ECCV 2020, arXiv 2007.07236). Importing this package does not
import TensorFlow, so that `--help` is instant; its public names do, at their first use:

    import mtr_tf
    pgd = mtr_tf.attacks.PGD(epsilon=8 / 255, step_size=2 / 255, steps=20)
"""

import importlib
from typing import Any

__version__ = "0.2.0"

# Public names and the modules that have them, and public modules.
_NAMES = {
    "InputError": "errors",
    "Task": "tasks",
    "TaskSet": "tasks",
}
_MODULES = ("attacks", "data", "models", "tasks")
__all__ = ["__version__", *_NAMES, *_MODULES]  # pyrefly: ignore


def __getattr__(name: str) -> Any:
    """A public name, when it is first asked for."""
    if name in _MODULES:
        return importlib.import_module(f"mtr_tf.{name}")
    if name in _NAMES:
        module = importlib.import_module(f"mtr_tf.{_NAMES[name]}")
        globals()[name] = value = getattr(module, name)
        return value
    raise AttributeError(f"module 'mtr_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
