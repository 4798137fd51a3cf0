"""Conformance of plugins: short forms of the tests that built-in parts pass, for `distgan check`.

Each function yields what is wrong with one part, in sentences that begin with what it does. An exception of the part is
one more of them. Everything runs on the CPU, on a few small tensors.
"""

import dataclasses
import inspect
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.config import plugins
from distgan.config.choices import own_schema
from distgan.config.schema import Config, image_spec, network_options
from distgan.config.schema import Optimizer as OptimizerSettings
from distgan.data.host_transforms import TRANSFORMS, TransformStep
from distgan.losses import gradient_penalty
from distgan.losses.adversarial import open_loss
from distgan.metrics import frechet
from distgan.metrics.extractors import open_extractor
from distgan.metrics.registry import METRICS, Features
from distgan.models import networks
from distgan.models.label_embedding import blank_labels
from distgan.rng import device_rng
from distgan.storage import checkpoint
from distgan.tracking.alerts import ALERT_RULES
from distgan.tracking.trackers import TRACKERS
from distgan.training.optimizers import OPTIMIZERS, build_optimizer
from distgan.training.schedulers import SCHEDULES
from distgan.transforms import degrade_spec
from distgan.transforms.augment import AUGMENTATIONS, augment
from distgan.transforms.degrade import degrade

SEEDS = torch.arange(1, 5)  # of the images that parts are tried on
EXTREME = 1e4  # a logit of a discriminator that is certain
LAST = 1 - 2**-24  # the largest number that is drawn


def conformance(config: Config, label_input: int | VectorInput) -> tuple[list[str], list[str]]:
    """Try each part that the plugins of a config add. Returns lines that name what passed, and what is wrong.

    Args:
        label_input: The number of classes, or the kind of vectors, that networks are given.
    """
    lines, wrong = [], []
    for plugin in plugins.loaded(config.plugins):
        for kind, name in plugin.adds:
            if kind not in _CHECKS:  # a family's settings and a degradation's strength, which their parts need
                continue
            found = list(_tried(_CHECKS[kind], name, config, label_input))
            wrong += [f"{plugin.name}: {kind} {name}: {line}" for line in found]
            lines += [] if found else [f"plugin {plugin.name}: {kind} {name}: {_PASSED[kind]}"]
    return lines, wrong


