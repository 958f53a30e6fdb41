# SPDX-License-Identifier: Apache-2.0
"""From a file of PyTorch weights to a run that can be attacked; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
import zipfile

import cityscapes_fixture
import numpy as np
import pytest
from tiers_fixture import slow

from mtr_tf.config.attack import AttackConfig
from mtr_tf.convert import ConvertConfig
from mtr_tf.convert import convert
from mtr_tf.data import batching
from mtr_tf.errors import InputError
from mtr_tf.models.torch_weights import names as weight_names
from mtr_tf.models.torch_weights import reading as torch_files
from mtr_tf.models.torch_weights import transfer as torch_weights
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.training import loop as training

CHANNELS = {"segmentsemantic": 11, "depth_zbuffer": 1, "autoencoder": 3}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch: pip install .[torch]")


@pytest.fixture(scope="module")
def net(torch):
    """The released DRN-D-22 with two channels, and weights by a formula."""
    import torch_fixture

    return torch_fixture.fill(torch_fixture.Released("drn_d_22", CHANNELS, 2))


@pytest.fixture
def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.fixture
def file(torch, state, tmp_path):
    """As the released training loop saves it."""
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    path = tmp_path / "d22.pth.tar"
    torch.save({"epoch": 200, "arch": "drn_d_22", "state_dict": state}, path)
    return path


def arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("path", "part", "weight"),
    [
        ("encoder_layer0_conv/kernel", "encoder", "layer0.0.weight"),
        ("encoder_layer2_norm/beta", "encoder", "layer2.1.bias"),
        ("encoder_layer4_block22_3_conv/kernel", "encoder", "layer4.22.conv3.weight"),
        (
            "encoder_layer3_block0_shortcut_norm/moving_mean",
            "encoder",
            "layer3.0.downsample.1.running_mean",
        ),
        ("encoder_stem_norm/gamma", "encoder", "bn1.weight"),
        ("decoder_shared_layer8_conv/kernel", "shared", "layer8.0.weight"),
        (
            "decoder_depth_euclidean_layer6_block1_2_norm/moving_variance",
            "depth_euclidean",
            "layer6.1.bn2.running_var",
        ),
        ("decoder_seg_up4_conv/bias", "seg", "upconv4.bias"),
        ("decoder_seg_stage0_norm/gamma", "seg", "bn_decode0.weight"),
        ("head_edge_texture/bias", "edge_texture", "head.bias"),
    ],
)
def test_names_of_variables(path, part, weight):
    assert weight_names.of_variable(path) == (part, weight)


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("encoder.0.0.weight", "drn_d_22", ("encoder", "layer0.0.weight")),
        ("base.5.1.bn2.bias", "drn_d_22", ("encoder", "layer5.1.bn2.bias")),
        ("base.6.0.conv1.weight", "drn_d_22", ("shared", "layer6.0.conv1.weight")),
        ("layer8.1.running_var", "drn_d_22", ("shared", "layer8.1.running_var")),
        ("encoder.0.weight", "drn_c_26", ("encoder", "layer0.0.weight")),
        ("base.1.running_mean", "drn_c_26", ("encoder", "layer0.1.running_mean")),
        ("bn1.weight", "drn_c_26", ("encoder", "layer0.1.weight")),
        ("encoder.7.1.bn1.bias", "drn_c_26", ("encoder", "layer5.1.bn1.bias")),
        ("base.10.0.bn2.bias", "drn_c_26", ("shared", "layer8.0.bn2.bias")),
        ("task_to_decoder.depth.1.0.weight", "drn_d_22", ("depth", "layer7.0.weight")),
        ("task_to_decoder.d.3.bias", "drn_d_22", ("depth", "head.bias")),
        ("task_to_decoder.reconstruct.0.1.bn1.bias", "drn_d_22",
         ("autoencoder", "layer6.1.bn1.bias")),
        ("seg.weight", "drn_d_22", ("seg", "head.weight")),
        ("up.weight", "drn_d_22", ("seg", "up.weight")),
        ("fc.weight", "drn_d_22", ("classifier", "fc.weight")),
        ("encoder.9.0.weight", "drn_d_22", None),
        ("task_to_decoder.depth.5.weight", "drn_d_22", None),
        ("optimizer.weight", "drn_d_22", None),
        ("encoder.conv1.weight", "resnet18", ("encoder", "conv1.weight")),
        ("layer4.1.bn2.bias", "resnet34", ("encoder", "layer4.1.bn2.bias")),
        (
            "task_to_decoder.principal_curvature.conv_decode4.bias",
            "resnet18",
            ("curvature", "head.bias"),
        ),
        ("task_to_decoder.segment_unsup2d.upconv0.bias", "resnet18",
         ("segment_unsup2d", "upconv0.bias")),
        ("layer5.0.conv1.weight", "resnet18", None),
    ],
)  # fmt: skip
def test_names_in_files(name, model, expected):
    assert weight_names.of_tensor(name, model) == expected


def test_without_torch_it_is_said(monkeypatch, tmp_path):
    (tmp_path / "any.pth").write_bytes(b"")
    monkeypatch.setattr(torch_files, "torch", None)
    with pytest.raises(InputError, match="pip install torch"):
        torch_files.read(tmp_path / "any.pth")


def test_a_torch_that_is_not_safe_is_refused(monkeypatch, tmp_path):
    (tmp_path / "any.pth").write_bytes(b"")
    old_torch = types.SimpleNamespace(__version__="2.5.1+cpu")
    monkeypatch.setattr(torch_files, "torch", old_torch)
    with pytest.raises(InputError, match=r"2\.6 or newer, but this is 2\.5\.1.*CVE"):
        torch_files.read(tmp_path / "any.pth")


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new", [True, False])
def test_no_code_in_a_file_is_run(torch, state, tmp_path, new):
    trace, path = tmp_path / "ran", tmp_path / "bad.pth"
    content = {"state_dict": state, "extra": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"could run code.*is refused"):
        torch_files.read(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # It would have.


def test_what_is_no_state_dict_is_explained(torch, state, tmp_path):
    path = tmp_path / "f.pth"
    with pytest.raises(InputError, match=r"--torch must be a file"):
        torch_files.read(path)
    path.write_bytes(b"PK\x03\x04 but no zip file")
    with pytest.raises(InputError, match=r"cannot be read|is refused"):
        torch_files.read(path)
    for content, words in (
        ([1, 2], "it holds list"),
        ({}, "it holds dict"),
        ({"epoch": 3}, "'epoch' is int"),
        ({"a": torch.tensor([1, float("nan")])}, "NaN or infinity in a"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=words):
            torch_files.read(path)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda torch: torch.eye(3).to_sparse(), "w is sparse"),
        (lambda torch: torch.eye(3).to_sparse_csr(), "w is sparse"),
        (lambda torch: torch.empty(3, device="meta"), "w is without values"),
        (
            lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "w is quantised",
        ),
        (lambda torch: torch.nested.nested_tensor([torch.ones(2)] * 2), "w is nested"),
        (lambda torch: torch.ones(3, dtype=torch.complex64), "w is complex"),
        (lambda torch: torch.zeros(1).expand(10**12), "1,000,000,000,00[0-9] numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # New or deprecated parts of torch.
def test_tensors_of_other_kinds_are_refused(torch, tmp_path, make, words, new):
    path = tmp_path / "f.pth"
    state = {"a": torch.ones(3), "w": make(torch)}
    try:
        torch.save(state, path, _use_new_zipfile_serialization=new)
    except Exception as error:
        pytest.skip(f"torch cannot save it: {error}")
    with pytest.raises(InputError, match=rf"{words}|cannot be read|is refused"):
        torch_files.read(path)


def test_tensors_that_share_numbers_are_counted(torch, tmp_path):
    tensor = torch.ones(100_000)
    torch.save({str(i): tensor for i in range(5)}, tmp_path / "f.pth")
    with pytest.raises(
        InputError, match="they have 500,000 numbers and the file .*clone"
    ):
        torch_files.read(tmp_path / "f.pth")
    torch.save({str(i): tensor for i in range(3)}, tmp_path / "f.pth")  # Tied weights.
    assert len(torch_files.read(tmp_path / "f.pth")) == 3


def test_names_that_become_one_are_refused(torch, tmp_path):
    torch.save({"module.a": torch.ones(1), "a": torch.ones(1)}, tmp_path / "f.pth")
    with pytest.raises(InputError, match="two tensors for a, with and without"):
        torch_files.read(tmp_path / "f.pth")


def test_a_flipped_bit_is_noticed(torch, tmp_path):
    path = tmp_path / "f.pth"
    torch.save({"a": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    assert torch.load(path)["a"].shape == (1000,)  # It would not have been.
    with pytest.raises(InputError, match="is damaged: the checksum of"):
        torch_files.read(path)


def test_a_packed_file_that_fills_the_memory_is_refused(torch, tmp_path):
    path = tmp_path / "f.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("f/data.pkl", bytes(2**27))
    with pytest.raises(InputError, match="would take 134,217,728 bytes of memory"):
        torch_files.read(path)


def test_a_file_of_which_nothing_fits_is_one_sentence(torch, tmp_path):
    torch.save({"layers.0.w": torch.ones(3)}, tmp_path / "f.pth")
    with pytest.raises(InputError, match="none of its names is .*: layers.0.w. Check"):
        convert(ConvertConfig(torch=str(tmp_path / "f.pth"), workdir=str(tmp_path)))


@pytest.mark.parametrize("new", [True, slow(False)])
def test_each_way_of_saving_reads_the_same(torch, state, tmp_path, new):
    path = tmp_path / "f.pth"
    dtypes = (torch.float32, torch.float64)
    for prefix in ("", "module.", "module.module."):
        for wrap in (lambda d: d, lambda d: {"epoch": 1, "state_dict": d}):
            for dtype in dtypes:
                tensors = {
                    prefix + name: t.to(dtype) if t.is_floating_point() else t
                    for name, t in state.items()
                }
                torch.save(wrap(tensors), path, _use_new_zipfile_serialization=new)
                result = torch_files.read(path)
                assert result.keys() == state.keys()
                for name, tensor in state.items():
                    np.testing.assert_array_equal(result[name], tensor)
                    assert result[name].dtype in (np.float32, np.int64)


def _drop(state):
    del state["encoder.3.0.conv1.weight"]


def _add(state):
    state["encoder.3.7.conv1.weight"] = state["encoder.3.0.conv2.weight"]
    state["optimizer.step"] = state["encoder.3.0.bn1.bias"]


def _reshape(state):
    name = "task_to_decoder.depth_zbuffer.3.weight"
    state[name] = state[name][:, 1:]


def _differ(state):
    state["task_to_decoder.depth_zbuffer.1.0.weight"] += 1


def _sharpen(state):
    state["task_to_decoder.depth_zbuffer.4.weight"] *= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, ["1 missing: encoder: layer3.0.conv1.weight"]),
        (_add, ["2 unexpected: encoder.3.7.conv1.weight, optimizer.step"]),
        (
            _reshape,
            ["1 of another shape: task_to_decoder.depth_zbuffer.3.weight",
             "[1, 63, 1, 1] and must be [1, 64, 1, 1]"],
        ),
        (_differ, ["--decoders=separate", "depth_zbuffer.1.0.weight"]),
        (_sharpen, ["4.weight (not the fixed bilinear kernel)"]),
        (lambda state: (_drop(state), _add(state)), ["1 missing", "2 unexpected"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_listed(state, change, words):
    from mtr_tf import models

    change(state)
    weights = torch_weights.contents(arrays(state), "drn_d_22")
    model = models.build(
        "drn_d_22", "s,d,A", (None, None, 3), 11, width=2, decoders="shared"
    )
    old_values = [variable.numpy() for variable in model.variables]
    with pytest.raises(InputError) as error:
        torch_weights.assign(model, weights)
    message = str(error.value)
    assert [word for word in words if word not in message] == []
    assert "heads for seg, depth, autoencoder" in message
    assert "\n" not in message
    for variable, value in zip(model.variables, old_values, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_file_of_another_model_is_one_sentence(file):
    with pytest.raises(InputError) as error:
        convert(ConvertConfig(torch=str(file), model="drn_d_38"))
    assert "does not fit --model=drn_d_38" in str(error.value)
    assert "more" in str(error.value)
    assert len(str(error.value)) < 1200


def test_a_run_has_the_files_settings(file, net, tmp_path):
    config = ConvertConfig(torch=str(file), workdir=str(tmp_path / "run"))
    workdir = convert(config)
    train = directory.read_config(workdir)
    assert train.tasks == ("seg", "depth", "autoencoder")
    assert (train.model, train.width, train.decoders) == ("drn_d_22", 2, "shared")
    assert (train.dataset, train.depth_target) == ("cityscapes", "released")
    assert not train.as_released
    record = json.loads((workdir / "conversion.json").read_text())
    assert record["convert"]["torch"] == "d22.pth.tar"
    assert any("log-softmax" in sentence for sentence in record["said"])
    model = loading.load_run(str(workdir)).model
    x = np.random.default_rng(0).random((1, 16, 24, 3), np.float32)
    outputs = model(x, training=False)
    assert {t: y.shape[-1] for t, y in outputs.items()} == {
        "seg": 11,
        "depth": 1,
        "autoencoder": 3,
    }
    result = model.get_layer("normalize")(x)
    mean, std = (0.290101, 0.328081, 0.286964), (0.182954, 0.186566, 0.184475)
    expected = (x - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    with pytest.raises(
        InputError, match=r"converted by mtr_tf.convert, which training would overwrite"
    ):
        training.train(train, workdir)
    old_time = (workdir / "model.keras").stat().st_mtime_ns
    convert(config)  # Nothing is left to do.
    (workdir / "config.json").unlink()  # As if killed before its end: converts again.
    convert(config)
    assert (workdir / "model.keras").stat().st_mtime_ns > old_time
    record = workdir / "conversion.json"
    other_config = dataclasses.replace(config, tasks=("seg",))
    for text in (
        record.read_text(),
        record.read_text().replace('"seed": 0', '"seed": 1'),
    ):
        record.write_text(text)
        with pytest.raises(InputError, match=r"holds something else \(config\.json"):
            convert(other_config)
    old_time = (workdir / "model.keras").stat().st_mtime_ns
    convert(config)  # The record has changed: converts again.
    assert (workdir / "model.keras").stat().st_mtime_ns > old_time


def test_a_converted_autoencoder_is_compared_with_what_its_model_takes(
    file, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    raw = cityscapes_fixture.write(tmp_path / "raw")
    workdir = convert(
        ConvertConfig(
            torch=str(file),
            data_dir=str(raw),
            image_size="16x24",
            workdir=str(tmp_path / "run"),
        )
    )
    sentences = json.loads((workdir / "conversion.json").read_text())["said"]
    assert any(
        "autoencoder gives standardised pictures" in sentence for sentence in sentences
    )
    run = loading.load_run(str(workdir))
    config = AttackConfig(ckpt=str(workdir), tasks=("autoencoder",))
    source, _ = loading.open_data(config, run)
    columns = source.columns("validation")
    batch = batching.gather(columns, ("autoencoder",), np.arange(3))
    inputs = run.model.get_layer("normalize")(batch["image"])
    target = batch["targets"]["autoencoder"]
    np.testing.assert_allclose(target, inputs, rtol=1e-4, atol=1e-5)


def test_decoders_that_differ_become_separate(torch, state, tmp_path):
    _differ(state)
    path = tmp_path / "f.pth"
    torch.save(state, path)
    config = ConvertConfig(
        torch=str(path), tasks=("d", "s"), workdir=str(tmp_path / "r")
    )
    workdir = convert(config)
    assert directory.read_config(workdir).decoders == "separate"
    run = loading.load_run(str(workdir))
    assert run.tasks == ("depth", "seg")
    kernels = [
        run.model.get_layer(f"decoder_{task}_layer7_conv").kernel.numpy()
        for task in run.tasks
    ]
    np.testing.assert_allclose(kernels[0], kernels[1] + 1, atol=1e-6)
    sentences = json.loads((workdir / "conversion.json").read_text())["said"]
    assert "autoencoder: weights that only they use are left out." in sentences


@pytest.mark.parametrize(("classes", "channels"), [slow(0, 18), (17, 17)])
def test_taskonomys_unused_class(torch, tmp_path, classes, channels):
    import torch_fixture

    net = torch_fixture.Released("resnet18", {"segmentsemantic": 18, "normal": 3}, 4)
    path = tmp_path / "r18.pth"
    torch.save(torch_fixture.fill(net).state_dict(), path)
    workdir = convert(
        ConvertConfig(
            torch=str(path),
            model="resnet18",
            num_classes=classes,
            workdir=str(tmp_path / "run"),
        )
    )
    train = directory.read_config(workdir)
    assert (train.dataset, train.as_released) == ("taskonomy", True)
    assert (train.decoders, train.width) == ("separate", 4)
    model = loading.load_run(str(workdir)).model
    head = net.state_dict()["task_to_decoder.segmentsemantic.conv_decode4.weight"]
    expected = head.numpy()[:channels].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.get_layer("head_seg").kernel, expected)
    np.testing.assert_allclose(
        model.get_layer("normalize")(np.eye(3)), 2 * np.eye(3) - 1
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "small"}, r"--model must be one of resnet18,.*got 'small'"),
        ({"tasks": ("seg", "normal")}, "heads for seg, depth, autoencoder"),
        ({"num_classes": 12}, r"\[11, 64, 1, 1\] and must be \[12, 64, 1, 1\]"),
        ({"image_size": "60x90"}, "multiples of 8"),
        ({"dataset": "citiscapes"}, "--dataset must be one of .*cityscapes"),
        ({"torch": ""}, "--torch must be a file"),
    ],
)
def test_mistakes_are_explained(file, tmp_path, settings, words):
    settings = {"torch": str(file), "workdir": str(tmp_path / "run"), **settings}
    with pytest.raises(InputError, match=words):
        convert(ConvertConfig(**settings))
    assert not (tmp_path / "run" / "model.keras").exists()


def test_a_classification_file_needs_tasks(torch, tmp_path):
    import torch_fixture

    path = tmp_path / "official.pth"
    torch.save(torch_fixture.classification("drn_d_22", 2).state_dict(), path)
    settings = {"torch": str(path), "workdir": str(tmp_path / "run"), "num_classes": 5}
    with pytest.raises(InputError, match="--tasks must say which heads"):
        convert(ConvertConfig(**settings))
    workdir = convert(ConvertConfig(**settings, tasks=("s", "d")))
    sentences = json.loads((workdir / "conversion.json").read_text())["said"]
    assert (
        "head_depth, head_seg: not in the file, so they keep their initial values."
        in sentences
    )
    assert "images are standardised as for imagenet." in sentences


@pytest.mark.slow
def test_from_the_file_to_an_attack(file, camvid_dir, tmp_path):
    def run(module, *flags):
        return subprocess.run(
            [sys.executable, "-m", module, *flags],
            capture_output=True,
            text=True,
            timeout=300,
        )

    workdir = tmp_path / "run"
    conversion = run(
        "mtr_tf.convert",
        f"--torch={file}",
        "--tasks=s,A",
        "--dataset=camvid",
        f"--data_dir={camvid_dir}",
        "--image_size=40x48",
        f"--workdir={workdir}",
    )
    assert conversion.returncode == 0, conversion.stderr
    assert f"python -m mtr_tf.attack --ckpt={workdir}" in conversion.stderr
    attack = run(
        "mtr_tf.attack",
        f"--ckpt={workdir}",
        "--attack=fgsm",
        "--precision=mixed_bfloat16",
        "--eps=4",
        "--split=validation",
        "--attack_tasks=seg",
        "--nochecks",
    )
    assert attack.returncode == 0, attack.stderr
    (results,) = workdir.glob("attacks/*/results.json")
    metrics = {(r["task"], r["metric"]) for r in json.loads(results.read_text())}
    assert ("seg", "miou") in metrics
    refusal = run("mtr_tf.convert", f"--torch={file}", f"--workdir={workdir}")
    assert refusal.returncode == 1
    *_, line = refusal.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in refusal.stderr
