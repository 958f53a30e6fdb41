# SPDX-License-Identifier: Apache-2.0
"""Foreign pictures and archives: one sentence for a broken or too large file."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import cityscapes_fixture
import numpy as np
import pytest
import taskonomy_fixture
from PIL import Image

from mtr_tf import data
from mtr_tf.data import png
from mtr_tf.data.cityscapes import examples
from mtr_tf.data.cityscapes import files as cityscapes_files
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.taskonomy import finding
from mtr_tf.errors import InputError

START = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def head(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    sizes = struct.pack(">II", width, height)
    return chunk(b"IHDR", sizes + bytes([depth, colour, 0, 0, 0]))


END = chunk(b"IEND")


@pytest.mark.parametrize(
    "content",
    [
        START + head(4, 4) + END,
        START + head(4, 4) + chunk(b"PLTE") + END,
        START + END,
        START + head(4, 4, 3) + END,
        START + head(4, 4) + chunk(b"IDAT", zlib.compress(b"")) + END,
        START + head(4, 4) + chunk(b"IDAT", b"no stream") + END,
        START + chunk(b"IHDR") + chunk(b"IDAT", zlib.compress(bytes(60))) + END,
        START + head(0, 4) + chunk(b"IDAT", zlib.compress(b"")) + END,
        START + head(4, 4) + chunk(b"iCCP", b"a") + END,
        START,
        b"",
    ],
)
def test_broken_pngs_are_one_sentence(content):
    with pytest.raises(InputError, match=r"^'a.png' must be a complete PNG file"):
        png.decode(content, "a.png")


def test_a_whole_png_is_read():
    # By hand: two rows, each of a filter byte and two pixels.
    rows = b"\0" + bytes(range(6)) + b"\0" + bytes(range(6, 12))
    content = START + head(2, 2) + chunk(b"IDAT", zlib.compress(rows)) + END
    expected = np.arange(12).reshape(2, 2, 3)
    np.testing.assert_array_equal(png.decode(content, "a.png"), expected)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_read(tmp_path):
    rows = zlib.compress(bytes(13001))  # One row only, never read.
    content = START + head(13000, 13000, 8, 0) + chunk(b"IDAT", rows) + END
    (tmp_path / "a.png").write_bytes(content)
    message = "at most 67,108,864 pixels, but has 13000 x"
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            png.decode(png.read_file(tmp_path / "a.png"), "a.png")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**33)  # Takes no space.
    with pytest.raises(InputError, match="would take 8,589,934,592 bytes of memory"):
        png.read_file(tmp_path / "a.png")
    file = cityscapes_files.File("", str(tmp_path / "a.png"), 2**33)
    with pytest.raises(InputError, match="would take 8,589,934,592 bytes of memory"):
        file.read()


# Archives.


@pytest.fixture
def root(tmp_path):
    return cityscapes_fixture.write(tmp_path)


def patched(path, old: bytes, new: bytes):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def entry(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    return next(i for i in archive.infolist() if i.filename.endswith(".png"))


def set_in_directory(path, offset: int, value: bytes):
    """Changes a picture's record in the zip's directory, and its local header."""
    with zipfile.ZipFile(path) as archive:
        header, content = entry(archive).header_offset, bytearray(path.read_bytes())
        name = entry(archive).filename.encode()
    record = content.rindex(name) - 46
    content[record + offset : record + offset + len(value)] = value
    if offset < 12:  # The local header has these fields too, two bytes earlier.
        content[header + offset - 2 : header + offset - 2 + len(value)] = value
    path.write_bytes(content)


def read_all(root, kind=layout.DISPARITY):
    splits = cityscapes_files.find(root, kind)
    for split in splits.values():
        for file in split.values():
            png.decode(file.read(), str(file))


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (8, b"\x01\x00", "encrypted"),
        (10, b"\x62\x00", "compression"),  # PPMd
        (24, struct.pack("<I", 2**32 - 10), "would take 4,294,967,286 bytes"),
    ],
)
def test_archives_that_cannot_be_read_say_why(root, offset, value, words):
    cityscapes_fixture.zip_up(root)
    path = root / "disparity_trainvaltest.zip"
    set_in_directory(path, offset, value)
    with pytest.raises(InputError, match=rf"{path}: disparity/.*{words}"):
        read_all(root)


def test_a_packed_picture_that_is_too_large_is_refused(root, monkeypatch):
    monkeypatch.setattr(png, "LARGEST_FILE", 2**20)
    cityscapes_fixture.zip_up(root)
    path = root / "disparity_trainvaltest.zip"
    with zipfile.ZipFile(path) as archive:
        name = entry(archive).filename
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open(name, "w") as file:
        file.write(bytes(2**21))
    with pytest.raises(InputError, match="would take 2,097,152 bytes of memory"):
        read_all(root)


def test_encryption_is_no_lack_of_room(root, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    cityscapes_fixture.zip_up(root)
    set_in_directory(root / "leftImg8bit_trainvaltest.zip", 8, b"\x01\x00")
    with pytest.raises(InputError, match="encrypted.*extract it with another program"):
        data.open_source("cityscapes", data_dir=str(root), image_size=(8, 8))


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED]
)
def test_damage_of_any_way_of_packing_is_one_sentence(root, method):
    cityscapes_fixture.zip_up(root)
    path = root / "disparity_trainvaltest.zip"
    with zipfile.ZipFile(path) as archive:
        parts = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        info = entry(archive)
    original, messages = path.read_bytes(), []
    start = info.header_offset + 30 + len(info.filename)
    for offset in range(start, start + info.compress_size, 7):
        content = bytearray(original)
        content[offset] ^= 0x10
        path.write_bytes(content)
        os.utime(path, ns=(offset, offset))  # A time stamp of its own: a new file.
        file = cityscapes_files.File(str(path), info.filename, info.file_size)
        try:  # Some bits do not matter.
            assert file.read() == parts[info.filename]
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all("extract it with another program" in message for message in messages)


def test_names_that_are_no_utf8_in_an_archive(root):
    cityscapes_fixture.zip_up(root)
    path = root / "disparity_trainvaltest.zip"
    patched(path, b"README", b"READM\xff")
    read_all(root)  # Old archives have such names.
    flag_offset = path.read_bytes().rindex(b"READM\xff") - 46 + 8
    content = bytearray(path.read_bytes())
    content[flag_offset : flag_offset + 2] = b"\x00\x08"  # The flag of UTF-8.
    path.write_bytes(content)
    with pytest.raises(InputError, match="one of Cityscapes' archives, but cannot be"):
        read_all(root)


def test_folders_whose_names_are_no_utf8_are_read(root, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for kind in ("leftImg8bit", "gtFine", "disparity"):
        folder = os.fsencode(root / kind / "train")
        for name in os.listdir(folder + b"/bochum"):
            file = folder + b"/bochum/" + name
            os.rename(file, file.replace(b"bochum_", b"b\xffchum_"))
        os.rename(folder + b"/bochum", folder + b"/b\xffchum")
    source = data.open_source("cityscapes", data_dir=str(root), image_size=(8, 8))
    columns = source.columns("train")
    assert columns.images[np.arange(4)].shape == (4, 8, 8, 3)
    assert columns.names[-1].startswith("b\udcffchum_")


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff{}", b'{"extrinsic": {"baseline": 1e999}}', b"3"]
)
def test_cameras_that_are_none(tmp_path, content):
    (tmp_path / "camera.json").write_bytes(content)
    file = cityscapes_files.File("", str(tmp_path / "camera.json"), len(content))
    with pytest.raises(InputError, match="must be JSON with extrinsic.baseline"):
        examples._baseline_times_focal_length(file)


# Taskonomy.


def test_buildings_whose_names_are_no_utf8_are_found(tmp_path):
    for building in (b"a\xff", b"b"):
        folder = os.fsdecode(building) + "/{domain}"
        taskonomy_fixture.write_building(tmp_path, [0], folder=folder)
    listing = finding.scan(str(tmp_path))
    assert [view.building for view in listing.views] == ["a\udcff", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,train,val,test\nb\xff,1,0,0\n", "must be a text table in UTF-8"),
        (
            b'id,train,val,test\n"' + b"a" * 200_000 + b'",1,0,0\n',
            "must be a text table",
        ),
        (b"train,val,test,id\n1\n", None),
        (b"\xef\xbb\xbfid,train,val,test\nb,1,0,0\n", None),
        (b"", "must have the columns id, train, val and test"),
    ],
)
def test_split_lists_of_any_bytes(tmp_path, content, words):
    taskonomy_fixture.write_building(tmp_path, [0], folder="b/{domain}")
    (tmp_path / "train_val_test_tiny.csv").write_bytes(content)
    if words is None:
        finding.scan(str(tmp_path))
        return
    with pytest.raises(InputError, match=words):
        finding.scan(str(tmp_path))


def test_pillow_is_given_no_picture_that_it_warns_of():
    assert png.MOST_PIXELS < Image.MAX_IMAGE_PIXELS
    buffer = io.BytesIO()
    Image.new("L", (8192, 8192)).save(buffer, "PNG")
    assert png.decode(buffer.getvalue(), "a.png").shape == (8192, 8192)
