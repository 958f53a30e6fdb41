# SPDX-License-Identifier: Apache-2.0
"""Finished work is found again, and never believed once it was changed."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

from mtr_tf.runs import store

KEY = {"format": 1, "tasks": ("seg", "depth"), "eps": 8.0}
CONTENT = {"count": 3, "scores": {"seg": {"value": 0.25, "interval": [0.1, None]}}}
ARRAYS = {"row/seg": np.arange(6.0).reshape(3, 2), "unit": np.array([0, 0, 1])}


@pytest.fixture
def kept(tmp_path):
    new_store = store.Store(tmp_path)
    new_store.write(KEY, CONTENT, ARRAYS)
    return new_store


def test_what_is_kept_comes_back(kept):
    entry = kept.read(KEY)
    assert entry.content == CONTENT
    assert entry.sealed
    assert {name: a.tolist() for name, a in entry.arrays.items()} == {
        name: a.tolist() for name, a in ARRAYS.items()
    }
    assert kept.read(KEY | {"eps": 4.0}) is None


def test_the_name_is_the_hash_of_sorted_json(kept):
    text = '{"eps": 8.0, "format": 1, "tasks": ["seg", "depth"]}'
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert kept.path(KEY).name == f"{name}.json"


def other(kept):
    """The path of another entry of the same form."""
    kept.write(KEY | {"eps": 4.0}, CONTENT | {"count": 2}, ARRAYS)
    return kept.path(KEY | {"eps": 4.0})


DAMAGES = {
    "a digit": lambda p, k: p.write_text(p.read_text().replace("0.25", "0.35")),
    "a missing part": lambda p, k: p.write_text(
        json.dumps({n: v for n, v in json.loads(p.read_text()).items() if n != "count"})
    ),
    "half a file": lambda p, k: p.write_text(p.read_text()[:40]),
    "an empty file": lambda p, k: p.write_text(""),
    "a list": lambda p, k: p.write_text("[1, 2]"),
    "a number": lambda p, k: p.write_text("3"),
    "no text": lambda p, k: p.write_bytes(b"\xff\xfe\x00"),
    "deep nesting": lambda p, k: p.write_text("[" * 100_000),
    "another entry": lambda p, k: shutil.copy(other(k), p),
    "other arrays": lambda p, k: store.write_arrays(
        p.with_suffix(".npz"), ARRAYS | {"unit": np.array([0, 1, 1])}
    ),
    "arrays of another entry": lambda p, k: store.write_arrays(
        p.with_suffix(".npz"), {"row/seg": np.zeros((3, 2)), "unit": ARRAYS["unit"]}
    ),
    "no arrays": lambda p, k: p.with_suffix(".npz").unlink(),
    "arrays cut off": lambda p, k: p.with_suffix(".npz").write_bytes(
        p.with_suffix(".npz").read_bytes()[:-30]
    ),
    "a folder in its place": lambda p, k: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_changed_is_not_believed(kept, damage, caplog):
    DAMAGES[damage](kept.path(KEY), kept)
    assert kept.read(KEY) is None
    assert "is damaged" in caplog.text
    if damage != "a folder in its place":
        kept.write(KEY, CONTENT, ARRAYS)
        assert kept.read(KEY).content == CONTENT


@pytest.mark.parametrize("seed", range(40))
def test_any_bit_of_the_files(kept, seed):
    """A flipped bit is noticed, or changes nothing that is read."""
    random = np.random.default_rng(seed)
    path = kept.path(KEY).with_suffix(random.choice([".json", ".npz"]))
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)
    entry = kept.read(KEY)
    if entry is not None:
        assert entry.content == CONTENT
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(entry.arrays[name], array)


def test_work_of_a_version_without_checksums_is_found(kept):
    path = kept.path(KEY)
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content))
    entry = kept.read(KEY)
    assert (entry.content, entry.sealed) == (CONTENT, False)
