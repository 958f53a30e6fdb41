# SPDX-License-Identifier: Apache-2.0
"""The notebooks of docs/notebooks run, and are kept with their pictures."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
IDS = {"ids": lambda path: path.stem}


@pytest.mark.parametrize("path", NOTEBOOKS, **IDS)
def test_it_is_kept_as_it_ran(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    assert path.stat().st_size < 400_000
    assert "/work/" not in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, **IDS)
def test_it_runs(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="of the extra test")
    nbclient = pytest.importorskip("nbclient", reason="of the extra test")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT)]))
    nbclient.NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["your_model", "your_training"]
