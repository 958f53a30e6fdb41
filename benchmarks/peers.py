# SPDX-License-Identifier: Apache-2.0
"""PGD here and in foolbox, ART and cleverhans: the same budget on one classifier.

    pip install -e ".[bench]"
    python benchmarks/peers.py

The model is a Keras classifier, a ResNet-18 encoder briefly trained to tell patterns
apart, because the peers support only a single output of classes. All attacks take the
same steps from the image itself, without a random start. foolbox and ART run as in
their manuals, on the Keras model, whose layers then run one by one, and in their best
form, on `tf.function(model)`; cleverhans compiles its gradient itself. Final losses are
compared in the same run, over --judged images: the library's must be equal or higher.
The peers return the last point; the library returns the best point that it met or, in a
further row, the last.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import contextlib
import functools
import io
import sys
from collections.abc import Callable
from collections.abc import Sequence

from mtr_tf.cli import startup

startup.import_tensorflow()  # Without its start-up noise.

import keras
import numpy as np
import tensorflow as tf
import timing

from mtr_tf import attacks
from mtr_tf.models import layers
from mtr_tf.models import resnet

_CLASSES = 8
_PEERS = ("foolbox", "foolbox compiled", "art", "art compiled", "cleverhans")
_KEEPS = {"limit": "", "mtr_tf": "best"}  # Which point is returned; else the last.
_EQUAL = 0.999  # Of the highest loss: rounding changes some signs.
_COLUMNS = {
    "what": "s",
    "keeps": "s",
    "batch": "d",
    "ms": ".1f",
    "over limit": ".2f",
    "over ours": ".2f",
    "loss": ".4f",
    "pixels unlike ours": ".4f",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON."""
    args = _arguments(argv)
    names = [name for name in args.peers.split(",") if name]
    try:
        peers = {name: _ADAPTERS[name]() for name in names}
    except ImportError as error:
        sys.exit(f"The peers are not installed ({error}): pip install -e '.[bench]'")
    model = _classifier(args.image_size, args.width)
    _train(model, args.train_steps)
    contestants = {"mtr_tf": _mtr_tf("best"), "mtr_tf last": _mtr_tf("last"), **peers}
    judgements = _strength(args, model, contestants)
    records, goals = [], []
    for size in map(int, args.batch_sizes.split(",")):
        rows = _measure(args, model, contestants, size)
        for row in rows:
            row |= judgements.get(
                row["what"], dict.fromkeys(("loss", "pixels unlike ours"))
            )
        records += rows
        goals += _goals(rows, size)
    timing.finish(args, records, _COLUMNS, goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "peers", rounds=7)
    parser.add_argument("--peers", default=",".join(_PEERS), help="comma-separated")
    parser.add_argument("--image_size", type=int, default=64, help="height and width")
    parser.add_argument("--width", type=int, default=16, help="of the first layer")
    parser.add_argument("--epsilon", type=float, default=8, help="l-inf, of 255")
    parser.add_argument("--step_size", type=float, default=2, help="of 255")
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--train_steps", type=int, default=60, help="of 32 images")
    parser.add_argument("--judged", type=int, default=64, help="images, for the losses")
    parser.add_argument("--batch_sizes", default="1,8,32", help="comma-separated")
    return parser.parse_args(argv)


def _classifier(side: int, width: int) -> keras.Model:
    """Returns images [batch, side, side, 3] -> logits [batch, classes]."""
    image = keras.Input((side, side, 3), name="image")
    x = keras.layers.Rescaling(4.0, -2.0)(image)
    encoder = resnet.ResNet((2, 2, 2, 2))
    for number in range(resnet.STAGES):
        x = encoder.stage(layers.Blocks(), x, width, "encoder", number)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(_CLASSES)(x))


