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
        ignore = shutil.ignore_patterns("__pycache__", "results", "images")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", str(copy)]
    command += ["--no-build-isolation", "-w", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True)
    if "BackendUnavailable" in process.stderr or "No module named" in process.stderr:
        pytest.skip("needs pip, and setuptools 77 or later")
    assert process.returncode == 0, process.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


def test_it_has_every_file_of_the_package(wheel):
    package_files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mtr_tf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package_files <= set(wheel.namelist())
    folders = {name.split("/")[0] for name in wheel.namelist()} - {"mtr_tf"}
    assert all(re.fullmatch(r"mtr_tf-.*\.(dist-info|data)", name) for name in folders)


def test_it_has_the_pages_and_flagfiles_that_messages_name(wheel):
    pattern, paths = r"\b(?:docs|flags)/\w+\.(?:md|flags)", set()
    for path in (ROOT / "mtr_tf").rglob("*.py"):
        paths |= set(re.findall(pattern, path.read_text()))
    assert "docs/own_data.md" in paths
    name_parts = [n.split(".data/data/share/mtr_tf/") for n in wheel.namelist()]
    assert paths <= {parts[1] for parts in name_parts if len(parts) == 2}
    assert any(name.endswith("flags/attack_strong.flags") for name in wheel.namelist())


def test_its_metadata_is_whole_and_readme_stands_alone(wheel):
    (name,) = [n for n in wheel.namelist() if n.endswith("dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    for field in ("Author", "Home-page", "Keywords", "Summary", "License-Expression"):
        assert metadata[field], field
    assert len(metadata.get_all("Classifier")) > 5
    requirements = [
        re.sub("-", "_", line) for line in metadata.get_all("Requires-Dist")
    ]
    (requirement,) = [line for line in requirements if line.startswith("array_record")]
    # On every system, while TFDS asks for it on Linux only.
    assert ";" not in requirement
    assert metadata["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert all(target.startswith("https://") for target in targets)
    assert metadata.get_payload().startswith("# mtr_tf")


def test_what_is_installed_says_where_they_are(wheel, tmp_path):
    wheel.extractall(tmp_path)
    process = subprocess.run(
        [sys.executable, "-m", "mtr_tf"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "share/mtr_tf/docs, the flagfiles in" in process.stdout
