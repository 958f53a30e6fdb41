# SPDX-License-Identifier: Apache-2.0
"""JSON, TOML and flags that say something else: the right result, or one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import tomllib

import fuzz_fixture
import numpy as np
import pytest
import study_fixture
from results_fixture import RECORDS
from results_fixture import result

from mtr_tf import compare
from mtr_tf.cli import flags as cli_flags
from mtr_tf.compare import CompareConfig
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import RunPlace
from mtr_tf.config.train import TrainConfig
from mtr_tf.convert import ConvertConfig
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.reproduce import ReproduceConfig
from mtr_tf.runs import directory
from mtr_tf.runs import store as finished_work
from mtr_tf.study import claims
from mtr_tf.study import commands
from mtr_tf.study import study_file
from mtr_tf.study.results import Results
from mtr_tf.study.runner import Runner


@fuzz_fixture.tiers(quick=60)
def test_results_that_are_compared(cases, tmp_path):
    (tmp_path / "attacks" / "a").mkdir(parents=True)
    path = tmp_path / "attacks" / "a" / "results.json"
    for rng in cases:
        path.write_bytes(fuzz_fixture.damaged_json(RECORDS, rng))
        form = ("text", "markdown", "csv", "json")[rng.integers(4)]
        with cases.refused():
            with contextlib.redirect_stdout(io.StringIO()) as output:
                compare.main(CompareConfig(runs=(str(tmp_path),), format=form))
            assert output.getvalue().strip()


@fuzz_fixture.tiers(quick=60)
def test_settings_of_a_run(cases, tmp_path):
    config = TrainConfig(tasks=("seg", "depth"), epochs=3)
    directory.write_config(tmp_path, config)
    path = tmp_path / "config.json"
    original = json.loads(path.read_text())
    for rng in cases:
        path.write_bytes(fuzz_fixture.damaged_json(original, rng))
        with cases.refused():
            run_config = directory.read_config(tmp_path)
            assert TrainConfig.from_dict(run_config.to_dict()) == run_config


@pytest.fixture
def cell_store(tmp_path):
    store = Store(tmp_path, {"model": "m", "seed": 3})
    pictures = {"image": np.zeros((1, 4, 4, 3), np.uint8)}
    cell_result = dataclasses.replace(
        result(1.0, 0.3, 0.3),
        pictures=pictures,
        rows={"depth": {"mae": np.ones((6, 2))}},
    )
    store.write(cell_result)
    return store, cell_result


@fuzz_fixture.tiers(quick=60)
def test_finished_cells(cases, cell_store):
    store, cell_result = cell_store
    path = store._path(cell_result.cell)
    parts = {file: file.read_bytes() for file in (path, path.with_suffix(".npz"))}
    for rng in cases:
        for file, content in parts.items():
            file.write_bytes(content)
        file = list(parts)[rng.integers(2)]
        if file.suffix == ".json":
            content = json.loads(parts[file])
            new_content = fuzz_fixture.damaged_json(content, rng)
            has_checksum = _read(new_content).get("checksum") is not None
        else:
            new_content, has_checksum = fuzz_fixture.damaged(parts[file], rng), True
        file.write_bytes(new_content)
        with cases.refused():
            entry = store.read(cell_result.cell)
            if entry is None:
                cases.counts["done again"] += 1
            elif has_checksum:
                assert entry.scores == cell_result.scores
                assert np.array_equal(
                    entry.rows["depth"]["mae"], cell_result.rows["depth"]["mae"]
                )


def _read(content: bytes) -> dict:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return {}


@fuzz_fixture.tiers(quick=60)
def test_what_else_is_finished(cases, tmp_path):
    path, content = tmp_path / "a.json", {"hash": "x", "settings": {"eps": [1.0, 2]}}
    finished_work.write_file(path, content)
    original = json.loads(path.read_text())
    for rng in cases:
        new_content = fuzz_fixture.damaged_json(original, rng)
        path.write_bytes(new_content)
        with cases.refused():
            entry = finished_work.read_kept(path)
            if _read(new_content).get("checksum") is not None:
                assert entry in (content, {})


@fuzz_fixture.tiers(quick=15)
def test_folders_of_studies(cases, tmp_path):
    study = study_fixture.example(tmp_path)
    names = ["study.json", "index.json"]
    for kind in ("results", "config", "finished"):
        paths = sorted(tmp_path.rglob(f"{kind}.json"))
        names += [str(path.relative_to(tmp_path)) for path in paths[:1]]
    parts = {name: (tmp_path / name).read_bytes() for name in names}
    for rng in cases:
        name = names[rng.integers(len(names))]
        content = fuzz_fixture.damaged_json(json.loads(parts[name]), rng)
        (tmp_path / name).write_bytes(content)
        with cases.refused():
            Runner(study, tmp_path).failures()
            Results.read(tmp_path).records()
        (tmp_path / name).write_bytes(parts[name])


# Study files.


def _toml(value) -> str:
    """A value in TOML; None, which TOML lacks, is an empty text."""
    if value is None:
        return '""'
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and not np.isfinite(value):
        return "nan" if np.isnan(value) else "inf"
    return json.dumps(value)


@fuzz_fixture.tiers(quick=60)
def test_study_files(cases, tmp_path):
    texts = [p.read_text() for p in study_file.shipped().values()]
    path = tmp_path / "own.toml"
    for rng in cases:
        text = texts[rng.integers(len(texts))]
        if rng.random() < 0.4:
            path.write_bytes(fuzz_fixture.damaged(text.encode(), rng))
        else:
            content = fuzz_fixture.changed(tomllib.loads(text), rng)
            if isinstance(content, dict):
                lines = [f"{json.dumps(k)} = {_toml(v)}" for k, v in content.items()]
                path.write_text("\n".join(lines), errors="replace")
        with cases.refused():
            study = study_file.load(str(path))
            claims.check(study)
            assert commands.make_cells(study, tmp_path) or not study.variants


# Flags.

COMMANDS = (
    (AttackConfig,),
    (TrainConfig, RunPlace),
    (CompareConfig,),
    (ConvertConfig,),
    (ReproduceConfig,),
)
WORDS = (
    "", "0", "1", "-1", "1.5", "1e309", "nan", "-inf", "99999999999999999999", "true",
    "seg", "s,d", "seg+depth", "each", "all", "seg:1", "a:b:c", ":", ",", "+", "x",
    "64", "96x128", "0x0", "1x2x3", "\u0664x\u0664", "none", "auto", "own", "rooms",
    "mod:fn", "../..", "*", "[a", "\udcff", "a b", "=", "--", "'", "\x00", "é" * 500,
    "pgd", "worst", "sea", "linf", "l2", "harm", "1,2,4", "2147483648", "4294967296",
)  # fmt: skip


def _word(rng) -> str:
    word = WORDS[rng.integers(len(WORDS))]
    if rng.random() < 0.2:
        word += "," + WORDS[rng.integers(len(WORDS))]
    return word


@fuzz_fixture.tiers(quick=300)
def test_flags(cases):
    for rng in cases:
        records = COMMANDS[rng.integers(len(COMMANDS))]
        names = [f.name for record in records for f in dataclasses.fields(record)]
        argv = ["command"]
        for _ in range(rng.integers(1, 5)):
            name = names[rng.integers(len(names))]
            if rng.random() < 0.1:
                name = re.sub("[aeiou]", "", name)
            if rng.random() < 0.1:
                argv.append(f"--{('', 'no')[rng.integers(2)]}{name}")
            else:
                argv.append(f"--{name}={_word(rng)}")
        with cases.refused():
            configs = cli_flags.parse(argv, records)
            for record, config in zip(records, configs, strict=True):
                assert record.from_dict(config.to_dict()) == config
