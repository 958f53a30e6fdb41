# SPDX-License-Identifier: Apache-2.0
"""Damaged files of others: the right result, or one sentence.

Content with a checksum (PNG, zip, `.keras`, `.pth`) must come out unchanged or be
refused. Where the checksum is corrected again, any complete result may come out.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib

import cityscapes_fixture
import fuzz_fixture
import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from mtr_tf.data import png
from mtr_tf.data.cityscapes import files as cityscapes_files
from mtr_tf.data.cityscapes import layout
from mtr_tf.models.torch_weights import reading
from mtr_tf.models.torch_weights import transfer
from mtr_tf.runs import loading


def pictures() -> list[bytes]:
    """PNG files of every kind that Pillow writes."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    gray = Image.fromarray(rng.integers(0, 2**16, (9, 7)).astype(np.uint16))
    modes = ("L", "1", "P", "RGBA", "LA")
    kinds = [colours, gray, *(colours.convert(mode) for mode in modes)]
    files = []
    for picture in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", dpi=(72, 72))
        files.append(buffer.getvalue())
    return files


PICTURES = pictures()
DECODED = [png.decode(content, "a.png") for content in PICTURES]


def same(a, b) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)


@fuzz_fixture.tiers(quick=300)
def test_damaged_pngs(cases):
    for rng in cases:
        number = rng.integers(len(PICTURES))
        content = fuzz_fixture.damaged(PICTURES[number], rng)
        with cases.refused():
            assert same(png.decode(content, "a.png"), DECODED[number])


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    parts, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        parts.append((content[place + 4 : place + 8], content[place + 8 :][:length]))
        place += length + 12
    return parts


