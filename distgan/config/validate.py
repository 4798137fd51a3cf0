"""Validate settings together: errors, each with its fix, and warnings of what works but may not be meant.

Like the schema, without torch and OmegaConf, so that errors are reported at once.
"""

import math
import operator
from collections.abc import Iterator

from distgan.config.batch_plan import BatchPlan, batch_normed, divisors, settings_that_compare
from distgan.config.choices import CHOOSERS, own_schema
from distgan.config.fields import leaves
from distgan.config.model_schema import FAMILIES
from distgan.config.schema import Config, Data, Eval, restores, sides
from distgan.data import host_transforms
from distgan.image_spec import ImageSpec, patches_error, range_error, size_error
from distgan.storage.formatting import one_of
from distgan.transforms import degrade_spec

LOSSES_WITH_TARGET = ("minimax", "non_saturating", "lsgan")


def config_errors(config: Config) -> list[str]:
    """Return settings that exclude one another or cannot work, each with its fix."""
    checks = (
        _check_data,
        bands_errors,
        _check_networks,
        _check_init,
        _check_loss,
        _check_augment_and_balance,
        _check_train,
        _check_optimizers,
        _check_restore,
    )
    return [line for check in checks for line in check(config)] + eval_errors(config.eval)


def _check_data(config: Config) -> Iterator[str]:
    data = config.data
    if not data.shards:
        yield "data.shards is not set: name a folder of shards (`distgan pack` makes them), e.g. data.shards=data/faces"
    if not data.resolution:
        yield "data.resolution is not set: the side of the images in pixels, e.g. data.resolution=64"
    yield from _check_values(data)
    if data.balance == "classes" and not config.model.conditional:
        yield "data.balance=classes needs class labels: set model.conditional=true, or data.balance=none"
    yield from _check_condition(config)
    if data.shuffle_lanes and data.shuffle_lanes % config.train.batch:
        yield f"data.shuffle_lanes={data.shuffle_lanes} must be a multiple of train.batch={config.train.batch}, or 0"


def steps_errors(config: Config) -> Iterator[str]:
    """Yield what is wrong with lists of steps, which may be of plugins: changes of decoded images, and degradations."""
    try:
        host_transforms.parse(config.data.transforms)
    except ValueError as error:
        yield f"data.transforms{error}"
    if image := _image(config.data):
        try:
            degrade_spec.parse(config.restore.degrade, image)
        except ValueError as error:
            yield f"restore.degrade{error}"


def _check_condition(config: Config) -> Iterator[str]:
    """Yield what is wrong with the conditions of images."""
    names, model = config.data.condition, config.model
    if names and not model.conditional:
        yield f"data.condition={names} is for networks that know it: set model.conditional=true, or data.condition=[]"
    if len(set(names)) < len(names) or ("all" in names and len(names) > 1):
        yield f"data.condition={names}: name each condition once, or all of them as [all]"
    if model.condition_dropout and not names:
        yield "model.condition_dropout drops conditions: set data.condition, or model.condition_dropout=0"
    if names and config.data.balance == "classes":
        yield "data.balance=classes balances by the class alone: set data.balance=none, or data.condition=[]"
    if names and config.data.classes:
        yield "data.classes counts class numbers, and data.condition replaces them: set data.classes=0"
    if names and config.eval.labels != "empirical":
        yield (
            f"eval.labels={config.eval.labels} names classes; with data.condition, generated images have the "
            "conditions of real ones: leave it out"
        )
    if names and restores(config):
        yield (
            "data.condition is for networks that make images of noise; model.family=restore takes classes alone: set "
            "data.condition=[]"
        )


def _check_values(data: Data) -> Iterator[str]:
    """Yield what is wrong with the channels of images and the range of their values."""
    if data.alpha == "channel" and data.channels not in (2, 4):
        yield (
            f"data.alpha=channel makes alpha the last channel, and data.channels={data.channels}: set data.channels=4 "
            "(colors and alpha) or 2 (gray and alpha), or data.alpha=composite"
        )
    if data.range and (len(data.range) != 2 or not data.range[0] < data.range[1]):
        yield f"data.range={data.range}: two values, of which the second is larger: [low, high]"
    elif data.range and (error := range_error(data.dtype, *data.range)):
        yield f"data.range={data.range}: {error}"


def bands_errors(config: Config) -> Iterator[str]:
    """Yield what is wrong with the channels that people see."""
    bands, channels = config.eval.bands, config.data.channels - (config.data.alpha == "channel")
    if bands and (len(bands) != 3 or max(bands) >= channels or channels in (1, 3)):
        allowed = (
            "gray and colors are seen as they are, leave it out"
            if channels in (1, 3)
            else f"three numbers of channels, from 0 to {channels - 1}"
        )
        yield f"eval.bands={bands}: {allowed}"


def _image(data: Data) -> ImageSpec | None:
    """Return the kind of a run's images, with any range of values; None where it is wrong, which is reported apart."""
    alpha = data.alpha == "channel" and data.channels in (2, 4)
    try:
        return ImageSpec(*sides(data), data.channels, data.dtype, 0.0, 1.0, alpha)
    except ValueError:
        return None


