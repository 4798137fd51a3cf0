"""Every setting of a run: what it means, its default and its bounds.

`load` fills these dataclasses from YAML and `key=value`. Neither torch nor OmegaConf is imported here.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from distgan.config.fields import key
from distgan.image_spec import ImageSpec
from distgan.metrics.names import EVAL_METRICS


@dataclass
class Run:
    dir: str = key("", "run folder; empty: runs/<name of the config file>", free=True)
    resume: str = key(
        "auto",
        "auto: go on with the run, from its newest good checkpoint; never; or go on from a checkpoint folder, with its "
        "clock and optimizers (a new run starts from weights by init)",
        free=True,
    )
    expected_world_size: int = key(0, "refuse to run on any other number of ranks; 0: any", free=True, low=0)
    timeout_sec: int = key(
        600, "seconds that a rank waits for another before the run fails", free=True, low=10, high=10**6
    )
    log_system_metrics: bool = key(False, "log the load of every node, as System/node<n>_...", free=True)
    trackers: list[str] = key([], "where metrics go too, of plugins", free=True, choices="trackers")
    allow_config_change: bool = key(False, "resume although settings that change the training differ", free=True)
    allow_data_change: bool = key(False, "resume although the shards differ from those at the start", free=True)


@dataclass
class Data:
    shards: list[str] = key(
        [], "folder, glob, WebDataset expression or addresses of shards, or a list of these", free=True
    )
    resolution: Any = key(
        0,
        "size of the images in pixels, one side or [height, width]; others are cropped and resized to it",
        unit="size",
        low=8,
        high=1024,
    )
    channels: int = key(
        3, "channels of the images: 1 is gray, 3 colors, others those of arrays and bands; alpha counts", low=1, high=32
    )
    dtype: Literal["uint8", "uint16", "float32"] = key(
        "uint8", "numbers that images are read as, and generated as; files of more bits become levels of 0..255 else"
    )
    range: list[float] = key(
        [],
        "values that are -1 and 1 for the networks, [low, high]; empty: all levels of data.dtype, and of float32 what "
        "the data set's card says",
    )
    alpha: Literal["composite", "channel"] = key(
        "composite", "transparent images lie on data.background, or have alpha as their last channel (of 2 or 4)"
    )
    background: int = key(255, "gray level under transparent pixels", low=0, high=255)
    classes: int = key(0, "number of classes; 0: largest label plus one", low=0, high=1_000_000)
    condition: list[str] = key(
        [],
        "conditions that G and D are given instead of the class, by the names in the data set's card (`distgan pack "
        "--condition`); [all]: all of them",
    )
    balance: Literal["none", "classes"] = key("none", "show every sample, or every class, equally often")
    image_key: str = key("", "suffix of the image part, or several such as rgb.png,nir.png to stack; empty: found")
    holdout: int = key(
        0, "images kept out of training, always the same ones; restore is measured on them", unit="images", low=0
    )
    resize_filter: Literal["lanczos", "area", "bicubic"] = key("lanczos", "resampling of images of another size")
    crop: Literal["center", "random", "stretch", "pad"] = key(
        "center",
        "how other proportions are met: by the largest part in the center, or at a place that is drawn for each image "
        "in training; by stretching; or by bars of data.background",
    )
    flip: bool = key(False, "mirror half of the real images, chosen again in each epoch")
    transforms: list[Any] = key(
        [],
        "changes of a decoded image before its resize, as [NAME] or [{NAME: {OPTION: VALUE}}], of plugins",
        choices="host transforms",
    )
    max_pixels: int = key(100_000_000, "larger images count as corrupt", low=1, high=178_000_000)
    max_corrupt_fraction: float = key(
        0.01, "share of corrupt images above which the run fails", free=True, low=0, high=1
    )
    allow_corrupt: bool = key(False, "use the good samples of corrupt shards")
    allow_pipe: bool = key(
        False, "run the shell commands of pipe: addresses; counts on the command line only", free=True, personal=True
    )
    decode_threads: int = key(
        0,
        "decoding threads of each rank; 0: by the cores and the size of images",
        free=True,
        low=0,
        high=64,
    )
    scaled_decode: bool = key(
        False, "decode JPEGs at a fraction that is still twice the resolution: faster where they are far larger"
    )
    prefetch: int = key(0, "batches made ahead; 0: what data.prefetch_mb holds", free=True, low=0, high=64)
    prefetch_mb: int = key(64, "memory for batches made ahead, each rank; at least 2, at most 16", free=True, low=1)
    cache_mb: int = key(1024, "memory for bytes of remote shards, each rank", free=True, low=64)
    cache_dir: str = key("", "folder on a disk of each node where bytes of remote shards are kept too", free=True)
    cache_dir_gb: float = key(100.0, "largest size of data.cache_dir", free=True, low=0.01)
    timeout_sec: float = key(120, "seconds after which one read stops retrying", free=True, low=1)
    audit: bool = key(False, "write a line for every consumed sample to audit/rank<r>.jsonl", free=True)
    shuffle_lanes: int = key(
        0, "places of the data set that a batch is mixed from; 0: chosen at the start", low=0, high=2**22
    )
    shuffle_block: int = key(0, "neighbors that are read together; 0: chosen at the start", low=0, high=2**20)
    shuffle_window: int = key(0, "rows of a lane that are shuffled together; 0: chosen at the start", low=0, high=2**12)


@dataclass
class Model:
    family: str = key("dcgan", "network family", choices="families")
    z_dim: int = key(128, "length of the latent vector", low=1, high=2**16)
    conditional: bool = key(False, "whether G and D know the class, or data.condition")
    condition_dropout: float = key(
        0.0,
        "probability that an image is shown without a condition, drawn for each; the unknown has a learned vector",
        low=0,
        high=0.99,
    )
    minibatch_layer: Literal["none", "stddev", "discrimination"] = key(
        "none", "layer that shows D how images differ from others in their group (model.minibatch_group_size)"
    )
    minibatch_group_size: int = key(
        0, "neighbors in a batch that model.minibatch_layer and loss.feature_matching compare; 0: all of a pass", low=0
    )
    dropout: float = key(0.0, "fraction of D's last features dropped in training", low=0, high=0.95)
    G: dict = key({}, "the generator's own settings (see its family)")
    D: dict = key({}, "the discriminator's own settings (see its family)")


@dataclass
class Init:
    source: str = key(
        "",
        "weights that a new run starts from: a run, RUN/best, a checkpoint, an exported folder, a .safetensors or .pt "
        "file; also written init.from. To go on with a run, start it again, or see run.resume",
    )
    parts: list[str] = key([], "networks that start from them, of G, D and G_ema; empty: all that are there")
    classes: list[str] = key(
        [],
        "classes that start from others, as NEW=OLD; those of one name do, or of one number where there are no names, "
        "and others from the mean",
    )


@dataclass
class Loss:
    name: str = key("rpgan", "adversarial loss", choices="losses")
    options: dict = key({}, "the settings of a loss of a plugin")
    r1: list[float] = key(
        [1.0],
        "gamma of the gradient penalty on real images; 0 where another loss is chosen without it",
        unit="schedule",
        low=0,
    )
    r2: list[float] = key(
        [1.0],
        "gamma of the gradient penalty on fakes; 0 where another loss is chosen without it",
        unit="schedule",
        low=0,
    )
    gp: list[float] = key([0.0], "lambda of the WGAN-GP penalty", unit="schedule", low=0)
    weight_clip: float = key(0.0, "bound on D's weights (WGAN); 0: none", low=0)
    label_smoothing: float = key(
        0.0, "one-sided label smoothing: the target for real images is 1 minus this", low=0, high=0.5
    )
    feature_matching: float = key(0.0, "weight of G's distance to real images in the mean of D's features", low=0)
    penalty: Literal["exact", "finite"] = key(
        "exact",
        "R1 and R2 by D's gradient; or by differences of its logits where noise is added to images, which needs no "
        "second derivative",
    )
    finite_sigma: float = key(0.01, "deviation of that noise, on a scale of -1..1", low=1e-4, high=1)
    path_length: float = key(0.0, "weight of path length regularization, of a G with styles (stylegan2)", low=0)
    path_length_interval: int = key(
        4, "G steps from one application of loss.path_length to the next; its weight is multiplied by it", low=1
    )
    penalty_interval: int = key(
        1, "D steps from one application of r1, r2 and gp to the next; their weight is multiplied by it", low=1
    )


@dataclass
class Restore:
    degrade: list[dict] = key(
        [],
        "steps that degrade clean images, in this order, as [{blur: [0.5, 2]}, {noise: 25, p: 0.5}]; empty: the shards "
        "hold pairs",
        choices="degradations",
    )
    pixel_loss: Literal["l1", "l2", "charbonnier"] = key("l1", "distance between restored and clean images")
    pixel_weight: float = key(100.0, "weight of that distance in G's loss, next to the adversarial loss", low=0)


@dataclass
class Augment:
    pipe: str = key("none", "augmentation of every image that D sees, real and fake", choices="none or augmentations")
    p: list[float] = key([1.0], "probability of each transformation", unit="schedule", low=0, high=1)
    target: float = key(0.0, "adaptive p: the mean sign of D on real images to aim at; 0: p as given", low=0, high=1)
    speed: int = key(500_000, "adaptive p: images that it needs at least from 0 to 1", unit="images", low=1)
    p_max: float = key(0.8, "upper bound of an adaptive p", low=0, high=1)
    interval: int = key(256, "images between two updates of an adaptive p", unit="images", low=1)
    color: float = key(1.0, "strength of ADA's color transformations", low=0, high=1)
    instance_noise: list[float] = key(
        [0.0], "instance noise on real images and fakes, standard deviation on a scale of -1..1", unit="schedule", low=0
    )


@dataclass
class Balance:
    adapt: Literal["", "d_lr", "d_steps", "augment"] = key(
        "",
        "how D is weakened where it is too strong: learning rate, steps for each G step, or augment.p; empty: none",
    )
    signal: Literal["acc", "sign"] = key(
        "acc", "share of pairs that D orders correctly (0.5 is chance), or mean sign of D on real images (-1..1)"
    )
    low: float = key(0.6, "below this, D is too weak", low=-1, high=1)
    high: float = key(0.85, "above this, D is too strong", low=-1, high=1)
    max_factor: float = key(16.0, "largest factor by which D is weakened", low=1, high=1e6)
    step: float = key(0.05, "fraction of the way to that factor in one update", low=1e-6, high=1)
    every: int = key(1000, "images between two updates", unit="images", low=1)


@dataclass
class Optimizer:
    name: str = key("adam", "optimizer", choices="optimizers")
    options: dict = key({}, "the settings of an optimizer of a plugin")
    lr: list[float] = key([2e-4], "learning rate", unit="schedule", low=0)
    betas: tuple[float, float] = key(
        (0.0, 0.99),
        "decay of the gradient's first and second moment; of sgd, the first is its momentum",
        low=0,
        high=0.999999,
    )
    beta2: list[float] = key(
        [], "second of the betas over the run; empty: constant", unit="schedule", low=0, high=0.999999
    )
    eps: float = key(1e-8, "added to the root of the second moment", low=0)
    weight_decay: float = key(0.0, "weight decay of adamw", low=0)
    freeze: list[str] = key(
        [], "weights that stay as they are: those of the first N layers from the input side, or patterns of names"
    )
    lr_factors: list[str] = key(
        [], "factors of the learning rate of some weights, as 'embed=0.1'; of patterns, the first that matches holds"
    )


@dataclass
class Optim:
    G: Optimizer = field(default_factory=Optimizer)
    D: Optimizer = field(default_factory=Optimizer)
    warmup: int = key(0, "images over which learning rates rise from 0", unit="images", low=0)


@dataclass
class Ema:
    half_life: list[float] = key(
        [10_000.0], "half-life of the generator's average; 0: no average", unit="images schedule", low=0
    )
    ramp_up: float = key(0.05, "early on, the half-life is at most this share of the images seen; 0: never", low=0)


@dataclass
class Train:
    batch: int = key(64, "images of a step, over all ranks", low=1, high=2**22)
    micro_batch: int = key(0, "images of one pass on one rank; 0: all at once", free=True, low=0)
    images: int = key(1_000_000, "stop after these images", unit="images", free=True, low=1)
    max_minutes: float = key(
        0.0, "stop after this much training time in minutes, resumed parts included; 0: never", free=True, low=0
    )
    n_critic: int = key(1, "D steps for each G step", low=1, high=1000)
    precision: Literal["fp32", "bf16"] = key("fp32", "precision of the networks")
    penalty_precision: Literal["fp32", "tf32", "bf16"] = key(
        "fp32",
        "precision of R1, R2 and GP: fp32; fp32 with the faster products of TF32 on a GPU, in the whole D loss of such "
        "a step; or that of networks in bf16, which saves a second forward of D",
    )
    compile: Literal["off", "g", "all"] = key(
        "off",
        "compile nothing; G, and D where no penalty is applied; or D's penalties too. The first steps take minutes",
        free=True,
    )
    cuda_graphs: bool = key(
        False, "GPU: replay what train.compile made as CUDA graphs, so that the host starts few kernels", free=True
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = key(
        "auto",
        "order of weights and images in memory: auto takes the faster one, on a CPU by family, on a GPU by a probe at "
        "the start; NCHW; or NHWC",
        free=True,
    )
    tf32: bool = key(False, "GPU: round the factors of fp32 products to 10 bits, which is faster")
    grad_sync: Literal["ddp", "flat"] = key(
        "ddp", "how gradients are summed over ranks: in buckets, while the backward runs; or in one piece after it"
    )
    bucket_mb: int = key(25, "size of ddp's buckets: smaller ones start earlier, larger ones cost less", low=1)
    grad_compression: Literal["none", "bf16"] = key("none", "gradients sent between ranks: as they are, or rounded")
    seed: int = key(0, "seed of all random numbers of the training", low=0, high=2**63 - 1)
    on_nan: Literal["fail", "skip", "rollback"] = key(
        "fail",
        "where a loss or gradient is not finite (such a step is never taken): end the run; skip the step; or roll back "
        "to the last checkpoint, with other noise",
        free=True,
    )
    nan_limit: int = key(10, "number of skipped steps or rollbacks after which the run fails", free=True, low=1)
    tick: int = key(
        0, "images from one line of metrics to the next; 0: 1000, or 32 batches", unit="images", free=True, low=0
    )
    schedule_images: int = key(
        10_000_000, "images over which schedules go from their first to their last value", unit="images", low=1
    )
    schedule_shape: str = key("cosine", "curve of the schedules", choices="schedules")
    deterministic: Literal["fast", "warn", "strict"] = key(
        "fast", "GPU: fastest kernels; or deterministic ones, warning of or refusing those that have none"
    )


@dataclass
class Sample:
    every: int = key(20_000, "images from one sample grid to the next; 0: none", unit="images", free=True, low=0)
    rows: int = key(0, "rows of the grid; 0: the classes, at most 16, or 8", free=True, low=0, high=64)
    columns: int = key(8, "columns of the grid", free=True, low=1, high=64)


@dataclass
class Checkpoint:
    every: int = key(100_000, "images from one checkpoint to the next", unit="images", free=True, low=1)
    keep_last: int = key(3, "number of newest checkpoints that are kept", free=True, low=1)
    keep_every: int = key(
        0, "images between two checkpoints that are kept forever; 0: none", unit="images", free=True, low=0
    )


@dataclass
class Eval:
    every: int = key(0, "images from one evaluation to the next; 0: none", unit="images", free=True, low=0)
    num_images: int = key(10_000, "generated images of an evaluation", unit="images", free=True, low=2)
    metrics: list[str] = key(
        ["fd", "kid"],
        "metrics; pr is precision and recall, dc density and coverage",
        free=True,
        choices="metrics",
    )
    best_metric: str = key(
        "",
        "metric whose best checkpoint is kept forever; empty: the first of eval.metrics with a best value",
        free=True,
        choices="empty or best metrics",
    )
    extractor: str = key(
        "efficientnet_lite0",
        "network that computes features of images; values from two networks are not comparable",
        free=True,
        choices="extractors",
    )
    weights: str = key("", "file of its weights, or a folder that holds it; empty: the usual places", free=True)
    download: bool = key(False, "download its weights if they are missing", free=True)
    resizer: Literal["", "tf1_bilinear", "bilinear", "clean_bicubic", "torch_bicubic_aa"] = key(
        "", "how images are resized for it; empty: its own way", free=True
    )
    reference: str = key("", "real images: shards, or an .npz with mu and sigma; empty: data.shards", free=True)
    num_real_features: int = key(
        50_000, "real images whose features are kept for metrics other than fd", free=True, low=2
    )
    bands: list[int] = key(
        [],
        "three channels that the network and sample grids see as red, green and blue, of images that are not colors; "
        "empty: the first three",
        free=True,
        low=0,
        high=31,
    )
    seed: int = key(0, "seed of latents and labels, the same in every evaluation", free=True, low=0, high=2**62)
    labels: str = key(
        "empirical",
        "classes of generated images: empirical, uniform, or a list used in turn, such as 0,3,7-9",
        free=True,
    )


@dataclass
class Wandb:
    mode: Literal["auto", "online", "offline", "disabled"] = key(
        "auto", "auto: online where there is a key and a network, else offline", free=True
    )
    project: str = key("distgan", "project", free=True)
    entity: str = key("", "team or user; empty: the key's own", free=True)
    name: str = key("", "run name; empty: the run folder's", free=True)
    group: str = key("", "group", free=True)
    tags: list[str] = key([], "tags", free=True)
    notes: str = key("", "notes", free=True)
    checkpoints: Literal["none", "reference", "best", "all"] = key(
        "none",
        "checkpoints as artifacts: none; the paths of all; the average generator of each new best; or all, whole "
        "(what is sent stays in the run folder's wandb/checkpoints)",
        free=True,
    )
    histograms: bool = key(False, "histograms of D's logits and of the norms of weights, with the samples", free=True)


@dataclass
class Config:
    plugins: list[str] = key(
        [], "Python files, or names of modules, that add parts of their own; also `--plugin`", free=True
    )
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
    loss: Loss = field(default_factory=Loss)
    restore: Restore = field(default_factory=Restore)
    augment: Augment = field(default_factory=Augment)
    balance: Balance = field(default_factory=Balance)
    optim: Optim = field(default_factory=Optim)
    ema: Ema = field(default_factory=Ema)
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    eval: Eval = field(default_factory=Eval)
    wandb: Wandb = field(default_factory=Wandb)


def best_metric(settings: Eval) -> str:
    """Return the metric by which the best checkpoint is chosen; empty where none is measured that could decide."""
    return settings.best_metric or next((name for name in settings.metrics if EVAL_METRICS[name]), "")


def sides(data: Data) -> tuple[int, int]:
    """Return height and width of a run's images; 0 where they are not set."""
    height, width = data.resolution if isinstance(data.resolution, list) else [data.resolution] * 2
    return height, width


def image_spec(data: Data) -> ImageSpec:
    """Return the channels, size and values of a run's images. Raises ValueError where there are no such images."""
    low, high = data.range or (0.0, 0.0)
    return ImageSpec(*sides(data), data.channels, data.dtype, low, high, data.alpha == "channel")


def network_options(config: Config) -> dict[str, Any]:
    """Return the arguments of `models.networks.build_nets`, but for the number of classes or the kind of conditions."""
    model = config.model
    return {
        "family": model.family,
        "image": image_spec(config.data),
        "z_dim": model.z_dim,
        "G": model.G,
        "D": model.D,
        "seed": config.train.seed,
        "minibatch": model.minibatch_layer,
        "group": model.minibatch_group_size,
        "dropout": model.dropout,
    }


def restores(config: Config) -> bool:
    """Return whether G makes images of degraded ones, not of noise alone."""
    return config.model.family == "restore"


def shapes_nets(name: str) -> bool:
    """Return whether other values of this setting make other networks, which no saved weights fit."""
    if name in ("model.minibatch_group_size", "model.condition_dropout"):
        return False
    return name.startswith("model.") or name in (
        "data.resolution",
        "data.channels",
        "data.classes",
        "data.condition",
    )
