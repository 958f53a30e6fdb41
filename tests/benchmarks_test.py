# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs, at the smallest sizes, and writes what it should."""

from __future__ import annotations

import importlib
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from mtr_tf import models
from mtr_tf.tasks import task_losses
from mtr_tf.tasks import task_set

_FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
_SMALL = ("--model=tiny", "--width=4", "--image_size=16", "--steps=2")


@pytest.fixture
def script(monkeypatch):
    """Imports a file of benchmarks/ as running it would."""
    monkeypatch.syspath_prepend(_FOLDER)
    return importlib.import_module


def _report(script, name, tmp_path, *flags) -> dict:
    path = tmp_path / "report.json"
    script(name).main([*flags, "--rounds=1", f"--output={path}"])
    report = json.loads(path.read_text())
    assert report["settings"]["rounds"] == 1
    assert report["versions"]["tensorflow"] == tf.__version__
    return report


def test_ratios_are_of_medians(script, monkeypatch):
    timing = script("timing")
    clock = iter(np.cumsum([0, 1, 0, 3, 0, 8, 0, 2, 0, 2, 0, 2]))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(timing.random.Random, "sample", lambda _, names, count: names)
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.alternate(contestants, 3, warm_up=1)
    assert calls == [*"ab", *"ababab"]
    assert times["a"].wall == 2  # The median of 1, 8 and 2.
    assert times["a"].over(times["b"], 0.5).wall == 2 / (0.5 * 2)


def test_table(script):
    timing = script("timing")
    records = [{"what": "long name", "ms": 1.25}, {"what": "x", "ms": None}]
    assert timing.table(records, {"what": "s", "ms": ".1f"}) == (
        "what        ms\nlong name  1.2\nx"
    )


def test_scheduling(script, tmp_path, capsys):
    flags = ("--cells=100", "--processes=2")
    rows = _report(script, "scheduling", tmp_path, *flags)["results"]
    assert [row["cells"] for row in rows] == [100]
    assert "a command that does nothing: " in capsys.readouterr().out


def test_readers(script, tmp_path):
    flags = ("--readers=1,2", "--sleep_ms=0", "--batch_size=2", "--batches=2")
    rows = _report(script, "readers", tmp_path, *flags)["results"]
    assert [row["readers"] for row in rows] == [1, 2]
    assert all(row["images/s"] > 0 for row in rows)


def test_attack_speed(script, tmp_path, capsys):
    flags = (*_SMALL, "--attacks=fgsm", "--norms=l2", "--batch_sizes=2")
    report = _report(script, "attack_speed", tmp_path, *flags)
    (row,) = report["results"]
    assert row["attack"] == "fgsm"
    # The limit of FGSM is one pass, of the two that were timed.
    assert row["ratio"] == pytest.approx(row["attack ms"] / row["limit ms"])
    assert "unfolded" in capsys.readouterr().out


@pytest.mark.slow
def test_below_limit(script, tmp_path):
    flags = (*_SMALL, "--batch_sizes=2", "--judged=2")
    report = _report(script, "below_limit", tmp_path, *flags)
    losses = {row["what"]: row["relative loss"] for row in report["results"]}
    assert losses["PGD"] == 1
    assert losses["PGD, folded"] == pytest.approx(1, abs=1e-3)
    assert losses["PGD, folded, bfloat16"] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_joint_speed(script, tmp_path):
    flags = (*_SMALL, "--tasks=seg,depth", "--batch_sizes=1")
    report = _report(script, "joint_speed", tmp_path, *flags)
    assert {row["decoders"] for row in report["results"]} == {"shared", "separate"}


