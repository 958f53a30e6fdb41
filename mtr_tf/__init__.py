# SPDX-License-Identifier: Apache-2.0
"""mtr_tf: find out how robust each output of a multi-task vision model is.

In five lines, for any Keras model and any iterable of examples:

    import mtr_tf

    results = mtr_tf.evaluate(model, examples, attacks=["pgd", "apgd"], eps=[1, 2, 4])
    print(results.table())
    results.plot("curves.png")

Measure and train your own models:

- `evaluate` attacks a model, like `python -m mtr_tf.attack`, and returns `Results`.
- `RobustnessCallback` shows how robust each output becomes during your own `fit`.
- `AdversarialModel` trains your own model on attacked images.

Other commands as calls (all but `export`); arguments have the names of the flags:

- `train_model` trains one of the built-in models; `evaluate("runs/NAME")` attacks it.
- `compare_runs` compares finished attacks side by side.
- `convert_weights` turns PyTorch weights into a run.
- `reproduce_study` trains and attacks many models, and says which claims hold.

Parts:

- `attacks`: attacks by themselves, the losses that they raise, objectives.
- `data`: data sets, including your own.
- `models`: the built-in models.
- `tasks`: what an output means and how it is scored; declare your own as `tasks.Task`.
- `InputError`: raised for mistakes that you can fix.

A Keras 3 / TensorFlow implementation of "Multitask Learning Strengthens Adversarial
Robustness" (Mao et al., ECCV 2020, arXiv 2007.07236). Importing this package does not
import TensorFlow, so `--help` is instant; TensorFlow is imported when one of the names
above is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

# Each public name and the module that defines it, imported on first use; "" means that
# the name is itself a module. The types are in __init__.pyi.
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
    """Imports a public name from its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name] or name}")
    globals()[name] = value = getattr(module, name) if _PUBLIC[name] else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "annotations", "importlib"})
