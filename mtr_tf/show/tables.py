# SPDX-License-Identifier: Apache-2.0
"""The tables that commands print: of attacks, of measures, of anything in columns.

Plain text without colours, as wide as its words, so nothing is cut off, even in a pipe.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtr_tf import files
from mtr_tf.errors import NOTE
from mtr_tf.errors import doubts_first
from mtr_tf.evaluation import resampling
from mtr_tf.show.text import markdown as escaped
from mtr_tf.show.text import markdown_table
from mtr_tf.show.text import plain
from mtr_tf.tasks import metric_names

Record = Mapping[str, Any]

RECORDS = ("json", "csv")  # Formats that are records, and nothing else.


def as_records(form: str, records: Sequence[Record]) -> str:
    """The records as text, in one of RECORDS."""
    if form == "json":
        return json.dumps(list(records), indent=1)
    return files.csv_text(records).rstrip()


def aligned(
    rows: Sequence[Sequence[str]], sides: str = "l", *, bars: bool = False
) -> str:
    """Rows as text with aligned columns.

    Args:
      rows: All with the same number of cells; a cell may have several lines.
      sides: The side that each column is aligned to, "l" or "r". The last one also
        holds for all further columns: "lr" aligns all but the first to the right.
      bars: Draws a bar between two columns.
    """
    table = Table(
        box=rich.box.ASCII if bars else None,
        padding=(0, 1) if bars else (0, 2, 0, 0),
        show_header=False,
        show_edge=False,
        pad_edge=False,
    )
    for side in sides.ljust(len(rows[0]), sides[-1]):
        table.add_column(justify="left" if side == "l" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    output = io.StringIO()
    Console(
        file=output,
        width=sys.maxsize,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
    ).print(table)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table with the first as head; aligns the first column left."""
    return markdown_table([list(map(escaped, row)) for row in rows], "---:")


# Attacks.


def printed(
    form: str,
    title: str,
    records: Sequence[Record],
    folder: Path | None,
    more: Sequence[str] = (),
) -> str:
    """What a command prints about a sweep.

    Args:
      form: "text": `about` it, and where its results are; "markdown": a table of all
        tasks, without the rest; "csv" or "json": the records, as in the files.
      title: Stands above the tables.
      records: As `evaluation.results.make_records` returns them.
      folder: Where the results are; None: they are not stored.
      more: Further metrics that the user wants; they get a table of their own.
    """
    if form in RECORDS:
        return as_records(form, records)
    if form == "markdown":
        lines = [*map(escaped, title.splitlines()), "", markdown(_rows(records))]
        extra_columns = _columns(records, more)
        if extra_columns:
            lines += ["", markdown(_rows(records, extra_columns))]
        return "\n".join(lines)
    report = about(title, records, shutil.get_terminal_size((100, 24)).columns, more)
    if folder is None:
        return report
    return "\n".join(
        [
            report,
            "",
            f"results:  {folder / 'results.json'} and .csv",
            f"plots:    {folder / 'curves.png'}, {folder / 'gallery.png'}",
            f"watch it: tensorboard --logdir={shlex.quote(str(folder))}",
        ]
    )


def about(
    title: str, records: Sequence[Record], width: int, more: Sequence[str] = ()
) -> str:
    """A sweep as text: tables of this width, wanted and spared tasks, warnings."""
    lines = [title, "", table(records, width), ""]
    extra_columns = _columns(records, more)
    if extra_columns:
        lines += [_join_blocks(records, extra_columns, _column, width), ""]
    lines.append(about_intervals(records))
    wanted_text = wanted_table(records)
    if wanted_text:
        lines += [
            "",
            "outputs compared with the targets that the attack aims at:",
            wanted_text,
        ]
    spared_text = spared_table(records)
    if spared_text:
        lines += ["", "spared tasks:", spared_text]
    warnings = doubts_first(dict.fromkeys(w for r in records for w in r["warnings"]))
    doubts = [text for text in warnings if not text.startswith(NOTE)]
    if doubts:
        lines += ["", "WARNING, before you trust these numbers:"]
        lines += [f"- {text}" for text in doubts]
    if notes := warnings[len(doubts) :]:
        lines += ["", *notes]
    return "\n".join(lines)


