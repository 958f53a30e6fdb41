# SPDX-License-Identifier: Apache-2.0
"""The API reference can be made from the docstrings, without an error."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_reference_is_whole(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc, of the extra site, makes the reference")
    process = subprocess.run(
        [sys.executable, ROOT / "docs" / "reference.py", "--out", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "mtr_tf" / "attacks.html").is_file()