@pytest.mark.fuzz
def test_strongest_attack(script, tmp_path, monkeypatch, capsys):
    module, problems = script("strongest_attack"), script("problems")

    def nets(args):
        args.decoders = "separate"
        yield "new", problems.random(args, args.images)

    monkeypatch.setattr(module, "_nets", nets)
    flags = ("--model=tiny", "--width=4", "--image_size=16", "--tasks=seg,depth")
    sizes = ("--images=2", "--budgets=12,24", "--eps=8", "--seeds=1")
    report = _report(script, "strongest_attack", tmp_path, *flags, *sizes)
    rows = {(r["task"], r["metric"], r["attack"]): r for r in report["results"]}
    clean = rows["seg", "pixel_accuracy", "none"]
    for attack in ("pgd own", "apgd cospgd", "worst own", "sea"):
        row = rows["seg", "pixel_accuracy", attack]
        assert max(row["12"], row["24"]) <= clean["12"]
        assert ("seg", "miou", attack) in rows
    assert rows["depth", "mae", "apgd own"]["12"] > rows["depth", "mae", "none"]["12"]
    assert ("depth", "mae", "apgd cospgd") not in rows  # The same as its own loss.
    assert "strongest on maps at 12 gradients: " in capsys.readouterr().out


@pytest.mark.slow
def test_gradient_law_against_sums_of_gradients(script):
    """For every set, at both places: sums the vectors and averages their norms."""
    law = script("gradient_law")
    tasks = task_set(("seg", "depth", "normal"))
    batch = _batch(6, tasks)
    model = models.build("tiny", tasks, batch["image"].shape[1:], 4)
    gradients = law.gradients_of(model, tasks, [batch])
    trunk, heads = law.split(model)
    image = tf.constant(batch["image"])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(image)
        features = trunk(image, training=False)
        outputs = heads(features, training=False)
        losses = task_losses(tasks, outputs, batch["targets"], batch["masks"])
    for place, x in (("image", image), ("trunk", features)):
        slopes = [np.array(tape.gradient(losses[t], x)).reshape(6, -1) for t in tasks]
        slopes = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in slopes]
        sets = [[r for t, r in enumerate(slopes) if n >> t & 1] for n in range(1, 8)]
        norms = [np.linalg.norm(sum(group) / len(group), axis=1) for group in sets]
        numbers = law.numbers_of(gradients[place])
        np.testing.assert_allclose(
            numbers["sets_measured"], [norm[3:].mean() for norm in norms], rtol=1e-3
        )
        squares = [(norm[:3] ** 2).mean() for norm in norms]
        np.testing.assert_allclose(
            numbers["sets_predicted"], np.sqrt(squares), rtol=1e-3
        )
        sizes = np.array([len(group) for group in sets])
        by_size = [np.mean(np.array(squares)[sizes == k]) for k in (1, 2, 3)]
        np.testing.assert_allclose(numbers["law"], np.sqrt(by_size), rtol=1e-3)


def test_the_page_about_theory_has_the_numbers_of_its_run(script):
    docs = _FOLDER.parent / "docs"
    run = json.loads((docs / "theory.json").read_text("utf-8"))
    page = (docs / "theory.md").read_text("utf-8")
    assert {net["seed"] for net in run["nets"]} == {*range(run["settings"]["seeds"])}
    for row in script("gradient_law").table(run["means"]):
        assert row in page


def _batch(count, tasks):
    rng = np.random.default_rng(0)
    side = (count, 16, 16)
    targets = {
        "seg": rng.integers(0, 4, side),
        "depth": rng.uniform(1, 3, (*side, 1)).astype("f"),
        "normal": rng.normal(size=(*side, 3)).astype("f"),
    }
    return {
        "image": rng.uniform(size=(*side, 3)).astype("f"),
        "targets": targets,
        "masks": {task: rng.integers(0, 2, side).astype("f") for task in tasks},
        "index": np.arange(count),
    }


def test_memory(script, capsys):
    script("memory").main([*_SMALL, "--batch_size=2", "--child=pgd,1"])
    peak, attack_peak = map(float, capsys.readouterr().out.split())
    assert peak > attack_peak >= 0


@pytest.mark.slow
def test_peers_without_peers(script, tmp_path):
    flags = ("--peers=", "--width=4", "--image_size=32", "--steps=2", "--batch_sizes=2")
    flags += ("--train_steps=0", "--judged=2")
    report = _report(script, "peers", tmp_path, *flags)
    limit_row, best_row, last_row = report["results"]
    assert [row["what"] for row in (limit_row, best_row, last_row)] == [
        "limit",
        "mtr_tf",
        "mtr_tf last",
    ]
    assert (best_row["keeps"], last_row["keeps"]) == ("best", "last")
    assert best_row["loss"] >= last_row["loss"] > 0


