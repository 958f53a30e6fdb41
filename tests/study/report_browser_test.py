# SPDX-License-Identifier: Apache-2.0
"""What a reader sees of a study's report, in headless Chromium: desktop and phone."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import browser_fixture
import pytest
import study_fixture
from browser_fixture import Browser

from mtr_tf.study import report

pytestmark = [pytest.mark.slow, browser_fixture.needed]

DESKTOP = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PHONES = [
    {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    for width in (360, 390)
]

OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
# The page's width, and the elements outside boxes that reach beyond the window. On a
# phone, innerWidth grows with a page that is too wide; clientWidth stays the screen's.
WIDTH = "return document.scrollingElement.scrollWidth"
OUTSIDE = """const screen = document.documentElement.clientWidth;
    return [...document.querySelectorAll('main *')].filter(one =>
    !one.closest('.box') && one.getBoundingClientRect().right > screen + 1)
    .map(one => one.outerHTML.slice(0, 200))"""
# For each picture: whether it is loaded, has a text, and is inside the page.
PICTURES = """return [...document.images].map(one =>
    [one.complete && one.naturalWidth > 0, one.alt.trim().length > 0,
     one.src.startsWith('data:')])"""
LOST = """return [...document.querySelectorAll('a[href^="#"]')]
    .map(one => one.getAttribute('href'))
    .filter(name => !document.getElementById(decodeURIComponent(name.slice(1))))"""
FILES = """return [...document.querySelectorAll('a:not([href^="#"])')]
    .map(one => one.getAttribute('href'))"""
DOUBLE = """const ids = [...document.querySelectorAll('[id]')].map(one => one.id);
    return ids.filter((id, i) => ids.indexOf(id) != i)"""
HEADINGS = """return [...document.querySelectorAll('h1, h2, h3, h4')]
    .map(one => Number(one.localName[1]))"""
COLOURS = """const style = getComputedStyle(document.body);
    return [style.color, style.backgroundColor]"""
SMALL = """return [...document.querySelectorAll('main *')].filter(one =>
    one.checkVisibility() && [...one.childNodes].some(n => n.nodeType == 3 &&
    n.textContent.trim()) && parseFloat(getComputedStyle(one).fontSize) < 11.5)
    .map(one => one.textContent)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The report of a study with everything in it."""
    workdir = tmp_path_factory.mktemp("study")
    study_fixture.example(workdir)
    report.write(workdir)
    return workdir / "report"


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    with browser_fixture.opened(tmp_path) as browser:
        yield browser


def test_report_is_whole_on_desktop_and_phone(folder, browser):
    for screen in (DESKTOP, *PHONES):
        browser.devtools("Emulation.setDeviceMetricsOverride", **screen)
        browser.requests()
        browser.open((folder / "index.html").as_uri())
        fits(browser, screen["width"])
        browser.run(OPEN_ALL)
        fits(browser, screen["width"])
        assert not browser.run(SMALL)
        pictures = browser.wait("pictures", PICTURES, lambda p: all(map(all, p)))
        assert len(pictures) > 20
        outside_urls = [
            url
            for url in browser.requests()
            if not url.startswith(("file://", "data:", "about:blank"))
        ]
        assert outside_urls == []
        assert browser.console() == []


def fits(browser, screen):
    """Nothing makes the page wider than the screen."""
    assert browser.run(WIDTH) <= screen, browser.run(OUTSIDE)
    assert browser.run(OUTSIDE) == []


def test_links_lead_somewhere_and_the_outline_is_sound(folder, browser):
    browser.open((folder / "index.html").as_uri())
    assert browser.run(LOST) == []
    assert browser.run(DOUBLE) == []
    links = browser.run(FILES)
    assert links
    assert all((folder / link).is_file() for link in links)
    levels = browser.run(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    steps = zip(levels, levels[1:], strict=False)
    assert all(next_level <= level + 1 for level, next_level in steps)


def test_link_to_a_folded_plot_shows_it(folder, browser):
    """A browser opens `details` for a link into them."""
    browser.open((folder / "index.html").as_uri())
    browser.run("document.querySelector('#verdicts ~ .box a[href^=\"#\"]').click()")
    browser.wait(
        "plot",
        "return document.querySelector(':target')?.checkVisibility()",
        bool,
    )


def test_dark_and_light(folder, browser):
    """Ink and ground differ enough in both: WCAG 2.1, contrast of at least 7."""
    grounds = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.devtools("Emulation.setEmulatedMedia", features=features)
        browser.open((folder / "index.html").as_uri())
        ink, ground = (luminance(color) for color in browser.run(COLOURS))
        light, dark = max(ink, ground), min(ink, ground)
        assert (light + 0.05) / (dark + 0.05) > 7
        grounds.append(ground)
    assert grounds[0] > 0.5 > grounds[1]


def luminance(color: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    levels = [int(part) / 255 for part in color[4:-1].split(",")]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in levels
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
