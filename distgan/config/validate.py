"""Which settings go together, and how a global batch is spread over ranks.

Like `config`, without torch and OmegaConf, so that mistakes are told at once.
"""

from distgan.config.batch_plan import BatchPlan, _comparing, _listed, divisors
from distgan.config.schema import Config, Eval, restores
from distgan.metrics.names import EVAL_METRICS
from distgan.transforms import degrade_spec

SMOOTHED = ("minimax", "non_saturating", "lsgan")
LEAST_RESOLUTION = {"hourglass": 32, "restore": 16}  # of a family that cannot do the 8 pixels that others can


def problems(config: Config) -> list[str]:
    """Settings that exclude one another or cannot work, each with the way out."""
    found = []
    data, model, loss, train = config.data, config.model, config.loss, config.train
    if not data.shards:
        found.append(
            "data.shards is not set: name a folder of shards (`distgan pack` makes them), e.g. data.shards=data/faces"
        )
    if data.resolution & (data.resolution - 1):
        near = 2 ** (data.resolution.bit_length() - 1)
        found.append(
            f"data.resolution={data.resolution}: the networks need a power of two, such as {near} or {2 * near}"
        )
    least = LEAST_RESOLUTION.get(model.family, 8)
    if 0 < data.resolution < least:
        found.append(f"data.resolution={data.resolution}: model.family={model.family} needs {least} pixels at least")
    if data.resolution == 0:
        found.append("data.resolution is not set: the side of the images in pixels, e.g. data.resolution=64")
    penalties = [name for name in ("r1", "r2", "gp") if any(getattr(loss, name))]
    if penalties and model.D.get("norm") == "batch":
        found.append(
            f"loss.{penalties[0]} needs each image's own gradient, which batch norm in D mixes: "
            f"set model.D.norm=none, or loss.{penalties[0]}=0"
        )
    if loss.name == "wasserstein" and not any(loss.gp) and not loss.weight_clip:
        found.append(
            "loss.name=wasserstein needs a Lipschitz critic: set loss.gp=10 (and train.n_critic=5), or "
            "loss.weight_clip=0.01"
        )
    if loss.weight_clip and any(loss.gp):
        found.append("loss.weight_clip and loss.gp have the same purpose: set one of them to 0")
    if train.compile != "off" and train.deterministic == "strict":
        found.append(
            f"train.compile={train.compile} generates kernels that train.deterministic=strict cannot check: "
            "set train.compile=off, or train.deterministic=warn"
        )
    if train.compile != "off" and model.dropout:
        found.append(
            f"train.compile={train.compile} cannot trace the draws of model.dropout: set model.dropout=0, or "
            "train.compile=off"
        )
    if train.micro_batch and train.batch % train.micro_batch:
        found.append(
            f"train.batch={train.batch} is not a multiple of train.micro_batch={train.micro_batch}: "
            f"choose one of {_listed(divisors(train.batch))}"
        )
    for net in "GD":
        own = getattr(model, net)
        widths, group = own.get("widths", [0]), own.get("group_width", 1)
        if not widths or any(width % group for width in widths):
            found.append(f"model.{net}.widths={widths}: each must be a multiple of model.{net}.group_width={group}")
    if model.G.get("norm") == "conditional" and not model.conditional:
        found.append("model.G.norm=conditional needs classes: set model.conditional=true, or model.G.norm=batch")
    if loss.label_smoothing and loss.name not in SMOOTHED:
        found.append(
            f"loss.label_smoothing is of losses with a target: set loss.name to {_listed(SMOOTHED)}, or "
            "loss.label_smoothing=0"
        )
    if config.augment.target and not config.augment.pipe.startswith("ada"):
        found.append("augment.target adapts the probability of ADA: set augment.pipe=ada, or augment.target=0")
    if config.balance.adapt == "augment" and (config.augment.pipe == "none" or config.augment.target):
        found.append("balance.adapt=augment moves augment.p: set augment.pipe=ada and augment.target=0")
    if config.balance.adapt == "d_steps" and train.n_critic == 1:
        found.append("balance.adapt=d_steps lowers train.n_critic, which is 1: raise it, or set balance.adapt=d_lr")
    if config.balance.low >= config.balance.high:
        found.append(f"balance.low={config.balance.low} must be below balance.high={config.balance.high}")
    if data.balance == "classes" and not model.conditional:
        found.append("data.balance=classes needs class labels: set model.conditional=true, or data.balance=none")
    found += _problems_of_restoring(config)
    if data.shuffle_lanes and data.shuffle_lanes % train.batch:
        found.append(f"data.shuffle_lanes={data.shuffle_lanes} must be a multiple of train.batch={train.batch}, or 0")
    found += eval_problems(config.eval)
    return found