def _check_networks(config: Config) -> Iterator[str]:
    model = config.model
    if (image := _image(config.data)) and model.family in FAMILIES:
        if error := size_error(model.family, image.height, image.width):
            yield error
        elif error := patches_error(model.D.get("patches", 1), image):
            yield f"model.D.patches={model.D['patches']}: {error}"
    for net in "GD":
        own = getattr(model, net)
        widths, group = own.get("widths", [0]), own.get("group_width", 1)
        if not widths or any(width % group for width in widths):
            yield f"model.{net}.widths={widths}: each must be a multiple of model.{net}.group_width={group}"
    if model.G.get("norm") == "conditional" and not model.conditional:
        yield "model.G.norm=conditional needs classes: set model.conditional=true, or model.G.norm=batch"


def _check_loss(config: Config) -> Iterator[str]:
    loss = config.loss
    penalties = [name for name in ("r1", "r2", "gp") if any(getattr(loss, name))]
    if penalties and config.model.D.get("norm") == "batch":
        yield (
            f"loss.{penalties[0]} needs each image's own gradient, which batch norm in D mixes: "
            f"set model.D.norm=none, or loss.{penalties[0]}=0"
        )
    if loss.name == "wasserstein" and not any(loss.gp) and not loss.weight_clip:
        yield (
            "loss.name=wasserstein needs a Lipschitz critic: set loss.gp=10 (and train.n_critic=5), or "
            "loss.weight_clip=0.01"
        )
    if loss.penalty == "finite":
        if any(loss.gp):
            yield (
                "loss.penalty=finite is of r1 and r2, and loss.gp needs D's gradient: set loss.gp=0, or "
                "loss.penalty=exact"
            )
        if config.train.penalty_precision == "bf16":
            yield (
                "loss.penalty=finite takes differences that bf16 cannot tell apart: set train.penalty_precision=fp32, "
                "for which D sees the images twice more in such a step, or loss.penalty=exact"
            )
    if loss.path_length and "w_dim" not in config.model.G:
        yield (
            f"loss.path_length is of a G with styles, and model.family={config.model.family} has none: set "
            "model.family=stylegan2, or loss.path_length=0"
        )
    if loss.weight_clip and any(loss.gp):
        yield "loss.weight_clip and loss.gp have the same purpose: set one of them to 0"
    if loss.label_smoothing and loss.name not in LOSSES_WITH_TARGET:
        yield (
            f"loss.label_smoothing is of losses with a target: set loss.name to {one_of(LOSSES_WITH_TARGET)}, or "
            "loss.label_smoothing=0"
        )


def _check_augment_and_balance(config: Config) -> Iterator[str]:
    augment, balance = config.augment, config.balance
    if augment.target and augment.pipe in ("none", "flip", "diffaugment"):
        yield "augment.target adapts the probability of ADA: set augment.pipe=ada, or augment.target=0"
    if balance.adapt == "augment" and (augment.pipe == "none" or augment.target):
        yield "balance.adapt=augment moves augment.p: set augment.pipe=ada and augment.target=0"
    if balance.adapt == "d_steps" and config.train.n_critic == 1:
        yield "balance.adapt=d_steps lowers train.n_critic, which is 1: raise it, or set balance.adapt=d_lr"
    if balance.low >= balance.high:
        yield f"balance.low={balance.low} must be below balance.high={balance.high}"


def _check_train(config: Config) -> Iterator[str]:
    train = config.train
    if train.compile != "off" and train.deterministic == "strict":
        yield (
            f"train.compile={train.compile} generates kernels that train.deterministic=strict cannot check: "
            "set train.compile=off, or train.deterministic=warn"
        )
    if train.cuda_graphs and train.compile == "off":
        yield "train.cuda_graphs replays what is compiled, and train.compile=off compiles nothing: set g or all"
    if train.compile != "off" and config.model.dropout:
        yield (
            f"train.compile={train.compile} cannot trace the draws of model.dropout: set model.dropout=0, or "
            "train.compile=off"
        )
    draws = config.model.G.get("noise", False) is True or config.model.G.get("mixing", 0) > 0
    if train.compile != "off" and "w_dim" in config.model.G and draws:
        yield (
            f"train.compile={train.compile} cannot trace what stylegan2 draws: set model.G.noise=false and "
            "model.G.mixing=0, or train.compile=off"
        )
    if train.penalty_precision == "bf16" and train.precision != "bf16":
        yield (
            "train.penalty_precision=bf16 takes penalties from networks in bf16, and train.precision is "
            f"{train.precision}: set train.precision=bf16, or train.penalty_precision to one of fp32, tf32"
        )
    if train.micro_batch and train.batch % train.micro_batch:
        yield (
            f"train.batch={train.batch} is not a multiple of train.micro_batch={train.micro_batch}: "
            f"choose one of {one_of(divisors(train.batch))}"
        )


