# SPDX-License-Identifier: Apache-2.0
"""Reads HTML for tests, and is strict about it."""

from __future__ import annotations

import html.parser

VOID = ("img", "link", "meta", "wbr")


class Tree(html.parser.HTMLParser):
    """Checks that elements close as they open, and keeps tags and texts."""

    def __init__(self):
        super().__init__()
        self.open, self.found, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


def parse(page: str) -> Tree:
    tree = Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == []
    return tree
