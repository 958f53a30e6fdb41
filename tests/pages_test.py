# SPDX-License-Identifier: Apache-2.0
"""README and pages: links lead somewhere, and commands use flags that exist."""

from __future__ import annotations

import importlib
import pathlib
import re
import shlex
import textwrap

import pytest
from absl import flags

from mtr_tf.cli import flags as cli_flags

ROOT = pathlib.Path(__file__).parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"  # Its blocks are parts of files.
PAGES = [ROOT / "README.md", CONTRIBUTING, *(ROOT / "docs").glob("*.md")]
TEXTS = {page: page.read_text("utf-8") for page in PAGES}
IDS = {"ids": lambda page: page.name}


def anchors(page: pathlib.Path) -> set[str]:
    """The names of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def commands(text: str) -> list[str]:
    """Our commands in a page's indented or fenced lines."""
    source = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^(?: {4})?(python -m mtr_tf\..*)$", source, re.MULTILINE)
    return [line.split("  #")[0] for line in lines]


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_commands_have_flags_that_there_are(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # Where flagfiles are.
    for line in commands(TEXTS[page]):
        if "=..." in line or "NAME.flags" in line or "ATTACK.flags" in line:
            continue
        _, _, module, *arguments = shlex.split(line)
        values = flags.FlagValues()
        for record in records_of(importlib.import_module(module), monkeypatch):
            cli_flags.define(record, values)
        values(["command", *arguments])  # Raises where a flag is unknown.


def records_of(command, monkeypatch) -> list[type]:
    """The settings that a command takes."""
    records = []
    monkeypatch.setattr(
        cli_flags, "run", lambda *arguments: records.extend(arguments[2])
    )
    command.run()
    return records


@pytest.mark.parametrize("page", [p for p in PAGES if p != CONTRIBUTING], **IDS)
def test_blocks_of_python_are_python(page):
    for block in re.findall(r"^```python\n(.*?)^```", TEXTS[page], re.M | re.S):
        compile(textwrap.dedent(block), page.name, "exec")


def test_every_page_is_in_the_sites_contents():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    names = set(re.findall(r"^([\w/]+)$", index, re.MULTILINE)) - {"results/README"}
    assert names == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


def test_readme_is_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 150
