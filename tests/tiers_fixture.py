# SPDX-License-Identifier: Apache-2.0
"""What the quick tests leave to the whole suite."""

from __future__ import annotations

import pytest


def slow(*values):
    """A case of a test that the quick tests leave out."""
    return pytest.param(*values, marks=pytest.mark.slow)