def png_of(parts) -> bytes:
    pieces = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in parts:
        pieces += [struct.pack(">I", len(content)), kind, content]
        pieces.append(struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(pieces)


@fuzz_fixture.tiers(quick=300)
def test_pngs_with_right_checksums_of_wrong_chunks(cases):
    for rng in cases:
        parts = chunks(PICTURES[rng.integers(len(PICTURES))])
        place = rng.integers(len(parts))
        kind, content = parts[place]
        fault = rng.integers(4)
        if fault == 0:
            del parts[place]
        elif fault == 1:
            parts.insert(rng.integers(len(parts) + 1), parts[place])
        elif fault == 2:
            kinds = [b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"iCCP", b"zTXt", b"acTL"]
            kinds += [b"fcTL", b"fdAT", b"eXIf", b"gAMA", b"cHRM", b"IEND", b"abcd"]
            parts[place] = (kinds[rng.integers(len(kinds))], content)
        else:
            parts[place] = (kind, fuzz_fixture.damaged(content, rng))
        with cases.refused():
            array = png.decode(png_of(parts), "a.png")
            assert array.dtype in (np.uint8, np.uint16)
            assert array.ndim == 2 or array.shape[2] == 3
            assert array.size < 3 * png.MOST_PIXELS


@pytest.fixture(scope="module", params=["stored", "deflated", "bzip2", "lzma"])
def archive(request, tmp_path_factory):
    """The path, bytes and file contents of an archive of Cityscapes' disparities."""
    root = tmp_path_factory.mktemp(request.param)
    cityscapes_fixture.write(root, size=(6, 8))
    cityscapes_fixture.zip_up(root, ("disparity",))
    path = root / "disparity_trainvaltest.zip"
    with zipfile.ZipFile(path) as file:
        contents = {i.filename: file.read(i) for i in file.infolist()}
    methods = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
    with zipfile.ZipFile(path, "w", methods[request.param]) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path, path.read_bytes(), set(contents.values())


@fuzz_fixture.tiers(quick=30)
def test_damaged_zips(cases, archive):
    path, data, contents = archive
    for rng in cases:
        path.write_bytes(fuzz_fixture.damaged(data, rng))
        os.utime(path, ns=(cases.number, cases.number))  # The key of cached archives.
        with cases.refused():
            files = cityscapes_files.find(path.parent, layout.DISPARITY)
            for file in files["train"].values():
                with cases.refused():
                    assert file.read() in contents


def own_model(path) -> keras.Model:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    outputs = {"depth": layers.Conv2D(1, 1)(x), "seg": layers.Conv2D(3, 1)(x)}
    model = keras.Model(image, outputs)
    model.save(path)
    return model


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "whole.keras"
    model = own_model(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    return path.read_bytes(), parts, loading.fingerprint(model)


@fuzz_fixture.tiers(quick=25)
def test_damaged_keras_files(cases, whole_model, tmp_path):
    data, _, fingerprint = whole_model
    path = tmp_path / "m.keras"
    for rng in cases:
        path.write_bytes(fuzz_fixture.damaged(data, rng))
        with cases.refused():
            assert loading.load_run(str(path)).fingerprint == fingerprint


@fuzz_fixture.tiers(quick=25)
@pytest.mark.filterwarnings("ignore")  # From Keras, about oddities in the file.
def test_keras_files_that_say_something_else(cases, whole_model, tmp_path):
    _, parts, fingerprint = whole_model
    path = tmp_path / "m.keras"
    for rng in cases:
        names = ["config.json", "config.json", "metadata.json", "model.weights.h5"]
        name = names[rng.integers(4)]
        if name.endswith(".h5"):
            content = _other_weights(parts[name], rng)
        else:
            content = fuzz_fixture.damaged_json(json.loads(parts[name]), rng)
        with zipfile.ZipFile(path, "w") as file:
            for part in parts:
                file.writestr(part, content if part == name else parts[part])
        with cases.refused():
            run = loading.load_run(str(path))
            assert set(run.model.output) == set(run.tasks)
            if name == "model.weights.h5":
                _check_weights(run.model, content)


def _other_weights(data: bytes, rng) -> bytes:
    """Weights without one of their arrays, or with one of another shape or kind."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visititems(lambda n, o: names.append(n) if hasattr(o, "shape") else None)
        name = names[rng.integers(len(names))]
        value = file[name][()]
        del file[name]
        fault = rng.integers(4)
        if fault == 1:
            file[name] = value[..., :-1]
        elif fault == 2:
            file[name] = np.full(value.shape, b"text")
        elif fault == 3:
            file[name] = value.astype("f8") + 1
    return buffer.getvalue()


def _check_weights(model, data: bytes) -> None:
    """Checks that the model has all weights of the file, and no others."""
    arrays: list[np.ndarray] = []
    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(
            lambda n, o: arrays.append(o[()]) if hasattr(o, "shape") else None
        )
    sums = sorted(float(np.sum(w)) for w in model.get_weights())
    np.testing.assert_allclose(sums, sorted(float(a.sum()) for a in arrays), 1e-5)


@pytest.fixture(scope="module", params=["zip", "legacy"])
def torch_file(request, tmp_path_factory):
    torch = pytest.importorskip("torch", reason="needs torch: pip install .[torch]")
    path = tmp_path_factory.mktemp("torch") / "f.pth"
    generator = torch.Generator().manual_seed(0)
    state = {
        "module.base.0.0.weight": torch.randn(4, 3, 7, 7, generator=generator),
        "module.base.0.1.bias": torch.randn(4, generator=generator).double(),
        "module.base.0.1.num_batches_tracked": torch.tensor(7),
        "module.fc.weight": torch.randn(2, 4, generator=generator).half(),
    }
    is_zip = request.param == "zip"
    torch.save(
        {"epoch": 3, "state_dict": state}, path, _use_new_zipfile_serialization=is_zip
    )
    return path, path.read_bytes(), reading.read(path), is_zip


@fuzz_fixture.tiers(quick=60)
@pytest.mark.filterwarnings("ignore")  # From torch.
def test_damaged_weights_of_pytorch(cases, torch_file):
    path, data, expected, is_zip = torch_file
    for rng in cases:
        path.write_bytes(fuzz_fixture.damaged(data, rng))
        with cases.refused():
            arrays = reading.read(path)
            if is_zip:  # Legacy files have no checksums.
                assert arrays.keys() == expected.keys()
                assert all(same(arrays[name], expected[name]) for name in expected)
            for array in arrays.values():
                assert np.isfinite(array).all()
            transfer.contents(arrays, "drn_d_22")
