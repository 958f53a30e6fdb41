# SPDX-License-Identifier: Apache-2.0
"""How the gradients of eleven tasks add up, and which pairs of them are aligned.

    python benchmarks/gradient_law.py

Trains a net on all tasks of rooms for each seed, like the variant "eleven" of the study
`rooms`; existing nets are reused. The gradients of the tasks' losses are taken with
respect to the image and to the end of the shared trunk, before the first step and after
the last one, and each is divided by its norm.

Cosines of pairs are averaged over the first half of the images, and norms of the mean
gradient of every set of tasks over the second half, so that predictions from pairs are
tested on other images. Writes theory.json with the numbers of docs/theory.md, and the
two figures of that page.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import functools
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf.cli import startup

startup.import_tensorflow(deterministic=True)  # Without its start-up noise.

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from mtr_tf import files
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.measures import gradients as gradients_lib
from mtr_tf.measures import records as records_lib
from mtr_tf.measures import steps
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.runs import loading
from mtr_tf.show import style
from mtr_tf.show import theory
from mtr_tf.training import loop as training

# Tasks about the room's shape are neighbours, and so are tasks about the picture alone.
_TASKS = "s,d,D,n,r,p,E,K,e,k,A"
_PLACES = {"image": "at the image", "trunk": "at the end of the trunk"}
_TIMES = {"before": style.COLORS[5], "after": style.COLORS[2]}
_LOOKS = {"before": "s", "after": "o"}
_BATCH = 32
_TOP_PAIRS = 10  # The most aligned pairs; slopes are also given without them.
_SETS = ("sets_measured", "sets_predicted")
_DIGITS = 4

Numbers = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains missing nets, measures, prints a table, writes all files."""
    args = _arguments(argv)
    configs = [_config(args, seed) for seed in range(args.seeds)]
    nets = [record for config in configs for record in _net_numbers(args, config)]
    means = [
        _mean_over_nets([net for net in nets if (net["place"], net["time"]) == key])
        for key in itertools.product(_PLACES, _TIMES)
    ]
    print("\n".join(table(means)))
    origin = directory.environment() | {"command": _command(argv)}
    train = {k: v for k, v in configs[0].to_dict().items() if k != "seed"}
    parts = {"made": origin, "settings": vars(args), "train": train}
    parts |= {"means": means, "nets": [_drop_sets(net) for net in nets]}
    folder = pathlib.Path(args.folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "theory.json", _json_lines(parts))
    figures = {"law": law_figure, "pairs": pairs_figure}
    for name, draw in figures.items():
        path = folder / "images" / f"theory_{name}.png"
        style.save(functools.partial(draw, means, args), path)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tasks", default=_TASKS, help="of rooms, in the plots' order")
    parser.add_argument("--model", default="small", help="a key of models.MODELS")
    parser.add_argument("--width", type=int, default=0, help="0: the model's own")
    parser.add_argument("--image_size", default="32", help="sides")
    parser.add_argument("--epochs", type=int, default=6, help="of training")
    parser.add_argument("--seeds", type=int, default=3, help="how many nets")
    parser.add_argument("--images", type=int, default=256, help="of validation")
    parser.add_argument("--workdir", default="runs/benchmarks/gradient_law")
    parser.add_argument("--folder", default="docs", help="where files are written")
    return parser.parse_args(argv)


def _command(argv: Sequence[str] | None) -> str:
    arguments = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "benchmarks/gradient_law.py", *arguments])


def _config(args: argparse.Namespace, seed: int) -> TrainConfig:
    return TrainConfig(
        tasks=tasks_lib.resolve(args.tasks),
        image_size=args.image_size,
        epochs=args.epochs,
        model=args.model,
        width=args.width,
        eval_eps=0,
        eval_every=10**5,
        deterministic=True,
        seed=seed,
    )


def _json_lines(parts: Mapping[str, Any]) -> str:
    """JSON with a line for each part, or for each member of a part that is a list."""
    texts = []
    for name, part in parts.items():
        rows = part if isinstance(part, list) else [part]
        text = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        texts.append(f'"{name}": ' + (f"[{text}]" if rows is part else text))
    return "{" + ",\n".join(texts) + "}\n"


# Measuring.


def _net_numbers(args: argparse.Namespace, config: TrainConfig) -> Iterator[Numbers]:
    """Yields the numbers of one seed, before and after training, at both places."""
    workdir = pathlib.Path(args.workdir, f"{config.epochs}-epochs-seed{config.seed}")
    training.train(config, workdir)
    source = building.open_source(config)
    models = {
        "before": building.new_model(config, source.info),
        "after": loading.load_run(str(workdir)).model,
    }
    tasks = source.info.tasks.select(config.tasks)
    batches = batching.eval_batches(
        source.columns("validation"),
        tasks,
        batch_size=min(_BATCH, args.images),
        num_examples=args.images,
        num_classes=len(source.info.classes),
    )
    for time, model in models.items():
        for place, arrays in gradients_of(model, tasks, batches).items():
            about = {"seed": config.seed, "place": place, "time": time}
            yield about | numbers_of(arrays)


