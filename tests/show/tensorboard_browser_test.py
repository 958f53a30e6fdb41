# SPDX-License-Identifier: Apache-2.0
"""What a user sees in TensorBoard: its pages, opened in headless Chromium.

TensorBoard's pages are trees of shadow roots: the scripts walk those.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import sys
import urllib.parse
from collections.abc import Iterator

import browser_fixture
import pytest
import tensorflow as tf
from browser_fixture import SECONDS
from browser_fixture import Browser
from browser_fixture import Clock
from browser_fixture import server
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtr_tf import attack_job
from mtr_tf.config.attack import AttackConfig

pytestmark = [pytest.mark.slow, browser_fixture.needed]

TASKS = ("seg", "autoencoder")
GROUPS = ("seg", "+".join(TASKS))

# The runs of each model, as the list of runs shows them.
TRAINED, ATTACKED = (
    [f"{model}/{run}" for model in "abc"] for run in ("train", "attacks/test")
)
# The tags that must be seen, each with the runs that have it.
TRAINING = dict.fromkeys(
    (
        *(f"{task}/loss, {k}" for task in TASKS for k in ("training", "clean")),
        *(f"{name}/loss, attacked" for name in (*TASKS, "total")),
        "seg/miou, clean",
        "seg/miou, attacked",
        "optimizer/learning_rate",
        "optimizer/examples_per_second",
    ),
    TRAINED,
)
ATTACK = dict.fromkeys(
    (f"{task}_by_eps/loss, fgsm on {group}" for task in TASKS for group in GROUPS),
    ATTACKED,
)
# Charts of Custom Scalars in order, each with its lines per run: training, clean and
# attacked, or the last two where only validation computes the number.
LAID_OUT = {
    "seg/loss": 3,
    "seg/miou": 2,
    "seg/pixel_accuracy": 2,
    "autoencoder/loss": 3,
    "autoencoder/mse": 2,
    "autoencoder/mae": 2,
    "total/loss": 3,
}
PICTURES = {
    *(f"{task}/pictures" for task in TASKS),
    *(f"{task}_by_eps/pictures, fgsm on {group}" for task in TASKS for group in GROUPS),
    "robustness/curves",
}

# Scripts that run in the page. `walk`: a node and all under it, through shadow roots.
WALK = """
const walk = node => [node, ...[
    ...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].flatMap(walk)];
const texts = node => walk(node)
    .filter(n => n.nodeType == 3 && n.parentElement?.checkVisibility())
    .map(n => n.textContent.trim()).filter(text => text);
const named = name => walk(document.body).filter(n => n.localName == name);
"""
# Time Series: [tag, texts] of each chart.
CARDS = (
    WALK
    + """return named('scalar-card').map(card => [
    walk(card).find(n => n.localName == 'tb-truncated-path').title, texts(card)])"""
)
# Scalars: [tag, numbers of points of the lines] of each chart; a line per run.
CHARTS = (
    WALK
    + """return named('tf-scalar-card').map(card => [card.tag, walk(card)
    .filter(n => n.localName == 'path' && n.classList.contains('line'))
    .map(n => (n.getAttribute('d') || '').split('L').length)])"""
)
# Images: [tag, number of colours] of each picture that is loaded.
IMAGES = (
    WALK
    + """return named('tf-image-loader').flatMap(loader => walk(loader)
    .filter(n => n.localName == 'img' && n.complete && n.naturalWidth)
    .map(img => {
        const [width, height] = [img.naturalWidth, img.naturalHeight];
        const canvas = Object.assign(document.createElement('canvas'), {width, height});
        const context = canvas.getContext('2d');
        context.drawImage(img, 0, 0);
        const {data} = context.getImageData(0, 0, width, height);
        return [loader.tag, new Set(new Uint32Array(data.buffer)).size];
    }))"""
)
# Custom Scalars: [title, numbers of points of the lines] of each chart.
CUSTOM = (
    WALK
    + """return named('tf-custom-scalar-multi-line-chart-card').map(card => [card.title,
    walk(card).filter(n => n.localName == 'path' && n.classList.contains('line'))
    .map(n => (n.getAttribute('d') || '').split('L').length)])"""
)
RUNS = WALK + "return named('runs-table')[0] ? texts(named('runs-table')[0]) : []"
SETTINGS = WALK + "return named('tr').map(texts)"  # The rows of tables.
CELLS = WALK + "return named('vaadin-grid-cell-content').flatMap(texts)"
TEXTS = WALK + "return texts(document.body)"
ADDRESSES = "return performance.getEntriesByType('resource').map(entry => entry.name)"


@pytest.fixture(scope="module")
def runs(whole_run, tmp_path_factory) -> pathlib.Path:
    """Three models, each with a run of 30 steps and an attack on it."""
    folder = tmp_path_factory.mktemp("browsed")
    shutil.copytree(whole_run.workdir, folder / "a")
    attack = AttackConfig(
        ckpt=str(folder / "a"),
        attack=("fgsm",),
        attack_tasks=("seg", "all"),
        eps=(2.0, 8.0),
        num_examples=4,
        batch_size=4,
        name="test",
        checks=False,
    )
    attack_job.attack(attack)
    for model in "bc":
        shutil.copytree(folder / "a", folder / model)
    return folder


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    with browser_fixture.opened(tmp_path) as browser:
        yield browser


@pytest.fixture
def pages(runs, tmp_path) -> Iterator[str]:
    """The address of a TensorBoard that shows `runs`."""
    command = (sys.executable, "-m", "tensorboard.main", "--logdir", runs)
    with server(
        (*command, "--host=127.0.0.1", "--port=0"),
        tmp_path / "tensorboard.log",
        r"TensorBoard \S+ at http://127\.0\.0\.1:(\d+)/",
        Clock(SECONDS),
    ) as address:
        yield address


def test_every_page_shows_the_runs_and_their_attacks(whole_run, runs, pages, browser):
    for series in (TRAINING, ATTACK):
        check_time_series(browser, pages, series, runs)
        check_scalars(browser, pages, series)
    check_custom_scalars(browser, pages)
    check_images(browser, pages)
    check_text(browser, pages)
    check_hparams(browser, pages, runs, whole_run.workdir.name)


def only(tags) -> str:
    """A filter for these tags; TensorBoard shows only the first 12 that pass."""
    assert len(tags) <= 12
    return urllib.parse.quote(f"^({'|'.join(map(re.escape, tags))})$", safe="")


def check_time_series(browser, pages, series, folder):
    """The last steps and values under each chart are those in the event files."""
    browser.open(f"{pages}/?tagFilter={only(series)}#timeseries")
    expected = {(tag, run) for tag, runs in series.items() for run in runs}

    def tables(cards):
        points = {}
        for tag, texts in cards:
            for run in series.get(tag, ()):
                if run in texts:  # run, smoothed value, value, step, time
                    smoothed, value, step = texts[texts.index(run) + 1 :][:3]
                    numbers = (float(n.replace(",", "")) for n in (value, smoothed))
                    points[tag, run] = (int(step.replace(",", "")), *numbers)
        return points

    points = tables(
        browser.wait("tables", CARDS, lambda cards: tables(cards).keys() == expected)
    )
    run_names = [text for text in browser.run(RUNS) if "/" in text]
    assert sorted(run_names) == sorted([*TRAINED, *ATTACKED])
    for tag, run in expected:
        step, want = last(folder / run, tag)
        value = pytest.approx(want, 1e-3, 1e-4)
        assert points[tag, run][:2] == (step, value), tag
        if tag in ATTACK:  # At the default smoothing.
            assert points[tag, run][2] == pytest.approx(want, 2e-3), tag


def last(folder, tag) -> tuple[int, float]:
    """(step, value) of a run's last event."""
    event = EventAccumulator(str(folder)).Reload().Tensors(tag)[-1]
    return event.step, float(tf.make_ndarray(event.tensor_proto))


