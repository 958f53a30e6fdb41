# SPDX-License-Identifier: Apache-2.0
"""mtr_tf: how robust each output of a multi-task vision model is.

In five lines, for any Keras model and any iterable of examples:

    import mtr_tf

    results = mtr_tf.evaluate(model, examples, attacks=["pgd", "apgd"], eps=[1, 2, 4])
    print(results.table())
    results.plot("curves.png")

Measure and train models of one's own:

- `evaluate` attacks a model, as `python -m mtr_tf.attack` does; `Results` is what it
  gives.
- `RobustnessCallback` shows in one's own `fit` how robust each output becomes.
- `AdversarialModel` trains a model of one's own on attacked images.

What the other commands do, each in one call with the names of its flags:

- `train_model` trains one of our models; `evaluate("runs/NAME")` attacks it.
- `compare_runs` puts finished attacks side by side.
- `convert_weights` makes a run of PyTorch weights.
- `reproduce_study` trains and attacks many models, and says which claims hold.

Parts:

- `attacks`: attacks by themselves, losses that they raise, objectives.
- `data`: data sets, and how one's own become one.
- `models`: our models.
- `tasks`: what an output means and how it is scored; `tasks.Task` makes one's own.
- `InputError`: what is raised where a user can put something right.

A Keras 3 / TensorFlow implementation of "Multitask Learning Strengthens Adversarial
Robustness" (Mao et al., ECCV 2020, arXiv 2007.07236). Importing this package does not
import TensorFlow, so that `--help` is instant; what is above does, when it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

# Each public name and the module that has it, imported when it is first asked for;
# what is named "" is a module itself. The types are in __init__.pyi.
_PUBLIC = {
    "AdversarialModel": "api.adversarial",
    "InputError": "errors",
    "Results": "api.results",
    "RobustnessCallback": "api.callback",
    "Task": "tasks",
    "TaskSet": "tasks",
    "attacks": "",
    "compare_runs": "api.commands",
    "convert_weights": "api.commands",
    "data": "",
    "evaluate": "api.evaluate",
    "models": "",
    "reproduce_study": "api.commands",
    "tasks": "",
    "train_model": "api.commands",
}
# pyrefly: ignore[unresolvable-dunder-all]  (read off the table)
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """What is asked for, from its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name] or name}")
    globals()[name] = value = getattr(module, name) if _PUBLIC[name] else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "annotations", "importlib"})