@pytest.mark.parametrize("name", ["peers", "released_speed"])
def test_what_is_missing_is_named(script, name, monkeypatch):
    for module in ("foolbox", "torch"):
        monkeypatch.setitem(script("sys").modules, module, None)
    with pytest.raises(SystemExit, match=r"pip install -e '.\[bench\]'"):
        script(name).main([])


@pytest.mark.slow
def test_torch_computes_the_same(script, tmp_path):
    pytest.importorskip("torch")
    flags = ("--width=4", "--image_size=16", "--steps=2")
    report = _report(script, "released_speed", tmp_path, *flags)
    losses = [row["loss"] for row in report["results"]]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3)


def test_gpu_rehearsed(script, tmp_path, capsys):
    flags = ("--tiny", "--part=matmul,attack", f"--output={tmp_path / 'report.json'}")
    script("gpu").main([*flags, "--seconds=0.1"])  # Not even TensorFlow is imported.
    assert capsys.readouterr().out.count("took too long") == 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["part"] for row in report["results"]] == ["matmul", *["attack"] * 3]
    with pytest.raises(SystemExit):
        script("gpu").main(["--part=matmull"])
    assert "--part=matmull must be out of matmul, attack" in capsys.readouterr().err


@pytest.mark.slow
def test_gpu_on_a_cpu(script, tmp_path):
    flags = ("--tiny", "--part=matmul,limit", "--processes=3")
    report = _report(script, "gpu", tmp_path, *flags, f"--profile={tmp_path}")
    products, passes = report["results"][0], report["results"][3]
    assert products["least_ms"] <= products["ms"] <= products["most_ms"]
    assert products["kernels"] == []  # A CPU has none.
    assert products["dtype"] == passes["dtype"] == "bfloat16"
    assert passes["tflops"] == pytest.approx(passes["gflop"] * 2 / passes["ms"])
    assert passes["share"] == pytest.approx(passes["tflops"] / products["tflops"])


def test_a_process_that_dies_as_it_waits_is_one_record(script, monkeypatch, tmp_path):
    gpu = script("gpu")
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import os\nprint('{{node x}} {')\nprint('{\"ready\": true}', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(fake))
    args = gpu._arguments([f"--output={tmp_path / 'x.json'}"])
    records = list(gpu._group_records(["attack:0", "attack:1"], args))
    assert [record["what"] for record in records] == ["attack:0", "attack:1"]
    assert {record["error"] for record in records} == {"no word"}


def test_the_usual_parts_compile_together(script):
    gpu = script("gpu")
    args = gpu._arguments(["--processes=10", "--torch_python=x"])
    assert [len(names) for names in gpu._worker_groups(args)] == [10, 1]
    args = gpu._arguments(["--processes=4"])
    groups = list(gpu._worker_groups(args))
    assert [len(names) for names in groups] == [4, 4, 2]
    assert groups[0] == ["matmul:0", "attack:0", "attack:1", "attack:2"]


def test_shares_are_of_products_that_were_measured(script):
    gpu = script("gpu")
    record = {"part": "attack", "dtype": "float32", "ms": 2.0, "gflop": 4.0, "batch": 3}
    failure = {"part": "matmul", "dtype": "float32", "error": "no memory"}
    rates = gpu._add_rates(record, [failure])
    assert (rates["tflops"], rates.get("share")) == (6, None)
    product = {"part": "matmul", "dtype": "float32", "tflops": 24.0}
    assert gpu._add_rates(record, [failure, product])["share"] == 0.25


def test_the_longest_kernels_of_a_trace(script):
    space = xplane_pb2.XSpace()
    for name in ("/device:GPU:0", "/host:CPU"):
        plane = space.planes.add(name=name)
        for line_name in ("Stream #14(Compute)", "XLA Ops"):
            line = plane.lines.add(name=line_name)
            for i, (kernel, ps) in enumerate([("a", 5e9), ("b", 3e9), ("b", 4e9)]):
                plane.event_metadata[i].name = kernel
                line.events.add(metadata_id=i, duration_ps=int(ps))
    assert script("gpu")._longest_kernels(space) == [
        {"name": "all", "count": 3, "ms": 12.0},
        {"name": "b", "count": 2, "ms": 7.0},
        {"name": "a", "count": 1, "ms": 5.0},
    ]