def _columns(records: Sequence[Record], more: Sequence[str]) -> list[tuple[str, str]]:
    """The (task, metric) pairs of `more` that the first table does not show."""
    headlines, all_metrics = _headlines(records), metric_names.ALL in more
    columns = dict.fromkeys((record["task"], record["metric"]) for record in records)
    return [
        (task, metric)
        for task, metric in columns
        if metric not in (headlines[task], "loss") and (all_metrics or metric in more)
    ]


def _rows(
    records: Sequence[Record], columns: Sequence[tuple[str, str]] = ()
) -> list[list[str]]:
    """A head, and a row per cell with a column for each (task, metric).

    Without `columns`, these are the headline metrics of all tasks.
    """
    columns = columns or list(_headlines(records).items())
    by_place = {(_row_of(r), r["task"], r["metric"]): r for r in records}
    first_records = {(r["task"], r["metric"]): r for r in reversed(records)}
    head = [
        f"{task} {metric}{_unit(first_records[task, metric])} "
        f"(clean {plain(first_records[task, metric]['clean'])})"
        for task, metric in columns
    ]
    rows = [["attack", "attacked", "eps", *head]]
    for row in dict.fromkeys(_row_of(record) for record in records):
        values = []
        for task, metric in columns:
            record = by_place[row, task, metric]
            ends = record["attacked_interval"]
            interval = "" if None in ends else f" ({'-'.join(map(plain, ends))})"
            values.append(plain(record["attacked_value"]) + interval)
        rows.append([*row[:2], f"{row[2]:g}", *values])
    return rows


def about_intervals(records: Sequence[Record]) -> str:
    """A line that says what the intervals are over, or why there are none."""
    has_intervals = any(
        end is not None for r in records for end in r["attacked_interval"]
    )
    return resampling.note(records[0]["interval_over"], records[0]["n"], has_intervals)


def table(records: Sequence[Record], width: int = 100) -> str:
    """A readable table: a row per cell, with each task's headline metric and loss.

    Args:
      records: As `evaluation.results.make_records` returns them.
      width: In characters; tasks that do not fit go into a further table below.
    """
    return _join_blocks(records, _headlines(records).items(), _block, width)


def _join_blocks(
    records: Sequence[Record],
    columns: Iterable[tuple[str, str]],
    block_of: Callable[[str, str, Sequence[tuple], Mapping], str],
    width: int,
) -> str:
    """Blocks of (task, metric) side by side, right of the columns that name the cells.

    `block_of` is called with (task, metric, rows, {(row, task, metric): record}).
    """
    headlines = _headlines(records)
    rows = list(dict.fromkeys(_row_of(record) for record in records))
    by_place = {(_row_of(r), r["task"], r["metric"]): r for r in records}
    cells = [
        (name, _short_group(group, headlines), f"{eps:g}") for name, group, eps in rows
    ]
    row_heads = "\n\n" + aligned([("attack", "attacked", "eps"), *cells], "llr")
    tables, line = [], [row_heads]
    for task, metric in columns:
        block = block_of(task, metric, rows, by_place)
        if len(line) > 1 and sum(_width(b) + 3 for b in [*line, block]) > width:
            tables.append(line)
            line = [row_heads]
        line.append(block)
    return "\n\n".join(aligned([line], bars=True) for line in [*tables, line])


def wanted_table(records: Sequence[Record]) -> str:
    """How near the outputs come to the targets that targeted attacks aim at.

    A row per targeted cell and task, with the task's headline metric against those
    targets, clean and attacked; empty without a targeted attack.
    """
    rows = [["attack", "attacked", "eps", "task", "metric", "clean", "attacked"]]
    headlines = _headlines(records)
    for record in records:
        task, metric = record["task"], record["metric"]
        if record["targeted"] and metric == headlines[task]:
            numbers = (plain(record[key]) for key in ("wanted_clean", "wanted_value"))
            attack, group, eps = _row_of(record)
            rows.append([attack, group, f"{eps:g}", task, metric, *numbers])
    return aligned(rows) if len(rows) > 1 else ""


def spared_table(records: Sequence[Record]) -> str:
    """Whether attacks spared what they were to spare; empty without any such attack.

    A row per cell and spared task, with its mean loss, clean and attacked.
    """
    head = ["attack", "attacked", "eps", "spared", "clean loss", "attacked loss"]
    rows = [[*head, "images at or below clean"]]
    for record in records:
        share = record.get("spared_share")
        if share is not None and record["metric"] == "loss":
            numbers = (plain(record[key]) for key in ("clean", "attacked_value"))
            attack, group, eps = _row_of(record)
            images = f"{share:.1%} of {record['spared_images']}"
            rows.append([attack, group, f"{eps:g}", record["task"], *numbers, images])
    return aligned(rows) if len(rows) > 1 else ""


