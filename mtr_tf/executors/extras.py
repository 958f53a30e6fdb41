# SPDX-License-Identifier: Apache-2.0
"""Libraries that only some executors need."""

from __future__ import annotations

import importlib
from typing import Any

from mtr_tf.errors import InputError


def library(name: str, executor: str) -> Any:
    """A library by its name; the extra of the package is called as the executor is."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"--executor={executor} needs {name}, which is not installed; install it: "
            f'pip install "mtr_tf[{executor}]".'
        ) from error
