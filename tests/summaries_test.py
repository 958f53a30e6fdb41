# SPDX-License-Identifier: Apache-2.0
"""Summaries: tags and pictures by hand, and read back from event files."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from mtr_tf import summaries
from mtr_tf.evaluation import Examples

INFO = types.SimpleNamespace(
    colors=((10, 20, 30), (200, 100, 50)), ranges={"depth": (0.0, 1.0)}
)


def make_examples(attacked: bool = True) -> Examples:
    image = np.full((2, 4, 5, 3), 0.5, np.float32)
    logits = np.zeros((2, 4, 5, 2), np.float32)
    logits[..., 1] = 1
    return Examples(
        image=image,
        targets={"seg": np.zeros((2, 4, 5), np.int32)},
        masks={"seg": np.ones((2, 4, 5), np.float32)},
        clean={"seg": -logits},
        adversarial=image + np.float32(0.1) if attacked else None,
        attacked={"seg": logits} if attacked else {},
    )


def test_tags_and_totals():
    assert summaries.loss_scalars(
        {"seg": 2.0, "depth": 0.5}, {"seg": 1, "depth": 2}
    ) == {
        "loss/seg": 2.0,
        "loss/depth": 0.5,
        "loss/total": 3.0,
    }
    values = {"seg": {"miou": 0.5, "loss": 2.0}, "depth": {"loss": math.nan}}
    found = summaries.evaluation_scalars("clean", values)
    assert found["eval/clean/seg/miou"] == 0.5
    assert found["eval/clean/total/loss"] == 2.0  # Without the task nobody knows.
    assert math.isnan(found["eval/clean/depth/loss"])


def test_the_columns_of_a_picture():
    (picture,) = summaries.pictures(make_examples(), ("seg",), INFO, 0.1).values()
    assert picture.shape == (2 * 4 + 2, 5 * 5 + 4 * 2, 3)
    tile = picture[:4].swapaxes(0, 1)[:, 0]  # The first pixel row, by column.
    image, target, clean, attacked, change = (tile[7 * i : 7 * i + 5] for i in range(5))
    assert (image == 128).all()
    assert (target == (10, 20, 30)).all()
    assert (clean == (10, 20, 30)).all()
    assert (attacked == (200, 100, 50)).all()
    assert (change == 255).all()  # +eps is white.
    assert (picture[:, 5:7] == 255).all()
    assert (picture[4:6] == 255).all()


def test_a_picture_without_an_attack_has_three_columns():
    found = summaries.pictures(make_examples(attacked=False), ("seg",), INFO)
    assert found["pictures/seg"].shape == (10, 3 * 5 + 2 * 2, 3)


def test_magnification():
    change = np.array([[0.0, -0.02, 0.01]])
    assert summaries.magnification(change, 0.05) == pytest.approx(10)
    assert summaries.magnification(change) == pytest.approx(25)
    assert summaries.magnification(change * 0) == 1


def test_settings_as_text():
    table = summaries.settings_table({"tasks": ["seg", "depth"], "a|b": "c|d"})
    assert table.splitlines()[2:] == ["| tasks | `seg,depth` |", "| a|b | `c\\|d` |"]
    assert summaries.hparam_values({"a": (1, 2), "b": 0.5, "c": None, "d": True}) == {
        "a": "1,2",
        "b": 0.5,
        "c": "None",
        "d": True,
    }


def test_what_is_written_can_be_read_back(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        summaries.write_scalars({"loss/seg": 0.25, "loss/depth": math.nan}, 7)
        summaries.write_pictures({"pictures/seg": np.full((3, 4, 3), 9, np.uint8)}, 7)
        summaries.write_settings({"tasks": ("seg",), "epochs": 3}, "trial")
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["tensors"]) >= {"loss/seg", "pictures/seg", "settings"}
    assert "loss/depth" not in events.Tags()["tensors"]
    (scalar,) = events.Tensors("loss/seg")
    assert scalar.step == 7
    assert tf.make_ndarray(scalar.tensor_proto) == 0.25
    width, height, png = tf.make_ndarray(events.Tensors("pictures/seg")[0].tensor_proto)
    assert (int(width), int(height)) == (4, 3)
    assert (tf.io.decode_png(png).numpy() == 9).all()
    (text,) = tf.make_ndarray(events.Tensors("settings")[0].tensor_proto).ravel()[:1]
    assert b"| epochs | `3` |" in text
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert started.hparams["epochs"].number_value == 3
    assert started.hparams["tasks"].string_value == "seg"
