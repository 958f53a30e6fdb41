# SPDX-License-Identifier: Apache-2.0
"""Ours beside the authors' own code: no weaker on one net, at equal budgets.

Some tests need torch, torchattacks and pyautoattack (AutoAttack's code), and are
skipped where these are not installed. CosPGD, SegPGD and SEA are written anew here, in
NumPy, from the papers' formulas.
"""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import ensemble

CLASSES, SEEDS = 4, (0, 1, 2)
STEPS, SEA_STEPS, QUERIES = 20, 40, 150
LEVELS = (1, 2, 4, 8)  # Of linf, in 255ths.
LENGTHS = (0.1, 0.2, 0.4, 0.8)  # Of l2: about as harmful here.
pytestmark = pytest.mark.slow


def a_set(count, seed):
    """Images of blocks of four colours under noise, and the blocks' numbers."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (count, 4, 3)).repeat(4, 1).repeat(6, 2)
    colours = np.array([[0.4, 0.5, 0.5], [0.5, 0.4, 0.6], [0.6, 0.5, 0.4], [0.5] * 3])
    noise = rng.normal(0, 0.08, (*labels.shape, 3))
    return np.clip(colours[labels] + noise, 0, 1).astype(np.float32), labels


@pytest.fixture(scope="module")
def net():
    """A small net, trained for a moment."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 18, 3))
    x = keras.layers.Rescaling(4, -2)(image)
    for _ in range(2):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    logits = keras.layers.Conv2D(CLASSES, 3, padding="same")(x)
    model = keras.Model(image, {"seg": logits})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), {"seg": loss})
    images, labels = a_set(256, 1)
    model.fit(images, {"seg": labels}, batch_size=32, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def batch(net):
    images, labels = a_set(12, 2)
    assert 0.8 < np.mean(logits_of(net, images).argmax(-1) == labels) < 1
    return images, labels


def logits_of(net, images):
    return net(tf.constant(images))["seg"].numpy()


def harm(net, batch, images):
    """The share of wrong pixels of attacked images, which must be in [0, 1]."""
    images = np.asarray(images)
    assert images.min() >= 0
    assert images.max() <= 1
    return np.mean(logits_of(net, images).argmax(-1) != batch[1])


def ours(net, batch, make_attack, losses=()):
    """Returns (radius, seed) -> harm of our `make_attack(radius)`, compiled once."""
    images, labels = batch
    masks = {"seg": np.ones(labels.shape, np.float32)}

    @tf.function(autograph=False)
    def run(epsilon, seed):
        objective = attacks.objective(net, {"seg": labels}, masks, losses=losses)
        return make_attack(epsilon)(objective, tf.constant(images), seed=seed)

    def attack(epsilon, seed):
        epsilon = tf.constant(epsilon, tf.float64)
        return harm(net, batch, run(epsilon, tf.constant(seed, tf.int64)))

    return attack


def assert_no_weaker(our_harm, their_harm, radii, seeds=SEEDS):
    """Asserts at each radius that our harm, a mean over seeds, is not below theirs.

    It may be lower by twice the spread over seeds plus 0.1 % of pixels.
    """
    for radius in radii:
        got, want = (
            np.array([f(radius, s) for s in seeds]) for f in (our_harm, their_harm)
        )
        slack = 2 * math.hypot(got.std(), want.std()) + 1e-3
        assert got.mean() >= want.mean() - slack, (radius, got, want)


# Beside torchattacks and AutoAttack.


@pytest.fixture(scope="module")
def torch_net(net, batch):
    """The same net in torch: images [batch, 3, H, W] -> logits."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    layers = []
    for layer in net.layers[2:]:
        kernel, bias = layer.get_weights()
        module = torch.nn.Conv2d(*kernel.shape[2:], 3, padding=1)
        module.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        module.bias.data = torch.tensor(bias)
        layers += [module, torch.nn.ReLU()]
    body = torch.nn.Sequential(*layers[:-1]).eval()

    class Net(torch.nn.Module):
        def forward(self, x):
            return body(4 * x - 2)

    module = Net().eval()
    got = module(channels_first(batch[0])).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, logits_of(net, batch[0]), atol=1e-4)
    return module


def channels_first(images):
    import torch

    return torch.tensor(np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2))))


def torch_harm(net, batch, images):
    return harm(net, batch, images.detach().numpy().transpose(0, 2, 3, 1))


def by_torchattacks(net, batch, torch_net, name, **settings):
    """Returns (radius, seed) -> harm; `settings` may be functions of the radius."""
    torchattacks = pytest.importorskip("torchattacks")
    import torch

    def attack(epsilon, seed):
        torch.manual_seed(seed)
        keywords = {k: v(epsilon) if callable(v) else v for k, v in settings.items()}
        torch_attack = getattr(torchattacks, name)(torch_net, eps=epsilon, **keywords)
        images = torch_attack(channels_first(batch[0]), torch.tensor(batch[1]))
        return torch_harm(net, batch, images)

    return attack


def quarter(epsilon):
    return epsilon / 4


@pytest.mark.parametrize(
    ("name", "make", "settings", "radii"),
    [
        ("FGSM", attacks.FGSM, {}, LEVELS),
        (
            "PGD",
            lambda e: attacks.PGD(e, e / 4, STEPS),
            {"alpha": quarter, "steps": STEPS},
            LEVELS,
        ),
        (
            "PGDL2",
            lambda e: attacks.PGD(e, e / 4, STEPS, "l2"),
            {"alpha": quarter, "steps": STEPS},
            LENGTHS,
        ),
        (
            "MIFGSM",
            lambda e: attacks.MIM(e, e / 4, STEPS),
            {"alpha": quarter, "steps": STEPS, "decay": 1.0},
            LEVELS,
        ),
    ],
)
def test_no_weaker_than_torchattacks(
    net, batch, torch_net, name, make, settings, radii
):
    their_harm = by_torchattacks(net, batch, torch_net, name, **settings)
    radii = [r / 255 for r in radii] if radii is LEVELS else radii
    assert_no_weaker(ours(net, batch, make), their_harm, radii)


def torch_losses(torch_net, batch, points, rows=slice(None)):
    """Each image's mean cross-entropy, [batch]."""
    import torch

    labels = torch.tensor(batch[1])[rows]
    loss = torch.nn.functional.cross_entropy(
        torch_net(points), labels, reduction="none"
    )
    return loss.mean((1, 2))


class ForAutoAttack:
    """Losses of whole images for AutoAttack's APGD, which knows one class per image."""

    def __init__(self, torch_net, batch):
        self._net, self._batch = torch_net, batch

    def predict(self, x):
        import torch

        return torch.tensor([[1.0, 0.0]] * len(x))  # Never fooled: it goes on.

    def get_logits_loss_grad_xent(self, x, y):
        import torch

        x = x.detach().clone().requires_grad_()
        loss = torch_losses(self._net, self._batch, x)
        (slope,) = torch.autograd.grad(loss.sum(), x)
        return self.predict(x), loss.detach(), slope


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_no_weaker_than_autoattacks(net, batch, torch_net, norm):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    import torch

    def their_harm(epsilon, seed):
        torch.manual_seed(seed)
        attack = base.APGDAttack(
            ForAutoAttack(torch_net, batch),
            n_iter=STEPS,
            norm=norm.capitalize(),
            eps=epsilon,
            is_tf_model=True,
            device="cpu",
        )
        labels = torch.zeros(len(batch[0]), dtype=torch.long)
        images = attack.perturb(channels_first(batch[0]), labels, best_loss=True)
        return torch_harm(net, batch, images)

    our_harm = ours(net, batch, lambda e: attacks.APGD(e, STEPS, norm))
    radii = [level / 255 for level in LEVELS] if norm == "linf" else LENGTHS
    assert_no_weaker(our_harm, their_harm, radii)


def test_square_is_no_weaker_than_autoattacks(net, batch, torch_net):
    square = pytest.importorskip("pyautoattack.square")
    import torch

    def their_harm(epsilon, seed):
        torch.manual_seed(seed)
        attack = square.SquareAttack(
            None, n_queries=QUERIES, eps=epsilon, loss="ce", device="cpu"
        )

        def margin_and_loss(x, rows):
            with torch.no_grad():
                losses = torch_losses(torch_net, batch, x, rows)
            return torch.ones(len(x)), -losses

        attack.margin_and_loss = margin_and_loss
        images = channels_first(batch[0])
        attack.init_hyperparam(images)
        _, attacked_images = attack.attack_single_run(images, torch.arange(len(images)))
        return torch_harm(net, batch, attacked_images)

    our_harm = ours(net, batch, lambda e: attacks.Square(e, QUERIES))
    assert_no_weaker(our_harm, their_harm, [level / 255 for level in LEVELS])


# Beside the papers' formulas, in NumPy. Gradients are by the logits, carried to the
# images by TensorFlow.


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def one_hot(labels):
    return np.eye(CLASSES)[labels]


def cross_entropy(p, labels):
    return -np.log(
        np.maximum(np.take_along_axis(p, labels[..., None], -1)[..., 0], 1e-30)
    )


@functools.cache
def backward(net):
    @tf.function(autograph=False, reduce_retracing=True)
    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = net(x)["seg"]
        return tape.gradient(logits, x, output_gradients=upstream)

    return lambda x, upstream: run(
        tf.constant(x, tf.float32), tf.constant(upstream, tf.float32)
    ).numpy()


def cospgd_weights(p, labels, progress):
    """The cosine of softmax and one-hot target."""
    p_true = np.take_along_axis(p, labels[..., None], -1)[..., 0]
    return p_true / np.linalg.norm(p, axis=-1)


def segpgd_weights(p, labels, progress):
    share = progress / 2
    return np.where(p.argmax(-1) == labels, 1 - share, share)


def sign_steps(net, batch, weights):
    """Returns (radius, seed) -> harm of the last of sign steps from a random point."""
    images, labels = batch

    def attack(epsilon, seed):
        rng = np.random.default_rng(seed)
        x = images + rng.uniform(-epsilon, epsilon, images.shape)
        for number in range(STEPS):
            x = np.clip(x, 0, 1)
            p = softmax(logits_of(net, x.astype(np.float32)).astype(np.float64))
            weight = weights(p, labels, number / STEPS)[..., None]
            x = x + epsilon / 4 * np.sign(
                backward(net)(x, weight * (p - one_hot(labels)))
            )
            x = np.clip(x, images - epsilon, images + epsilon)
        return harm(net, batch, np.clip(x, 0, 1).astype(np.float32))

    return attack


@pytest.mark.parametrize(
    ("loss", "weights"), [("cospgd", cospgd_weights), ("segpgd", segpgd_weights)]
)
def test_pixel_weights_are_no_weaker_than_their_papers(net, batch, loss, weights):
    our_harm = ours(net, batch, lambda e: attacks.PGD(e, e / 4, STEPS), (loss,))
    radii = [level / 255 for level in LEVELS]
    assert_no_weaker(our_harm, sign_steps(net, batch, weights), radii)


def masked(p, labels):
    """Cross-entropy's slope by the logits where the pixel is right, else 0."""
    right = p.argmax(-1) == labels
    return (p - one_hot(labels)) * right[..., None]


def masked_balanced(p, labels):
    """The same, divided by the share of the pixel's class in the image."""
    shares = np.stack([(labels == c).mean((1, 2)) for c in range(CLASSES)], -1)
    pixel_shares = np.take_along_axis(shares[:, None, None], labels[..., None], -1)
    return masked(p, labels) / pixel_shares


def jensen_shannon(p, labels):
    """Of softmax and one-hot target: 1/2 KL(p, m) + 1/2 KL(y, m), m their mean."""
    y = one_hot(labels)
    middle = (p + y) / 2
    by_p = np.log(np.maximum(p, 1e-30) / middle) / 2  # d JS / d p.
    return p * (by_p - (p * by_p).sum(-1, keepdims=True))


def sea_run(net, batch, slope, epsilon, steps, seed):
    """APGD in shrinking balls along `slope`; returns points of most wrong pixels."""
    images, labels = batch
    rng = np.random.default_rng(seed)
    most_wrong = np.full(len(images), -1.0)
    result = images.copy()
    x = images + rng.uniform(-2 * epsilon, 2 * epsilon, images.shape)

    def evaluate(x):
        p = softmax(logits_of(net, x.astype(np.float32)).astype(np.float64))
        return (
            backward(net)(x, slope(p, labels)),
            cross_entropy(p, labels).mean((1, 2)),
            p,
        )

    def column(values):
        return values[:, None, None, None]

    for factor, share in ((2, 0.3), (1.5, 0.3), (1, 0.4)):
        radius, count = factor * epsilon, round(share * steps)
        low, high = np.maximum(images - radius, 0), np.minimum(images + radius, 1)
        x = previous = np.clip(x, low, high)
        most_wrong[:] = -1  # Only the last stage's points are inside the ball.
        size = np.full(len(x), 2 * radius)
        gradient, loss, p = evaluate(x)
        best, best_loss, best_gradient = x, loss, gradient
        gap, least_gap, gap_step = (max(int(s * count), 1) for s in (0.22, 0.06, 0.03))
        rises, steps_since, last_best = np.zeros(len(x)), 0, best_loss
        reduced = np.ones(len(x), bool)

        def keep_worst(x, p):
            wrong = (p.argmax(-1) != labels).mean((1, 2))
            better = wrong > most_wrong
            most_wrong[better], result[better] = wrong[better], x[better]

        keep_worst(x, p)
        for number in range(count):
            aim = np.clip(x + column(size) * np.sign(gradient), low, high)
            a = 0.75 if number else 1.0
            x, previous = (
                np.clip(x + a * (aim - x) + (1 - a) * (x - previous), low, high),
                x,
            )
            gradient, new_loss, p = evaluate(x)
            keep_worst(x, p)
            rises += new_loss > loss
            loss = new_loss
            better = loss > best_loss
            best = np.where(column(better), x, best)
            best_gradient = np.where(column(better), gradient, best_gradient)
            best_loss = np.where(better, loss, best_loss)
            steps_since += 1
            if steps_since == gap:
                few_rises = rises <= 0.75 * gap
                reduced = few_rises | (~reduced & (last_best >= best_loss))
                size = np.where(reduced, size / 2, size)
                x = np.where(column(reduced), best, x)
                gradient = np.where(column(reduced), best_gradient, gradient)
                gap, steps_since, last_best = (
                    max(gap - gap_step, least_gap),
                    0,
                    best_loss,
                )
                rises = np.zeros(len(x))
        x = result.copy()
    return result.astype(np.float32)


SEA_SLOPES = {"masked_ce_balanced": masked_balanced, "masked_ce": masked,
              "js": jensen_shannon}  # fmt: skip


@pytest.fixture(scope="module")
def sea_runs(net, batch):
    """Returns (loss, radius, seed) -> images of one run of the paper's SEA, cached."""

    @functools.cache
    def run(loss, epsilon, seed):
        return sea_run(net, batch, SEA_SLOPES[loss], epsilon, SEA_STEPS, seed)

    return run


@pytest.mark.parametrize("loss", SEA_SLOPES)
def test_runs_of_sea_are_no_weaker_than_the_papers(net, batch, sea_runs, loss):
    def their_harm(epsilon, seed):
        return harm(net, batch, sea_runs(loss, epsilon, seed))

    run = functools.partial(attacks.APGD, steps=SEA_STEPS, radii=ensemble.SEA_RADII)
    assert_no_weaker(
        ours(net, batch, run, (loss,)), their_harm, [e / 255 for e in LEVELS]
    )


def test_sea_is_no_weaker_than_the_papers(net, batch, sea_runs):
    def their_harm(epsilon, seed):
        runs = [sea_runs(loss, epsilon, seed) for loss in SEA_SLOPES]
        wrong = [
            (logits_of(net, run).argmax(-1) != batch[1]).mean((1, 2)) for run in runs
        ]
        return np.mean(np.max(wrong, axis=0))

    our_harm = ours(net, batch, functools.partial(attacks.SEA, steps=SEA_STEPS))
    assert_no_weaker(our_harm, their_harm, [level / 255 for level in LEVELS])