def _check_init(config: Config) -> Iterator[str]:
    init = config.init
    if unknown := [name for name in init.parts if name not in ("G", "D", "G_ema")]:
        yield f"init.parts={init.parts}: {unknown[0]!r} is none of G, D, G_ema"
    if bad := [text for text in init.classes if not all(text.partition("=")[::2])]:
        yield f"init.classes: {bad[0]!r}: write NEW=OLD, such as 'seven=one'"
    if (init.parts or init.classes) and not init.source:
        yield "init.parts and init.classes are of weights to start from: set init.from, or leave them out"
    if init.source and config.run.resume not in ("auto", "never"):
        yield (
            f"run.resume={config.run.resume} goes on with a run, and init.from={init.source} starts a new one from "
            "weights: set one of them"
        )


def _check_optimizers(config: Config) -> Iterator[str]:
    for name, settings in (("G", config.optim.G), ("D", config.optim.D)):
        for text in settings.lr_factors:
            pattern, _, number = text.rpartition("=")
            if not pattern or not _is_factor(number):
                yield (
                    f"optim.{name}.lr_factors: {text!r}: write PATTERN=FACTOR with a factor of 0 or more, such as "
                    "'embed=0.1'"
                )


def _is_factor(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def _check_restore(config: Config) -> Iterator[str]:
    if config.restore.degrade and not restores(config):
        yield "restore.degrade makes images to restore: set model.family=restore, or leave it out"
    if restores(config) and config.eval.every:
        yield (
            "eval.every compares images that G makes of noise with real ones; what is restored is measured by PSNR and "
            "SSIM, on data.holdout images at every sample.every: set eval.every=0"
        )


def eval_errors(settings: Eval) -> list[str]:
    """Return what is wrong with the settings of an evaluation."""
    mistakes = []
    if not settings.metrics:
        mistakes.append("eval.metrics is empty: name one, such as fd")
    if settings.best_metric and settings.best_metric not in settings.metrics:
        mistakes.append(
            f"eval.best_metric={settings.best_metric} is not measured: add it to eval.metrics, or set eval.best_metric "
            "to one there"
        )
    return mistakes


def warnings(config: Config, batch_plan: BatchPlan) -> list[str]:
    """Return what works but may not be meant."""
    lines = []
    normed = batch_normed(config)
    if normed and batch_plan.micro_batch < batch_plan.batch:
        lines.append(
            f"batch norm in {' and '.join(normed)} sees each pass's own {batch_plan.micro_batch} images, so the update "
            f"depends on ranks and train.micro_batch (with model.{normed[0]}.norm=none it does not)"
        )
    if config.loss.name == "rpgan" and not (any(config.loss.r1) and any(config.loss.r2)):
        lines.append(
            "loss.name=rpgan does not converge without both penalties, on real images and on fakes "
            "(Huang et al. 2024): set loss.r1 and loss.r2, to 1 for a start"
        )
    compares = [name for name, on in settings_that_compare(config).items() if on]
    if compares and not config.model.minibatch_group_size and batch_plan.micro_batch < batch_plan.batch:
        lines.append(
            f"{' and '.join(compares)} compares the {batch_plan.micro_batch} images of a pass, so the update depends "
            "on ranks and train.micro_batch; with model.minibatch_group_size set to a divisor of "
            f"{batch_plan.micro_batch} it does not"
        )
    if restores(config) and not config.data.holdout:
        lines.append("restored images are not measured: data.holdout=500 keeps some images out of training for that")
    if config.ema.half_life[-1] > config.train.images:
        lines.append(
            f"ema.half_life={config.ema.half_life[-1]:g} is longer than the run (train.images={config.train.images})"
        )
    if config.checkpoint.every > config.train.images:
        lines.append(f"checkpoint.every={config.checkpoint.every} is longer than the run: only its end will be saved")
    if config.eval.every > config.train.images:
        lines.append(f"eval.every={config.eval.every} is longer than the run: only its end will be evaluated")
    return lines


def out_of_bounds(config: Config) -> list[str]:
    """Return numbers outside of their bounds, and texts that no setting can be."""
    mistakes = []
    values = dict(leaves(config))
    known = dict(leaves(Config))
    for group, chooser in CHOOSERS.items():
        part = operator.attrgetter(chooser)(config)
        known |= dict(leaves(schema, f"{group}.")) if (schema := own_schema(group, part)) is not None else {}
    for name, field in known.items():
        low, high = field.metadata["low"], field.metadata["high"]
        value = values.get(name)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, str) and "\0" in number:
                mistakes.append(f"{name}: a zero byte in a text")
            if name == "data.resolution" and number == 0:
                continue  # not set: `config_errors` says so
            if not isinstance(number, (int, float)):
                continue
            if not abs(number) < (2**63 if isinstance(number, int) else math.inf):  # a NaN is not, either
                mistakes.append(f"{name}={number}: must be a finite number")
            elif (low is not None and number < low) or (high is not None and number > high):
                bounds = f"at least {low}" if high is None else f"from {low} to {high}"
                mistakes.append(f"{name}={number}: must be {bounds}")
    return list(dict.fromkeys(mistakes))