@pytest.fixture
def tiny_gpu(script, monkeypatch):
    """benchmarks/gpu.py and its tiny settings, in this process."""
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "_import", lambda deterministic: None)
    return gpu, gpu._arguments(["--tiny"])


def test_cases_of_all_parts(tiny_gpu):
    gpu, args = tiny_gpu
    for part, groups in gpu._PARTS.items():
        if not part.startswith("torch"):
            cases = [what for group in groups(args) for what, _ in group]
            assert len({str(what) for what in cases}) == len(cases) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "chosen"),
    [
        ("attack", {"jit": "off", "dtype": "bfloat16"}),
        ("float16", {}),
        ("more_train", {"jit": "off", "model": "small"}),
    ],
)
def test_cases_of_a_part_run(part, chosen, tiny_gpu):
    gpu, args = tiny_gpu
    cases = [case for group in gpu._PARTS[part](args) for case in group]
    cases = [case for case in cases if chosen.items() <= case[0].items()]
    assert cases
    for _, run in cases:
        result = run()
        assert result["ms"] > 0
        assert np.isfinite(result.get("loss", 0))


def test_work_of_the_papers_net(script):
    """The GPU benchmark's count: 136 GFLOP for a pass forwards and backwards."""
    spec, _ = script("net_spec").describe(_drn())
    flops = script("net_spec").forward_flops(spec, 256, 512)
    assert 2e-9 * flops == pytest.approx(136.2, abs=0.1)


def test_work_by_hand(script):
    """A 7x7 convolution of stride 2, a strided 1x1 beside it, a transposed 2x2."""
    image = keras.Input((8, 12, 3))
    x = keras.layers.ZeroPadding2D(3)(image)
    x = keras.layers.Conv2D(4, 7, 2, use_bias=False)(x)
    y = keras.layers.MaxPooling2D(1, 2)(image)
    x = keras.layers.Add()([x, keras.layers.Conv2D(4, 1)(y)])
    x = keras.layers.Conv2DTranspose(5, 2, 2)(x)
    spec, _ = script("net_spec").describe(keras.Model(image, {"seg": x}))
    expected = 2 * (4 * 6) * 4 * (49 * 3 + 3 + 4 * 5)
    assert script("net_spec").forward_flops(spec, 8, 12) == expected
    assert len(spec["nodes"]) == 5  # Padding and subsampling are within convolutions.


def _drn():
    tasks = ("seg", "depth", "autoencoder")
    return models.build("drn_d_22", tasks, (256, 512, 3), 8, decoders="shared")


@pytest.mark.parametrize("name", ["small", "drn_d_22", "resnet18"])
def test_nets_in_pytorch_are_ours(name, script):
    torch = pytest.importorskip("torch")
    model = models.build(name, ("seg", "depth"), (32, 32, 3), 5, width=4)
    rng = np.random.default_rng(0)
    for variable in model.non_trainable_variables:
        variable.assign(variable + 0.3 * rng.random(variable.shape))
    spec, arrays = script("net_spec").describe(model)
    arrays = {name.replace("/", "."): array for name, array in arrays.items()}
    net = script("torch_spec").Net(spec, arrays).eval()
    x = rng.random((2, 32, 32, 3), np.float32)
    outputs = net(torch.tensor(x).permute(0, 3, 1, 2))
    for task, want in model(x, training=False).items():
        got = outputs[task].detach().permute(0, 2, 3, 1)
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_gpu_checks_on_a_cpu(script, tmp_path):
    flags = ("--tiny", "--only=xla,xla-again,attack,attack-fast")
    report = _report(script, "gpu_checks", tmp_path, *flags)
    rows = {row["check"]: row for row in report["results"]}
    ends = [f"{name} ends well" for name in ("data", "xla", "xla-again", "attack")]
    for check in (*ends, "equal bits of two runs, xla"):
        assert rows[check]["met"]
    least, _, most = rows["losses of --fast"]["found"].split()
    assert 0.9 < float(least) <= float(most) < 1.1