def consistency(records: Sequence[Record]) -> str:
    """How well related outputs agree with each other: a row per cell and pair."""
    head = ["attack", "attacked", "eps", "outputs", "measure"]
    rows = [[*head, "of the targets", "clean", "attacked"]]
    for record in records:
        attack, group, eps = _row_of(record)
        measure = f"{record['measure']}{_unit(record)}, {record['better']} is better"
        numbers = (record[key] for key in ("targets", "clean", "attacked_value"))
        pair = " and ".join(record["tasks"])
        rows.append([attack, group, f"{eps:g}", pair, measure, *map(plain, numbers)])
    return f"how well outputs fit each other:\n{aligned(rows)}"


def _headlines(records: Sequence[Record]) -> dict[str, str]:
    """Each task with its first metric."""
    headlines: dict[str, str] = {}
    for record in records:
        headlines.setdefault(record["task"], record["metric"])
    return headlines


def _short_group(group: str, tasks: Mapping[str, str]) -> str:
    """The group's name in a table: "all N tasks" for all of more than three."""
    count = group.count("+") + 1
    return f"all {count} tasks" if count == len(tasks) > 3 else group


def _row_of(record: Record) -> tuple[str, str, float]:
    return record["attack"], "+".join(record["attacked"]), record["eps"]


def _block(task: str, metric: str, rows: Sequence[tuple], by_place: Mapping) -> str:
    """One task's columns: a title, the clean value, column heads, a line per row."""
    lines = [("attacked", "95 % interval", "loss")]
    for row in rows:
        record, loss = by_place[row, task, metric], by_place[row, task, "loss"]
        ends = record["attacked_interval"]
        lines.append(
            (
                plain(record["attacked_value"]),
                "-" if None in ends else " to ".join(map(plain, ends)),
                _factor_text(loss["clean"], loss["attacked_value"]),
            )
        )
    first = by_place[rows[0], task, metric]
    title = f"{task} {metric}{_unit(first)}, {first['better']} is better"
    return f"{title}\nclean: {plain(first['clean'])}\n{aligned(lines, 'r')}"


def _column(task: str, metric: str, rows: Sequence[tuple], by_place: Mapping) -> str:
    """One further metric: its task, its name, the clean value, a line per row."""
    first = by_place[rows[0], task, metric]
    lines = [
        f"{task} {metric}{_unit(first)}",
        f"{first['better']} is better",
        f"clean: {plain(first['clean'])}",
        *(plain(by_place[row, task, metric]["attacked_value"]) for row in rows),
    ]
    return aligned([[line] for line in lines])


def _unit(record: Record) -> str:
    return f" [{record['unit']}]" if record.get("unit") else ""


def _factor_text(clean: float | None, attacked: float | None) -> str:
    valid = clean is not None and clean > 0 and attacked is not None
    return f"x{plain(attacked / clean)}" if valid else "-"


def _width(block: str) -> int:
    return max(map(len, block.splitlines()))


# Measures.


def measures(records: Sequence[Record]) -> str:
    """Readable tables of measurements, with predictions of the theory."""
    parts = (_tasks, _pixel_gradients, _pixel_attacks, _first_order, _corruptions)
    return "\n\n".join(filter(None, (part(records) for part in parts)))


def _select(records: Sequence[Record], *quantities: str) -> list[Record]:
    return [record for record in records if record["quantity"] in quantities]


def _tasks(records: Sequence[Record]) -> str:
    sizes = _select(records, "norm_by_size")
    if not sizes:
        return ""
    slopes = {
        (r["norm"], r["normalisation"]): r
        for r in _select(records, "slope")
        if r["measure"] == "tasks"
    }
    counts = sorted({record["count"] for record in sizes})
    rows = [["norm", "gradients", *(f"k={k}" for k in counts), "slope", "predicted"]]
    for kind in dict.fromkeys((r["norm"], r["normalisation"]) for r in sizes):
        values = [r["value"] for r in sizes if (r["norm"], r["normalisation"]) == kind]
        ratios = [_quotient(value, values[0]) for value in values]
        ends = slopes[kind]["value"], slopes[kind]["predicted"]
        rows.append([*kind, *map(plain, (*ratios, *ends))])
    means = {
        r["quantity"]: plain(r["value"])
        for r in _select(records, "mean_cosine", "mean_abs_cosine")
    }
    return (
        "norm of the mean gradient of k tasks, divided by that of one task; log-log "
        f"slope:\n{aligned(rows)}\ncosine of two tasks' gradients: mean "
        f"{means['mean_cosine']}, mean magnitude {means['mean_abs_cosine']}"
    )