def check_scalars(browser, pages, series):
    """Each chart has a line for each of its runs."""
    browser.open(f"{pages}/#scalars&_smoothingWeight=0&tagFilter={only(series)}")

    def line_counts(charts):
        lines = {tag: sum(count > 1 for count in points) for tag, points in charts}
        return {tag: count for tag, count in lines.items() if tag in series}

    expected = {tag: len(runs) for tag, runs in series.items()}
    browser.wait("lines", CHARTS, lambda charts: line_counts(charts) == expected)
    check_addresses(browser, pages)


def check_custom_scalars(browser, pages):
    """All kinds of a number are lines of one chart, for each run."""
    browser.open(f"{pages}/#custom_scalars&_smoothingWeight=0")

    def line_counts(charts):
        return {tag: sum(count > 1 for count in points) for tag, points in charts}

    expected = {tag: kinds * len(TRAINED) for tag, kinds in LAID_OUT.items()}
    charts = browser.wait(
        "charts", CUSTOM, lambda charts: line_counts(charts) == expected
    )
    assert [tag for tag, _ in charts] == [*LAID_OUT]
    check_addresses(browser, pages)


def check_images(browser, pages):
    """Each picture of a model is loaded and is not just one colour."""
    browser.open(f"{pages}/#images&regexInput=^a&tagFilter={only(PICTURES)}")
    pictures = browser.wait(
        "pictures", IMAGES, lambda pictures: {tag for tag, _ in pictures} >= PICTURES
    )
    assert all(colors > 50 for _, colors in pictures), pictures
    check_addresses(browser, pages)


def check_text(browser, pages):
    """The settings of the run and of the attack are tables."""
    browser.open(f"{pages}/#text")
    expected = (
        ["tasks", ",".join(TASKS)],
        ["eval_steps", "1"],
        ["eps", "2.0,8.0"],
        ["main_tasks"],  # It is empty.
    )
    browser.wait(
        "settings", SETTINGS, lambda rows: all(row in rows for row in expected)
    )


def check_hparams(browser, pages, folder, name):
    """Training has a row with its results; the attack has none.

    The runs are copies of one run, `name`, and so are a single trial.
    """
    browser.open(f"{pages}/#hparams")

    def table(cells):  # The cells under "Show Metrics" hold a box and no text.
        columns = [cell for cell in cells if cell != "Show Metrics"]
        start = columns.index(name) if name in columns else 0
        one_row = start and len(columns) == 2 * start
        return (
            dict(zip(columns[:start], columns[start:], strict=True)) if one_row else {}
        )

    row = table(browser.wait("row", CELLS, table))
    # TensorBoard opens with the first five settings, and measures, of the alphabet.
    assert (row["aux_weight"], row["batch_size"]) == ("1.0000", "4.0000")
    for tag in ("autoencoder/loss, attacked", "autoencoder/loss, clean"):
        _, value = last(folder / TRAINED[0], tag)
        assert float(row[tag]) == pytest.approx(value, 1e-3), tag
    texts = browser.run(TEXTS)
    for text in ("image_size", "32x40", ",".join(TASKS), "total/loss, clean"):
        assert text in texts, texts
    assert not {"eval_steps", "eps", "strategy", *ATTACK} & {*texts}
    check_addresses(browser, pages)


def check_addresses(browser, pages):
    """The page was loaded from this machine alone."""
    addresses = browser.run(ADDRESSES)
    assert addresses
    assert all(address.startswith(pages) for address in addresses), addresses
