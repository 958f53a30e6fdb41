# SPDX-License-Identifier: Apache-2.0
"""The wheel: all that the package reads, what messages point to, and its metadata."""

from __future__ import annotations

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy: building leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    for name in ("mtr_tf", "docs", "flags"):
        ignored = shutil.ignore_patterns("__pycache__", "results", "images")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", str(copy)]
    command += ["--no-build-isolation", "-w", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "BackendUnavailable" in done.stderr or "No module named" in done.stderr:
        pytest.skip("needs pip, and setuptools 77 or later")
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_it_has_every_file_of_the_package(wheel):
    own = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mtr_tf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert own <= set(wheel.namelist())
    others = {name.split("/")[0] for name in wheel.namelist()} - {"mtr_tf"}
    assert all(re.fullmatch(r"mtr_tf-.*\.(dist-info|data)", name) for name in others)


def test_it_has_the_pages_and_flagfiles_that_messages_name(wheel):
    pattern, named = r"\b(?:docs|flags)/\w+\.(?:md|flags)", set()
    for path in (ROOT / "mtr_tf").rglob("*.py"):
        named |= set(re.findall(pattern, path.read_text()))
    assert "docs/own_data.md" in named
    installed = [n.split(".data/data/share/mtr_tf/") for n in wheel.namelist()]
    assert named <= {parts[1] for parts in installed if len(parts) == 2}
    assert any(name.endswith("flags/attack_strong.flags") for name in wheel.namelist())


def test_its_metadata_is_whole_and_readme_stands_alone(wheel):
    (name,) = [n for n in wheel.namelist() if n.endswith("dist-info/METADATA")]
    said = email.message_from_bytes(wheel.read(name))
    for field in ("Author", "Home-page", "Keywords", "Summary", "License-Expression"):
        assert said[field], field
    assert len(said.get_all("Classifier")) > 5
    needed = [re.sub("-", "_", line) for line in said.get_all("Requires-Dist")]
    (of_files,) = [line for line in needed if line.startswith("array_record")]
    assert ";" not in of_files  # On every system, while TFDS asks for it on Linux only.
    assert said["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)]*)\)", said.get_payload())
    assert all(target.startswith("https://") for target in targets)
    assert said.get_payload().startswith("# mtr_tf")


def test_what_is_installed_says_where_they_are(wheel, tmp_path):
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mtr_tf"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "share/mtr_tf/docs, the flagfiles in" in done.stdout