def eval_problems(settings: Eval) -> list[str]:
    """Those of an evaluation."""
    found = []
    if unknown := [name for name in settings.metrics if name not in EVAL_METRICS]:
        found.append(f"eval.metrics={unknown[0]}: choose from {', '.join(EVAL_METRICS)}")
    if not settings.metrics:
        found.append("eval.metrics is empty: name one, such as fd")
    if settings.best_metric and settings.best_metric not in settings.metrics:
        found.append(
            f"eval.best_metric={settings.best_metric} is not measured: add it to eval.metrics, or set eval.best_metric "
            "to one there"
        )
    return found


def _problems_of_restoring(config: Config) -> list[str]:
    found, resolution, patches = [], config.data.resolution, config.model.D.get("patches", 1)
    if config.restore.degrade and not restores(config):
        found.append("restore.degrade makes images to restore: set model.family=restore, or leave it out")
    if restores(config) and config.eval.every:
        found.append(
            "eval.every compares images that G makes of noise with real ones; what is restored is measured by PSNR and "
            "SSIM, on data.holdout images at every sample.every: set eval.every=0"
        )
    if not resolution:  # which is told already
        return found
    try:
        degrade_spec.parse(config.restore.degrade, resolution)
    except ValueError as error:
        found.append(f"restore.degrade{error}")
    if patches > 1 and (patches & (patches - 1) or not 4 <= patches <= resolution // 2):
        found.append(
            f"model.D.patches={patches}: 1, or a power of two from 4 to half of data.resolution, {resolution // 2}"
        )
    return found


def warnings(config: Config, spread: BatchPlan) -> list[str]:
    """What works but may not be meant."""
    found = []
    normed = [net for net in "GD" if getattr(config.model, net).get("norm") == "batch"]
    if normed and spread.micro_batch < spread.batch:
        found.append(
            f"batch norm in {' and '.join(normed)} sees each pass's own {spread.micro_batch} images, so the update "
            f"depends on ranks and train.micro_batch (with model.{normed[0]}.norm=none it does not)"
        )
    if config.loss.name == "rpgan" and not (any(config.loss.r1) and any(config.loss.r2)):
        found.append(
            "loss.name=rpgan does not converge without both penalties, on real images and on fakes "
            "(Huang et al. 2024): set loss.r1 and loss.r2, to 1 for a start"
        )
    compares = [name for name, on in _comparing(config).items() if on]
    if compares and not config.model.minibatch_group_size and spread.micro_batch < spread.batch:
        found.append(
            f"{' and '.join(compares)} compares the {spread.micro_batch} images of a pass, so the update depends on "
            "ranks and train.micro_batch; with model.minibatch_group_size set to a divisor of "
            f"{spread.micro_batch} it does not"
        )
    if restores(config) and not config.data.holdout:
        found.append("restored images are not measured: data.holdout=500 keeps some images out of training for that")
    if config.ema.half_life[-1] > config.train.images:
        found.append(
            f"ema.half_life={config.ema.half_life[-1]:g} is longer than the run (train.images={config.train.images})"
        )
    if config.checkpoint.every > config.train.images:
        found.append(f"checkpoint.every={config.checkpoint.every} is longer than the run: only its end will be saved")
    if config.eval.every > config.train.images:
        found.append(f"eval.every={config.eval.every} is longer than the run: only its end will be evaluated")
    return found