def gradients_of(
    model: keras.Model, tasks: tasks_lib.TaskSet, batches: tf.data.Dataset
) -> dict[str, dict[str, np.ndarray]]:
    """{place: the arrays of `steps.gradients` there, over all images}."""
    trunk, heads = split(model)
    at_image = tf.function(steps.gradients(model, tasks))
    at_trunk = tf.function(steps.gradients(heads, tasks))
    arrays_by_place = {place: [] for place in _PLACES}
    for batch in batches:
        is_real = np.asarray(batch["index"]) >= 0
        inputs = {key: batch[key] for key in ("image", "targets", "masks")}
        features = trunk(inputs["image"], training=False)
        gradients = {
            "image": at_image(inputs),
            "trunk": at_trunk(inputs | {"image": features}),
        }
        for place, arrays in gradients.items():
            arrays_by_place[place].append(
                {k: v.numpy()[is_real] for k, v in arrays.items()}
            )
    return {
        place: {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        for place, parts in arrays_by_place.items()
    }


def split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """(images -> features that all decoders share, features -> outputs)."""
    first = next(layer for layer in model.layers if layer.name.startswith("decoder_"))
    trunk = keras.Model(model.input, first.input)
    return trunk, keras.Model(first.input, model.output)


def numbers_of(arrays: Mapping[str, np.ndarray]) -> Numbers:
    """Predictions from the pairs of one half of the images, and the other half's norms.

    Gradients are divided by their norms, except for the numbers named "raw_*".
    """
    norms = records_lib.own_norms(arrays, "l2")
    half = len(norms) // 2
    unit = gradients_lib.scales(norms, "unit")
    cosines = gradients_lib.covariance(arrays["gram"][:half], unit[:half])
    measured = gradients_lib.mean(_norms_of_means(arrays["gram"][half:], unit[half:]))
    predicted = gradients_lib.predicted(np.ones(len(cosines)), cosines)
    rho = gradients_lib.mean_correlation(cosines)
    k = np.arange(1, len(cosines) + 1)
    by_size = gradients_lib.by_size(measured)
    law = gradients_lib.factor(rho, k)
    error = predicted / measured - 1
    pairs = np.sort(cosines[np.triu_indices(len(cosines), 1)])[::-1]
    # As if the first pairs had no cosine.
    other_rho = pairs[_TOP_PAIRS:].sum() / len(pairs)
    raw = gradients_lib.scales(norms, "raw")
    raw_covariance = gradients_lib.covariance(arrays["gram"][:half], raw[:half])
    raw_measured = gradients_lib.mean(
        _norms_of_means(arrays["gram"][half:], raw[half:])
    )
    numbers = {
        "cosines": cosines,
        "rho": rho,
        "mean_size_of_cosines": np.abs(pairs).mean(),
        "rho_of_other_pairs": other_rho,
        "by_size": by_size,
        "law": law,
        "slope": gradients_lib.slope(k, by_size),
        "predicted_slope": gradients_lib.slope(k, law),
        "slope_of_other_pairs": gradients_lib.slope(
            k, gradients_lib.factor(other_rho, k)
        ),
        "mean_error": np.abs(error).mean(),
        "largest_error": np.abs(error).max(),
        "sets_measured": measured,
        "sets_predicted": predicted,
        "raw_rho": gradients_lib.mean_correlation(raw_covariance),
        "raw_slope": gradients_lib.slope(k, gradients_lib.by_size(raw_measured)),
        "raw_norms": np.sqrt(np.diagonal(raw_covariance)),
    }
    return {name: _round(value) for name, value in numbers.items()}


def _norms_of_means(products: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`[N, S]`: the norm of the mean of the gradients of each set of tasks."""
    sizes = gradients_lib.members(scale.shape[1]).sum(axis=1)
    return gradients_lib.l2_of_sums(products, scale) / sizes


def _drop_sets(net: Numbers) -> Numbers:
    return {name: value for name, value in net.items() if name not in _SETS}


def _round(value: Any) -> Any:
    """Numbers of four significant digits, arrays as lists."""
    if np.ndim(value):
        return [_round(item) for item in value]
    return float(f"{float(value):.{_DIGITS}g}")


def _mean_over_nets(nets: Sequence[Numbers]) -> Numbers:
    """The mean of all numbers over nets, and the range of those that are scalars.

    Numbers of sets are the first net's: means over nets would hide their scatter.
    """
    mean: Numbers = {key: nets[0][key] for key in ("place", "time")}
    for name in [name for name in nets[0] if name not in ("seed", *mean)]:
        values = np.array([net[name] for net in nets])
        mean[name] = nets[0][name] if name in _SETS else _round(values.mean(axis=0))
        if values.ndim == 1:
            mean[f"{name}_range"] = _round([values.min(), values.max()])
    return mean


def table(means: Sequence[Numbers]) -> list[str]:
    """The rows of the table of docs/theory.md."""
    rows = []
    for mean in means:
        low, high = sorted(mean["slope_range"])
        cells = [
            f"{_PLACES[mean['place']]}, {mean['time']}",
            f"{mean['rho']:.3f}",
            f"{mean['predicted_slope']:.3f}",
            f"{mean['slope']:.3f} ({low:.3f} to {high:.3f})",
            f"{100 * mean['mean_error']:.1f} %",
            f"{100 * mean['largest_error_range'][1]:.0f} %",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


# Drawing.


def law_figure(means: Sequence[Numbers], args: argparse.Namespace) -> Figure:
    """Norms over the number of tasks; below, measured over predicted for each set."""
    figure, grid = style.grid_of(2, 2, (2.6, 2.5))
    for column, (place, name) in enumerate(_PLACES.items()):
        norm_axes, set_axes = grid[:, column]
        norm_axes.set_title(name)
        for mean in [mean for mean in means if mean["place"] == place]:
            look = {"color": _TIMES[mean["time"]], "marker": _LOOKS[mean["time"]]}
            label = f"{mean['time']} training, measured"
            k = np.arange(1, len(mean["by_size"]) + 1)
            norm_axes.plot(k, mean["by_size"], ls="", label=label, **look)
            norm_axes.plot(k, mean["law"], color=look["color"])
            sets = (mean["sets_predicted"], mean["sets_measured"])
            set_axes.plot(*sets, ".", color=look["color"], ms=2, alpha=0.4)
        norm_axes.plot(
            k, 1 / np.sqrt(k), ":", color="0.35", label="no alignment: 1 / √k"
        )
        style.log_x(norm_axes, (1, 2, 4, 8, k[-1]))
        style.log_y(norm_axes)
        norm_axes.set_xlabel("k, tasks in the mean loss")
        ends = (min(1 / np.sqrt(k)), 1)
        set_axes.plot(ends, ends, color="0.35", lw=0.8)
        set_axes.set_xlabel("predicted from pairs")
    grid[0, 0].set_ylabel("norm of its gradient")
    grid[1, 0].set_ylabel("measured")
    notes = [
        f"each gradient divided by its norm; above: means over {args.seeds} nets",
        "lines: predicted, √((1 + (k − 1) ρ) / k), ρ the mean cosine of all pairs",
        f"below: each of {len(means[0]['sets_measured'])} sets of tasks in the first "
        "net, predicted from its own pairs on other images",
    ]
    return style.finish(figure, "The gradient of a mean of k losses", notes)


def pairs_figure(means: Sequence[Numbers], args: argparse.Namespace) -> Figure:
    """Mean cosines of pairs before and after training, a triangle for each place."""
    names = tasks_lib.resolve(args.tasks)
    letters = [tasks_lib.TASKS[name].letter for name in names]
    figure, grid = style.grid_of(2, 1, (4.8, 4.5))
    for axes, time in zip(grid[:, 0], _TIMES, strict=True):
        cosines = {
            m["place"]: np.array(m["cosines"]) for m in means if m["time"] == time
        }
        _triangles(axes, cosines["image"], cosines["trunk"], letters)
        axes.set_title(f"{time} training")
    notes = [
        "above the diagonal: at the image; below: at the end of the trunk",
        ", ".join(f"{a}={b}" for a, b in zip(letters, names, strict=True)),
    ]
    title = "Mean cosine of two tasks' gradients"
    return style.finish(figure, title, notes, legend=False)


def _triangles(axes, upper: np.ndarray, lower: np.ndarray, letters: Sequence[str]):
    """A matrix of two triangles, from -1 (red) over 0 (white) to 1 (blue)."""
    values = np.triu(upper, 1) + np.tril(lower, -1)
    np.fill_diagonal(values, np.nan)
    theory.matrix(axes, values, _format_cosine)
    axes.set_xticks(range(len(letters)), letters)
    axes.set_yticks(range(len(letters)), letters)


def _format_cosine(value: float) -> str:
    number = round(value, 2) + 0.0  # No -0.
    return f"{number:.2f}".replace("0.", ".")


if __name__ == "__main__":
    main()