def _tried(check: Callable, name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield from check(name, config, label_input)
    except Exception as error:
        line, trace = "", error.__traceback__
        while trace is not None:
            file = Path(trace.tb_frame.f_code.co_filename)
            line = f" in line {trace.tb_lineno} of {file.name}"
            trace = trace.tb_next
        yield f"raises {type(error).__name__}{line}: {' '.join(str(error).split())[:300]}"


def _check_loss(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """Scalars; finite at extreme logits; the mean over the batch, so that 2 x B = 1 x 2B."""
    loss = open_loss(name, config.loss.options if config.loss.name == name else {})
    for shape in ((4,), (4, 3)):
        real, fake = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
        for word, function in (("D", lambda a, b: loss.d(a, b)), ("G", lambda a, b: loss.g(b, a))):
            whole = function(real, fake)
            if whole.shape:
                yield f"{word}'s loss of logits {list(shape)} is of shape {list(whole.shape)}: take the mean, a number"
                continue
            halves = torch.stack([function(a, b) for a, b in zip(real.chunk(2), fake.chunk(2))]).mean()
            if not torch.allclose(whole, halves, rtol=1e-9):
                yield (
                    f"{word}'s loss of 4 images is {whole:.6g}, and of twice 2 images {halves:.6g} on average: take "
                    "the mean over images of terms of one image (or pair), so that ranks and passes do not change it"
                )
    if not loss.paired:
        loss.g(torch.zeros(2), None)
    for value in (0.0, EXTREME, -EXTREME):
        real, fake = torch.full((4,), value, requires_grad=True), torch.full((4,), -value, requires_grad=True)
        total = loss.d(real, fake) + loss.g(fake, real)
        gradients = torch.autograd.grad(total, (real, fake), allow_unused=True)
        if not all(x.isfinite().all() for x in (total, *gradients) if x is not None):
            yield f"is not finite at logits of {value:g} and {-value:g}: use softplus, or clamp"


def _check_family(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """Signatures and shapes; the same weights of the same seed; bf16; R1; 2 x B = 1 x 2B; a step resumed."""
    options = network_options(config) | {"family": name}
    if config.model.family != name:
        for net in "GD":
            schema = own_schema(f"model.{net}", name)
            assert schema is not None  # a plugin adds both
            options[net] = dataclasses.asdict(schema())
    image, z_dim = options["image"], options["z_dim"]

    def build() -> tuple[nn.Module, nn.Module]:
        return networks.build_nets(**options, num_classes=label_input)

    G, D = build()
    for network, expected in ((G, ["z", "labels"]), (D, ["images", "labels", "features"])):
        if (found := list(inspect.signature(network.forward).parameters)) != expected:
            yield f"{type(network).__name__}.forward takes {', '.join(found)}: it is given {', '.join(expected)}"
            return
    twins = build()
    if any(not torch.equal(a, b) for net, twin in zip((G, D), twins) for a, b in zip(*map(_state, (net, twin)))):
        yield "draws other weights when it is built again: draw from torch's own random numbers alone"
    if odd := [key for net in (G, D) for key, x in net.named_parameters() if x.dtype != torch.float32]:
        yield f"has weights that are not float32: {odd[0]}"
    z, labels = torch.randn(4, z_dim), blank_labels(label_input, 4, torch.device("cpu"))
    shape = [4, image.channels, image.height, image.width]
    fake = G(z, labels)
    if list(fake.shape) != shape:
        yield f"G returns {list(fake.shape)} for images {shape}"
        return
    real = torch.rand(shape) * 2 - 1
    logits, features = D(real, labels, features=True)
    if logits.shape[0] != 4 or logits.ndim > 2 or not torch.equal(logits, D(real, labels)):
        yield f"D returns logits {list(logits.shape)}: [B], or [B, P] of patches, the same with and without features"
    if not isinstance(features, list) or not all(isinstance(x, Tensor) and len(x) == 4 for x in features):
        yield "D(..., features=True) returns no list of features [B, ...] after the logits"
    with torch.autocast("cpu", torch.bfloat16):
        low = D(G(z, labels), labels)
    if not low.isfinite().all() or (low.float() - D(fake, labels)).abs().max() > 0.3 * (
        1 + D(fake, labels).abs().max()
    ):
        yield f"D's logits in bfloat16, {low.flatten()[0]:.4g} ..., are far from {D(fake, labels).flatten()[0]:.4g} ..."
    yield from _check_steps(name, config, build, real, labels, z)


def _check_steps(
    name: str, config: Config, build: Callable, real: Tensor, labels: Tensor | None, z: Tensor
) -> Iterator[str]:
    """Gradients of a batch in one pass and in two, and a step that is killed and resumed."""
    _, D = build()
    D.double()
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in D.modules()):
        labels64 = labels.double() if labels is not None and labels.is_floating_point() else labels
        gradients = []
        for num in (1, 2):
            D.zero_grad()
            for i in range(num):
                x = real.double().chunk(num)[i].requires_grad_()
                score = D(x, None if labels64 is None else labels64.chunk(num)[i])
                penalty = gradient_penalty.squared_gradient(score, x)
                ((nn.functional.softplus(-score).mean() + penalty) / num).backward()
            gradients.append([weight.grad for weight in D.parameters() if weight.grad is not None])
        if not all(x.isfinite().all() for x in gradients[0]):
            yield "has gradients of R1 that are not finite"
        if not all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(*gradients)):
            yield (
                "gives another gradient for 4 images in two passes than in one: D compares images of a batch, which "
                "only its epilogue may do, in groups (model.minibatch_group_size)"
            )
    with tempfile.TemporaryDirectory() as folder:
        nets, resumed = (dict(zip("GD", build())) for _ in range(2))
        optimizers, others = (
            {key: build_optimizer(getattr(config.optim, key), net) for key, net in one.items()}
            for one in (nets, resumed)
        )
        _step(nets, optimizers, real, labels, z)
        tensors = {key: net.state_dict() for key, net in nets.items()}
        tensors |= {f"opt_{key}": checkpoint.optimizer_tensors(optimizers[key], net) for key, net in nets.items()}
        path = checkpoint.save(Path(folder), 1, tensors, {"images": 1, "num_classes": 0, "config": {}})
        loaded, _ = checkpoint.load(path)
        for key, net in resumed.items():
            net.load_state_dict(loaded[key])
            checkpoint.load_optimizer(others[key], net, loaded[f"opt_{key}"])
        _step(nets, optimizers, real, labels, z)
        _step(resumed, others, real, labels, z)
    for key in "GD":
        if not all(torch.equal(a, b) for a, b in zip(*map(_state, (nets[key], resumed[key])))):
            yield f"has state in {key} that a checkpoint does not keep: a step after a resume differs"


def _step(
    nets: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    real: Tensor,
    labels: Tensor | None,
    z: Tensor,
) -> None:
    G, D = nets["G"], nets["D"]
    for net, loss in (
        (
            D,
            lambda: (nn.functional.softplus(-D(real, labels)) + nn.functional.softplus(D(G(z, labels), labels))).mean(),
        ),
        (G, lambda: nn.functional.softplus(-D(G(z, labels), labels)).mean()),
    ):
        optimizer = optimizers["G" if net is G else "D"]
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _check_optimizer(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """The learning rate is taken from the groups; all state is tensors; a step resumed."""
    own = [settings for settings in (config.optim.G, config.optim.D) if settings.name == name]
    schema = OPTIMIZERS[name].options
    options = {} if schema is None else dataclasses.asdict(schema())
    settings = own[0] if own else OptimizerSettings(name=name, lr=[1e-3], options=options)
    settings = dataclasses.replace(settings, freeze=[], lr_factors=[])
    net, resumed = (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2)) for _ in range(2))
    optimizer, other = build_optimizer(settings, net), build_optimizer(settings, resumed)
    x = torch.randn(4, 2, 3, 3)

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    before = [weight.detach().clone() for weight in net.parameters()]
    step(net, optimizer, 0.0)
    if not all(torch.equal(a, b) for a, b in zip(before, net.parameters())):
        yield "moves weights at a learning rate of 0: take group['lr'] in every step, which schedules set"
    step(net, optimizer, 1e-2)
    if all(torch.equal(a, b) for a, b in zip(before, net.parameters())):
        yield "does not move the weights"
    state = checkpoint.optimizer_tensors(optimizer, net)
    if odd := [slot for slot, value in state.items() if not isinstance(value, Tensor)]:
        slot = odd[0].rpartition("/")[2]
        yield f"keeps {slot!r} as {type(state[odd[0]]).__name__}: a checkpoint has tensors only, torch.tensor(...)"
        return
    resumed.load_state_dict(net.state_dict())
    checkpoint.load_optimizer(other, resumed, {slot: value.clone() for slot, value in state.items()})
    step(net, optimizer, 1e-2)
    step(resumed, other, 1e-2)
    if not all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters())):
        yield "keeps something outside of its state: a step after a resume differs"


