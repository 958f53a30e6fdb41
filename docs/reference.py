# SPDX-License-Identifier: Apache-2.0
"""Builds the API reference from docstrings: `python docs/reference.py --out FOLDER`.

Ends with exit code 1, and prints a line for each fault, if a docstring or an annotation
cannot be read, a public name is missing, or a link leads nowhere.
"""

from __future__ import annotations

import argparse
import html.parser
import importlib
import pathlib
import sys
import urllib.parse
import warnings

# What a user imports; what is in them is documented by page or as a member.
PUBLIC = ("mtr_tf", "mtr_tf.attacks", "mtr_tf.data", "mtr_tf.models", "mtr_tf.tasks")

_OF_TFDS = "utils.VersionOrStr"


class _Page(html.parser.HTMLParser):
    """The links of a page, and what in it can be linked to."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


def build(folder: pathlib.Path) -> list[str]:
    """Writes the reference to a folder; returns its faults, one per line."""
    import pdoc

    for module in PUBLIC:
        for name in getattr(importlib.import_module(module), "__all__", ()):
            getattr(importlib.import_module(module), name)  # Some are imported late.
    pdoc.render.configure(docformat="google", show_source=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc("mtr_tf", output_directory=folder)
    ours = [str(warning.message).splitlines()[0] for warning in caught]
    # TFDS has its own annotations of builders' settings, which only it can read.
    wrong = [text for text in ours if "mtr_tf" in text and _OF_TFDS not in text]
    return wrong + broken_links(folder) + missing(folder)


def broken_links(folder: pathlib.Path) -> list[str]:
    """The links between pages of a folder that lead nowhere."""
    pages = {path.resolve(): _Page(path) for path in folder.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / parts.path).resolve() if parts.path else path
            place = urllib.parse.unquote(parts.fragment)
            if target not in pages or (place and place not in pages[target].anchors):
                broken.append(f"{path.relative_to(folder.resolve())} links to {link}")
    return broken


def missing(folder: pathlib.Path) -> list[str]:
    """The public names that no page documents."""
    absent = []
    for module in PUBLIC:
        stem = folder / module.replace(".", "/")
        page = stem.with_suffix(".html")
        anchors = _Page(page).anchors if page.exists() else set()
        names = getattr(importlib.import_module(module), "__all__", ())
        names = [n for n in names if f"{module}.{n}" not in PUBLIC]  # Pages themselves.
        absent += [f"{module}.{n} is not documented" for n in names if n not in anchors]
    return absent


def main() -> None:
    """Builds what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/api"))
    folder = parser.parse_args().out
    wrong = build(folder)
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"the reference: {folder / 'index.html'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
