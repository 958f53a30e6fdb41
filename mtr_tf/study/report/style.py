# SPDX-License-Identifier: Apache-2.0
"""The page around the report, and its looks: one file, nothing from outside."""

from __future__ import annotations

from mtr_tf.study.report.elements import Html
from mtr_tf.study.report.elements import tag

# Plots keep their white ground in the dark. Below 46rem the cards take over.
_CSS = """
:root {
  color-scheme: light dark;
  --ink: #1c2126; --soft: #5a646e; --line: #d9dee3; --ground: #ffffff;
  --panel: #f5f7f9; --link: #0b5cad;
  --holds: #05614a; --fails: #a33b00; --open: #555f69;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ec; --soft: #a3adb7; --line: #39424b; --ground: #14181c;
    --panel: #1d2329; --link: #79b8ff;
    --holds: #4fd1a8; --fails: #ff9d66; --open: #b5bec7;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 74rem; padding: 1.5rem 1rem 4rem;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  color: var(--ink); background: var(--ground); overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 {
  font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1.08rem; margin: 2rem 0 .5rem; }
h4 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.25rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none;
  padding: 0; max-width: none; }
.about { margin: 1rem 0 .4rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.tally { font-size: 1.05rem; }
.box { overflow-x: auto; margin: .75rem 0; }
.box:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0;
  border-bottom: 1px solid var(--line); }
tbody th { font-weight: 600; }
thead th { font-weight: 600; color: var(--soft); white-space: nowrap; }
.statement { display: block; font-weight: 400; min-width: 15rem; max-width: 30rem; }
.verdict { font-weight: 700; white-space: nowrap; }
.holds { color: var(--holds); }
.fails { color: var(--fails); }
.open { color: var(--open); }
.values { min-width: 8rem; }
.nowrap { white-space: nowrap; }
.line { display: block; }
th .soft { font-weight: 400; }
:target { scroll-margin-top: 1rem; outline: 2px solid var(--link);
  outline-offset: 4px; }
code, .command { font: .82rem/1.45 ui-monospace, Consolas, monospace; }
.command { display: block; overflow-wrap: anywhere; user-select: all; }
details { margin: .5rem 0; }
summary { cursor: pointer; white-space: nowrap;
  color: var(--link); width: fit-content; }
td details, th details { margin: .25rem 0 0; font-weight: 400; max-width: 32rem; }
.notice, .warning { border-left: 4px solid var(--fails); background: var(--panel);
  padding: .5rem .9rem; margin: .75rem 0; }
.warning { font-size: .875rem; }
.plots { display: grid; gap: 1.75rem 1.5rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.plots.small {
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; min-width: 0; }
.plots img { display: block; width: 100%; height: auto; background: #fff;
  border-radius: 4px; }
.plots.small img { max-width: 26rem; }
.tiles { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .5rem;
  max-width: 60rem; }
.tiles img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
figcaption { margin-top: .35rem; }
.tiles figcaption { font-size: .75rem; line-height: 1.3; margin-top: .15rem; }
@media (max-width: 46rem) {
  body { padding-top: 1rem; }
  h1 { font-size: 1.4rem; }
  .tiles { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .cards, .cards tbody, .cards tr, .cards th, .cards td { display: block; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .cards tr { border: 1px solid var(--line); border-radius: 6px; margin: 0 0 .9rem;
    padding: .6rem .8rem; background: var(--panel); }
  .cards th, .cards td { border: 0; padding: .2rem 0; }
  .cards td { display: grid; grid-template-columns: 6.2rem minmax(0, 1fr); }
  .cards td::before { content: attr(data-label); color: var(--soft);
    font-size: .82rem; }
  .cards td > * { grid-column: 2; min-width: 0; }
  .statement { min-width: 0; }
}
@media print { details { display: block; } a { color: inherit; } }
"""


def page(title: str, *parts: str | None) -> str:
    """The whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),  # Else browsers ask for one.
        tag("style", Html(_CSS)),
    )
    body = tag("body", tag("main", *parts))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"