def _check_schedule(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """From 0 at the start to 1 at the end."""
    for done in (0.0, 1.0):
        if (value := SCHEDULES[name](done)) != done:
            yield f"gives {value} at {done:g}: 0 at the start, and 1 at the end"
    if not all(math.isfinite(SCHEDULES[name](i / 16)) for i in range(17)):
        yield "is not finite between start and end"


def _check_augmentation(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """The same images at p = 0; each image by its own numbers alone; twice differentiable; finite."""
    image, kind = image_spec(config.data), AUGMENTATIONS[name]
    images = torch.rand(4, image.channels, image.height, image.width) * 2 - 1
    draws = device_rng.uniform(SEEDS, "conformance", kind.num_draws)

    def apply(images: Tensor, draws: Tensor, p: float = 1.0) -> Tensor:
        return augment(images, draws, name, p, 1.0, image.alpha)

    for some in (draws, torch.zeros_like(draws), torch.full_like(draws, LAST)):
        whole = apply(images, some)
        if whole.shape != images.shape or not whole.isfinite().all():
            yield f"returns {list(whole.shape)} for images {list(images.shape)}, or values that are not finite"
            return
        if not torch.equal(apply(images, some, 0.0), images):
            yield "changes images at p = 0"
            return
    if any(not torch.equal(apply(images[i : i + 1], draws[i : i + 1])[0], apply(images, draws)[i]) for i in range(4)):
        yield "changes an image otherwise alone than in a batch: ranks and passes would change the update"
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(apply(x, draws).pow(3).sum(), x, create_graph=True)
    if not gradient.any():
        yield "passes no gradient on to the images, which G learns from"
    second = torch.autograd.grad(gradient.square().sum(), x, allow_unused=True)[0] if gradient.requires_grad else None
    if second is None or not second.isfinite().all():
        yield "has no second derivative, which gradient penalties need"


def _check_host_transform(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """An array of the same channels and type; a function of the image and its numbers, which stay as they are."""
    image, transform = image_spec(config.data), TRANSFORMS[name]
    listed = [one if isinstance(one, dict) else {one: None} for one in config.data.transforms]
    values = next((one[name] for one in listed if name in one), None) or {}
    step = TransformStep(name, transform, None if transform.options is None else transform.options(**values))
    span = image.high - image.low
    height, width = 2 * image.height + 1, image.width + 3
    pixels = (image.low + span * np.random.default_rng(0).random((height, width, image.channels))).astype(image.dtype)
    for number in (0.0, 0.5, LAST):
        draws, before = np.full(transform.num_draws, number, np.float32), pixels.copy()
        once, again = (np.array(step(pixels, draws)) for _ in range(2))
        if not np.array_equal(once, again):
            yield "is another one each time: draw nothing but the numbers that it is given"
        if not np.array_equal(pixels, before):
            yield "changes the array that it is given: return another one"
            return


def _check_degradation(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """The same of an image alone and in a batch, and again; finite."""
    image, kind = image_spec(config.data), degrade_spec.KINDS[name]
    high = kind.high * min(image.height, image.width) if kind.high_in_sides else kind.high
    images = torch.rand(4, image.channels, image.height, image.width) * 2 - 1
    for low, top in ((kind.low, kind.low), (kind.low, min(high, 2 * kind.low + 1))):
        steps = [degrade_spec.Step(name, float(low), float(top))]
        whole = degrade(images, SEEDS, steps, image)
        if whole.shape != images.shape or not whole.isfinite().all():
            yield f"returns {list(whole.shape)} for images {list(images.shape)}, or values that are not finite"
            return
        if any(
            not torch.equal(degrade(images[i : i + 1], SEEDS[i : i + 1], steps, image)[0], whole[i]) for i in range(4)
        ):
            yield "changes an image otherwise alone than in a batch: ranks and passes would change the update"
            return


def _check_metric(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """The names that it declares, each with a value and a standard error; the same again."""
    metric, num = METRICS[name], max(64, METRICS[name].least)
    sides = []
    for shift in (0.0, 0.5):
        points = torch.randn(num, 32) + shift
        gaussian = frechet.Moments.of(points.double()).gaussian()
        logits = torch.randn(num, 10) if metric.needs_logits else None
        sides.append(Features(gaussian, points, logits, root=frechet.root(gaussian.cov)))
    once, again = (metric.values(sides[0], sides[1], True) for _ in range(2))
    if set(once) != set(metric.names):
        yield f"returns {', '.join(once)}, and declares {', '.join(metric.names)}"
    for value, pair in once.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(x, float) for x in pair):
            yield f"returns {pair!r} as {value}: a value and its standard error (or NaN), two floats"
        elif again[value][0] != pair[0]:
            yield f"returns another {value} each time"
    if metric.direction not in ("lower", "higher", ""):
        yield f'has the direction {metric.direction!r}: "lower", "higher" or ""'


def _check_extractor(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """The length of features and logits that it declares; the same again; finite."""
    weights = config.eval.weights if config.eval.extractor == name else ""
    extractor = open_extractor(name, weights)
    images = torch.randint(0, 256, (3, 3, 40, 30), dtype=torch.uint8)
    (once, logits), (again, _) = extractor(images), extractor(images)
    if not torch.equal(once, again):
        yield "gives other features each time"
    if open_extractor(name, weights).identity != extractor.identity:
        yield "has other weights each time it is built, so that no two evaluations compare"
    if not once.isfinite().all() or (logits is not None and not logits.isfinite().all()):
        yield "gives features that are not finite"


def _check_alert_rule(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """A text that can be filled in."""
    rule = ALERT_RULES[name]
    rule.text.format(value=rule.above, lines=rule.lines)
    if rule.lines < 1:
        yield f"has lines={rule.lines}: 1 or more"


def _check_tracker(name: str, config: Config, label_input: int | VectorInput) -> Iterator[str]:
    """Something to call: what it returns would be a run's."""
    if not callable(TRACKERS[name]):
        yield "is no function of a TrackedRun that makes a tracker"


def _state(net: nn.Module) -> list[Tensor]:
    return list(net.state_dict().values())


_CHECKS: dict[str, Callable[[str, Config, int | VectorInput], Iterator[str]]] = {
    "loss": _check_loss,
    "family": _check_family,
    "optimizer": _check_optimizer,
    "schedule": _check_schedule,
    "augmentation": _check_augmentation,
    "host transform": _check_host_transform,
    "degradation": _check_degradation,
    "metric": _check_metric,
    "extractor": _check_extractor,
    "alert rule": _check_alert_rule,
    "tracker": _check_tracker,
}
_PASSED = {
    "loss": "a mean over images, finite at extreme logits",
    "family": "shapes, bf16, second derivatives, 2 x B = 1 x 2B, and a step that is resumed",
    "optimizer": "follows the learning rate, and a step that is resumed is the same",
    "schedule": "from 0 to 1",
    "augmentation": "nothing at p = 0, the same alone and in a batch, second derivatives",
    "host transform": "the same each time, of the right type",
    "degradation": "the same alone and in a batch",
    "metric": "its names, the same each time",
    "extractor": "its shapes, the same each time",
    "alert rule": "its text can be filled in",
    "tracker": "can be made (not tried)",
}
