# SPDX-License-Identifier: Apache-2.0
"""Settings of Sphinx, which builds the site from these pages; see `launch/site.sh`."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]

project = "mtr_tf"
copyright = "the authors of mtr_tf"
release = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "mtr_tf/__init__.py").read_text(), re.MULTILINE
).group(1)
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["results/*/*"]  # Reports stand by themselves; README.md has links.
html_theme = "furo"
html_title = f"mtr_tf {release}"
html_extra_path = []
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing"]  # Links to files outside; tests check those.
