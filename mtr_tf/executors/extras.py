# SPDX-License-Identifier: Apache-2.0
"""Libraries that only some executors need."""

from __future__ import annotations

import importlib
from typing import Any

from mtr_tf.errors import InputError


def library(name: str, executor: str) -> Any:
    """Imports a library by name, for the executor that needs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"--executor={executor} needs {name}, which is not installed; run pip "
            f"install {name}, on all machines."
        ) from error