def _patterns(size: int, side: int, number: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns images and labels: a coarse pattern per class, under noise."""
    coarse = tf.random.stateless_uniform((_CLASSES, side // 8, side // 8, 3), (0, 0))
    patterns = tf.image.resize(coarse, (side, side))
    y = tf.random.stateless_uniform([size], (1, number), 0, _CLASSES, tf.int32)
    noise = tf.random.stateless_uniform((size, side, side, 3), (2, number))
    return 0.1 * tf.gather(patterns, y) + 0.9 * noise, y


def _train(model: keras.Model, steps: int) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    for number in range(steps):
        model.train_on_batch(*_patterns(32, model.input_shape[1], number))


# Each adapter: () -> (model, x, y, args) -> function that attacks; imports its library.


def _mtr_tf(keep: str) -> Callable[..., Callable[[], tf.Tensor]]:
    def prepare(model, x, y, args):
        # A classifier is a segmentation net of one pixel.
        logits = keras.layers.Reshape((1, 1, _CLASSES))(model.output)
        dense = keras.Model(model.input, {"seg": logits})
        targets, masks = {"seg": y[:, None, None]}, {"seg": tf.ones((len(y), 1, 1))}
        objective = attacks.objective(dense, targets, masks)
        attack = attacks.PGD(
            args.epsilon / 255,
            args.step_size / 255,
            args.steps,
            random_start=False,
            keep=keep,
        )
        return lambda: attack(objective, x)

    return prepare


def _peer_model(model: keras.Model, compiled: bool) -> Callable[..., tf.Tensor]:
    """The model as users may pass it to a peer: as it is, or as one graph."""
    return tf.function(model, autograph=False) if compiled else model


def _foolbox(compiled: bool):
    import foolbox

    def prepare(model, x, y, args):
        wrapped = foolbox.TensorFlowModel(_peer_model(model, compiled), bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(
            abs_stepsize=args.step_size / 255, steps=args.steps, random_start=False
        )
        labels = tf.cast(y, tf.int64)  # Others fail with NumPy 2.
        epsilon = args.epsilon / 255
        return lambda: attack(wrapped, x, labels, epsilons=epsilon)[1]

    return prepare


def _art(compiled: bool):
    from art.attacks import evasion
    from art.estimators import classification

    def prepare(model, x, y, args):
        estimator = classification.TensorFlowV2Classifier(
            _peer_model(model, compiled),
            nb_classes=_CLASSES,
            input_shape=x.shape[1:],
            loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            clip_values=(0, 1),
        )
        attack = evasion.ProjectedGradientDescent(
            estimator,
            eps=args.epsilon / 255,
            eps_step=args.step_size / 255,
            max_iter=args.steps,
            batch_size=len(x),
            verbose=False,
        )
        images, labels = x.numpy(), y.numpy()
        return lambda: attack.generate(images, labels)

    return prepare


def _cleverhans():
    with contextlib.redirect_stdout(io.StringIO()):
        from cleverhans.tf2.attacks import projected_gradient_descent as module

    def prepare(model, x, y, args):
        # The same model object each time: a new lambda would be a new graph.
        return lambda: module.projected_gradient_descent(
            model,
            x,
            eps=args.epsilon / 255,
            eps_iter=args.step_size / 255,
            nb_iter=args.steps,
            norm=np.inf,
            y=y,
            clip_min=0.0,
            clip_max=1.0,
            rand_init=False,
            sanity_checks=False,
        )

    return prepare


_ADAPTERS = {
    "foolbox": functools.partial(_foolbox, compiled=False),
    "foolbox compiled": functools.partial(_foolbox, compiled=True),
    "art": functools.partial(_art, compiled=False),
    "art compiled": functools.partial(_art, compiled=True),
    "cleverhans": _cleverhans,
}


def _strength(args: argparse.Namespace, model: keras.Model, contestants: dict) -> dict:
    """Returns {name of a contestant: {column: value}} about its images."""
    x, y = _patterns(args.judged, args.image_size, -1)
    images_by_name = {
        name: np.asarray(prepare(model, x, y, args)())
        for name, prepare in contestants.items()
    }
    return {
        name: {
            "loss": _loss(model, images, y),
            "pixels unlike ours": _difference(images, images_by_name["mtr_tf"]),
        }
        for name, images in images_by_name.items()
    }


def _measure(
    args: argparse.Namespace, model: keras.Model, contestants: dict, size: int
) -> list[dict]:
    """Returns the rows of one batch size: the limit, the library, then the peers."""
    x, y = _patterns(size, args.image_size, -2)
    runs = {"limit": _limit(model, x, y, args.steps)}
    for name, prepare in contestants.items():
        runs[name] = prepare(model, x, y, args)
    times = timing.alternate(runs, args.rounds)
    return [
        {
            "what": name,
            "keeps": _KEEPS.get(name, "last"),
            "batch": size,
            "ms": 1000 * duration.wall,
            "over limit": duration.over(times["limit"]).wall,
            "over ours": duration.over(times["mtr_tf"]).wall,
        }
        for name, duration in times.items()
    ]


def _limit(model, x, y, steps: int) -> Callable[[], tf.Tensor]:
    """Returns a function that runs a compiled forward-backward pass `steps` times."""

    @tf.function
    def gradient(x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = model(x, training=False)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        return tape.gradient(loss, x)

    def run():
        for _ in range(steps):
            result = gradient(x, y)
        return result

    return run


def _loss(model, images: np.ndarray, y) -> float:
    logits = model(images, training=False)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    return float(tf.reduce_mean(losses))


def _difference(images: np.ndarray, reference: np.ndarray) -> float:
    """Returns the share of values that differ from `reference` by more than 1e-5."""
    return float(np.mean(np.abs(images - reference) > 1e-5))


def _goals(rows: list[dict], size: int) -> list[tuple[str, bool]]:
    our_row, peer_rows = rows[1], rows[3:]  # Without the limit and our last point.
    goals = []
    for row in peer_rows:
        text = (
            f"batch {size}: {row['what']} takes {row['over ours']:.2f} of ours (1 or "
            "more wanted) at a loss no higher than ours"
        )
        strong = our_row["loss"] >= _EQUAL * row["loss"]
        goals.append((text, row["over ours"] >= 1 and strong))
    return goals


if __name__ == "__main__":
    main()