def _pixel_gradients(records: Sequence[Record]) -> str:
    norms = [r for r in _select(records, "gradient_norm") if r["norm"] == "l2"]
    title = (
        "l2 norm of the gradient of the mean loss over n output pixels, divided by "
        "that for one pixel:"
    )
    return _by_count(title, norms, lambda r: plain(r["relative"]))


def _pixel_attacks(records: Sequence[Record]) -> str:
    """The table of each task's headline metric, or its loss if it has no metric."""
    task_records = _with_task(_select(records, "attacked_pixels"))
    headlines = _headlines(task_records)
    values = [r for r in task_records if r["metric"] == headlines[r["task"]]]
    eps = f"{values[0]['eps']:g}" if values else ""
    title = (
        f"PGD with eps {eps} on n output pixels; the metric on these pixels, "
        "attacked / clean:"
    )
    return _by_count(
        title, values, lambda r: f"{plain(r['value'])}/{plain(r['clean'])}"
    )


def _by_count(
    title: str, records: Sequence[Record], form: Callable[[Record], str]
) -> str:
    """A row per measure and task, a column per pixel count; "" without records."""
    if not records:
        return ""
    counts = sorted({record["count"] for record in records})
    rows = [["", "task", "metric", *(f"n={n}" for n in counts)]]
    by_row: dict[tuple, dict[int, Record]] = {}
    for record in records:
        key = record["measure"], *record["tasks"], record.get("metric", "")
        by_row.setdefault(key, {})[record["count"]] = record
    for key, by_n in by_row.items():
        rows.append([*key, *(form(by_n[n]) if n in by_n else "" for n in counts)])
    return f"{title}\n{aligned(rows)}"


def _first_order(records: Sequence[Record]) -> str:
    rises = _select(records, "rise")
    if not rises:
        return ""
    radii = sorted({record["eps"] for record in rises})
    rows = [["attacked", *(f"eps={eps:g}" for eps in radii)]]
    ratios = {("+".join(r["tasks"]), r["eps"]): r["ratio"] for r in rises}
    for group in dict.fromkeys(group for group, _ in ratios):
        count = group.count("+") + 1
        name = f"mean of {count} tasks" if count > 3 else group
        rows.append([name, *(plain(ratios[group, eps]) for eps in radii)])
    norm = rises[0]["norm"]
    title = f"rise of the loss under PGD ({norm}), divided by eps times the dual norm:"
    return f"{title}\n{aligned(rows)}"


def _corruptions(records: Sequence[Record]) -> str:
    """A row per corruption, a column per task; values are means over severities."""
    task_records = _with_task(_select(records, "corrupted"))
    columns = list(_headlines(task_records).items())
    values: dict[str, dict[tuple[str, str], list]] = {}
    for record in task_records:
        for row, field in ((record["corruption"], "value"), ("clean", "clean")):
            column = record["task"], record["metric"]
            values.setdefault(row, {}).setdefault(column, []).append(record[field])
    if not task_records:
        return ""
    first_records = {(r["task"], r["metric"]): r for r in reversed(task_records)}
    heads = (
        f"{' '.join(column)}{_unit(first_records[column])}\n"
        f"{first_records[column]['better']} is better"
        for column in columns
    )
    rows = [["", *heads]]
    for row in ("clean", *(row for row in values if row != "clean")):
        means = [_mean(values[row][column]) for column in columns]
        rows.append([row.replace("_", " "), *map(plain, means)])
    count = len({record["severity"] for record in task_records})
    title = f"metrics on corrupted images, the mean over {count} severities:"
    return f"{title}\n{aligned(rows)}"


def _with_task(records: Sequence[Record]) -> list[Record]:
    """Records of measures of one task, with the field "task" of attacks' records."""
    return [{**record, "task": record["tasks"][0]} for record in records]


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def _quotient(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None
