# SPDX-License-Identifier: Apache-2.0
"""A fixed small study gives the results that it always gave, to the last bit.

Three files beside this one: `same_results.toml`, the study; `same_results.json`, its
results; `same_results.zip`, one of its runs with one attack, as the version of that
time left them. If results are meant to change, renew the last two and say why:

    python tests/same_results_test.py --update

Bits are compared on a processor and with libraries like those that the results were
stored with, and elsewhere numbers, which differ by rounding that training and attacks
amplify. Cells run with one thread each, so the number of cores does not matter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import zipfile

import pytest

HERE = pathlib.Path(__file__).parent
STUDY = HERE / "same_results.toml"
STORED = HERE / "same_results.json"
OLD_RUN = HERE / "same_results.zip"
# Fields that say where results are, or comment on them in words.
LEFT_OUT = ("rows", "clean_rows", "warnings")
# Of the run in the archive: what the commands read.
KEPT = ("*.json", "model.keras", "train.flags", "attacks/*/*.json", "attacks/*/*.csv")
KEPT_FINISHED = ("attacks/*/cells/*", "attacks/*/measures/*.npz")
RESULTS = ("results.json", "measures.json")
CLOSE = {"rel_tol": 0.01, "abs_tol": 0.01}  # On another processor.
SAME = {"rel_tol": 1e-9, "abs_tol": 1e-9}  # Statistics, on the same one.


def run_study(folder: pathlib.Path) -> pathlib.Path:
    """Runs the study in a folder; returns the study's own folder."""
    paths = (str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", ""))
    flags = (f"--study={STUDY}", "--workdir=study", "--workers=2")
    process = subprocess.run(
        [sys.executable, "-m", "mtr_tf.reproduce", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert process.returncode == 0, process.stderr
    return folder / "study"


def records_of(study: pathlib.Path) -> dict[str, list[dict]]:
    """{"variant, attack, file": its records} of all attacks and measures."""
    records_by_key = {}
    for cell in json.loads((study / "index.json").read_text())["cells"]:
        for name in ("results", "measures"):
            path = study / cell["folder"] / f"{name}.json"
            if cell["kind"] == "attack" and path.exists():
                records = json.loads(path.read_text())
                key = f"{cell['variant']}, {cell['attack']}, {name}"
                records_by_key[key] = [without_places(record) for record in records]
    return records_by_key


def without_places(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in LEFT_OUT}


def verdicts_of(study: pathlib.Path) -> list[dict]:
    """All claims with their numbers, without fields that the stored ones lack."""
    claims = json.loads((study / "report" / "claims.json").read_text())
    for claim in claims:
        del claim["power"], claim["gaps"], claim["claim"]["main"]
    return claims


def digest(records: dict[str, list[dict]]) -> str:
    text = json.dumps(records, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def environment() -> dict[str, str]:
    """What the last bits of results depend on."""
    libraries = ("tensorflow", "keras", "numpy")
    versions = {name: importlib.metadata.version(name) for name in libraries}
    return versions | {"machine": platform.machine(), "processor": processor()}


def processor() -> str:
    """A hash of the processor's name and of what it can do; empty if unknown."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    facts = {line for line in lines if line.startswith(("model name", "flags"))}
    return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:16]


def differences(new, old, tolerance: dict[str, float], place: str = "") -> list[str]:
    """Where two contents of JSON files differ by more than rounding."""
    if isinstance(old, dict) and isinstance(new, dict):
        if set(new) != set(old):
            return [f"{place}: {sorted(set(new) ^ set(old))} are in one of them only"]
        pairs = [(name, new[name], old[name]) for name in old]
    elif isinstance(old, list) and isinstance(new, list):
        if len(new) != len(old):
            return [f"{place}: {len(new)} entries instead of {len(old)}"]
        pairs = [(i, *pair) for i, pair in enumerate(zip(new, old, strict=True))]
    elif all(type(value) in (int, float) for value in (new, old)):
        close = math.isclose(new, old, **tolerance)
        return [] if close else [f"{place}: {new} instead of {old}"]
    else:
        return [] if new == old else [f"{place}: {new!r} instead of {old!r}"]
    return [
        d for n, a, b in pairs for d in differences(a, b, tolerance, f"{place}/{n}")
    ]


LATER = ("images", "precision")  # Fields of records that the stored ones lack.


def without(fields: tuple[str, ...], records: dict[str, list[dict]]) -> dict:
    return {
        key: [{k: v for k, v in r.items() if k not in fields} for r in file_records]
        for key, file_records in records.items()
    }


def without_fingerprints(records: dict[str, list[dict]]) -> dict[str, list[dict]]:
    return without(("model_fingerprint", "source_fingerprint"), records)


@pytest.mark.slow
def test_results_of_a_fixed_study_are_the_same(tmp_path):
    stored = json.loads(STORED.read_text())
    study = run_study(tmp_path)
    records, verdicts = without(LATER, records_of(study)), verdicts_of(study)
    if environment() == stored["environment"]:
        assert not differences(records, stored["records"], {"rel_tol": 0.0})
        assert digest(records) == stored["digest"]
        assert not differences(verdicts, stored["verdicts"], SAME)
    else:
        old_records = without_fingerprints(stored["records"])
        assert not differences(without_fingerprints(records), old_records, CLOSE)
        assert len(verdicts) == len(stored["verdicts"])


def test_the_stored_digest_is_that_of_the_stored_records():
    stored = json.loads(STORED.read_text())
    assert digest(stored["records"]) == stored["digest"]
    assert differences({"a": [1.0]}, {"a": [1.1]}, CLOSE)
    assert not differences({"a": [1.001, None]}, {"a": [1.0, None]}, CLOSE)


# A run that an old version left.


@pytest.fixture
def old_run(tmp_path) -> pathlib.Path:
    with zipfile.ZipFile(OLD_RUN) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "run"


def finished(run: pathlib.Path) -> dict[pathlib.Path, tuple[int, bytes]]:
    """{path: (time of writing, content)} of the files of finished work.

    Without the worst of several attacks, which is combined anew each time.
    """
    contents = {
        path: path.read_bytes()
        for pattern in KEPT_FINISHED
        for path in run.glob(pattern)
    }
    worst_stems = {p.stem for p, c in contents.items() if b'"attack": "sea"' in c}
    return {
        path: (path.stat().st_mtime_ns, content)
        for path, content in contents.items()
        if path.stem not in worst_stems
    }


def forbid_attacks(monkeypatch) -> None:
    """Makes the class that runs attacks fail, whichever module it is in."""

    def fail(*arguments, **settings):
        raise AssertionError("what an old version has finished is attacked again")

    modules = [m for name, m in sys.modules.items() if name.startswith("mtr_tf.")]
    classes = {vars(m)["Evaluator"] for m in modules if "Evaluator" in vars(m)}
    (evaluator,) = classes
    monkeypatch.setattr(evaluator, "__init__", fail)


@pytest.mark.slow
def test_what_an_old_version_finished_is_not_done_again(old_run, monkeypatch, capsys):
    import keras
    import tensorflow as tf

    import mtr_tf
    from mtr_tf import attack

    (results,) = old_run.glob("attacks/*/results.json")
    settings = json.loads(results.with_name("settings.json").read_text())
    # Finished work belongs to versions of these; here only the files matter.
    for module in (mtr_tf, tf, keras):
        version = settings["versions"][module.__name__]
        monkeypatch.setattr(module, "__version__", version)
    old_records = {
        name: json.loads(results.with_name(name).read_text()) for name in RESULTS
    }
    old_files = finished(old_run)
    assert len(old_files) > 10
    fields = settings["attack"] | {"ckpt": str(old_run), "deterministic": False}
    train_settings = json.loads((old_run / "config.json").read_text())["train"]
    # Code that a run names must be named again.
    fields["dataset"] = train_settings["dataset"]
    config = attack.AttackConfig.from_dict(fields)
    attack.main(dataclasses.replace(config, attack=("none",)))  # Imports everything.
    forbid_attacks(monkeypatch)
    attack.main(config)
    new_files = finished(old_run)
    for path, file in old_files.items():
        assert new_files[path] == file, path
    for name, records in old_records.items():
        new_records = json.loads(results.with_name(name).read_text())
        new_records = without(LATER, {name: new_records})[name]
        # The ends of intervals may differ by rounding.
        assert not differences(new_records, records, SAME)
    assert str(results) in capsys.readouterr().out


def test_results_of_an_old_version_are_compared(old_run, capsys):
    from mtr_tf import compare

    (results,) = old_run.glob("attacks/*/results.json")
    compare.main(compare.CompareConfig(runs=(str(old_run),)))
    output = capsys.readouterr().out
    for record in json.loads(results.read_text()):
        if record["attack"] == "pgd" and record["metric"] == "miou":
            assert f"{record['clean']:.3f} (" in output
            assert f"{record['attacked_value']:.3f} (" in output


def update() -> None:
    """Runs the study and stores its results."""
    with tempfile.TemporaryDirectory() as folder:
        study = run_study(pathlib.Path(folder))
        records = records_of(study)
        content = {
            "environment": environment(),
            "digest": digest(records),
            "verdicts": verdicts_of(study),
            "records": records,
        }
        text = json.dumps(content).replace("}, {", "},\n{")  # A record a line.
        STORED.write_text(text + "\n")
        (run,) = study.glob("runs/s-seed0-*")
        with zipfile.ZipFile(OLD_RUN, "w", zipfile.ZIP_DEFLATED) as archive:
            for pattern in KEPT + KEPT_FINISHED:
                for path in sorted(run.glob(pattern)):
                    archive.write(path, pathlib.Path("run", path.relative_to(run)))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    update()
