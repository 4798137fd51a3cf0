"""Names of settings, options and log keys in earlier versions. Old names do not work: the error gives the new one."""

from collections.abc import Iterable

RENAMED = {
    "augment.colour": "augment.color",
    "augment.every": "augment.interval",
    "augment.noise": "augment.instance_noise",
    "balance.limit": "balance.max_factor",
    "balance.rate": "balance.step",
    "balance.watch": "balance.signal",
    "data.allow_damaged": "data.allow_corrupt",
    "data.block": "data.shuffle_block",
    "data.filter": "data.resize_filter",
    "data.image": "data.image_key",
    "data.lanes": "data.shuffle_lanes",
    "data.max_bad_share": "data.max_corrupt_fraction",
    "data.threads": "data.decode_threads",
    "data.window": "data.shuffle_window",
    "eval.best": "eval.best_metric",
    "eval.keep": "eval.num_real_features",
    "eval.num": "eval.num_images",
    "loss.clip": "loss.weight_clip",
    "loss.penalty_every": "loss.penalty_interval",
    "loss.smooth": "loss.label_smoothing",
    "model.minibatch": "model.minibatch_layer",
    "restore.pixel": "restore.pixel_loss",
    "restore.weight": "restore.pixel_weight",
    "run.expect_ranks": "run.expected_world_size",
    "run.per_node": "run.log_system_metrics",
    "train.group": "model.minibatch_group_size",
    "train.ramp": "train.schedule_images",
    "train.ramp_shape": "train.schedule_shape",
    "train.sync": "train.grad_sync",
}  # old key -> new key
RENAMED_NETWORK_SETTINGS = {
    "embedding": "embed_dim",
    "max_width": "max_channels",
    "spectral": "spectral_norm",
    "width": "base_channels",
}  # of model.G and model.D: old key -> new key
RENAMED_VALUES = {
    ("data.crop", "squeeze"): "stretch",
    ("loss.name", "leastsquares"): "lsgan",
    ("loss.name", "nonsaturating"): "non_saturating",
    ("loss.name", "relativistic"): "rpgan",
}  # (key, old value) -> new value
RENAMED_OPTIONS = {
    ("bench", "--against"): "--baseline",
    ("evaluate", "--heldout"): "--holdout",
    ("evaluate", "--memorisation"): "--memorization",
    ("evaluate", "--selfcheck"): "--self-test",
    ("generate", "--filter"): "--keep-best",
    ("generate", "--stops"): "--keyframes",
    ("pack", "--allow-damaged"): "--allow-corrupt",
}  # (command, old option) -> new option
RENAMED_LOG_KEYS = {
    "Data/substituted": "Data/replaced",
    "EMA/dist": "EMA/rel_distance",
    "Logits/acc": "Logits/D_accuracy",
    "Logits/gap": "Logits/real_minus_fake",
}  # of numbers: old key -> new key


def new_name(key: str, value: object = None) -> str:
    """Return the line that gives the new name of a setting or of its value, as "loss.smooth is now
    loss.label_smoothing"; empty where nothing was renamed."""
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}"
    net, _, last = key.rpartition(".")
    if net in ("model.G", "model.D") and last in RENAMED_NETWORK_SETTINGS:
        return f"{key} is now {net}.{RENAMED_NETWORK_SETTINGS[last]}"
    new = RENAMED_VALUES.get((key, value)) if isinstance(value, str) else None
    return f"{key}={value} is now {key}={new}" if new else ""


def new_last_part(last: str) -> str:
    """Return what an old name's last part is now, such as base_channels for width; "" where it is no old name."""
    old = {key.rpartition(".")[2]: new.rpartition(".")[2] for key, new in RENAMED.items()}
    return (old | RENAMED_NETWORK_SETTINGS).get(last, "")


def earlier_version(settings: Iterable[tuple[str, object]]) -> str:
    """Return one line about settings (keys with dots, values) that an earlier version of distgan saved; empty where
    all names are of this version."""
    values = dict(settings)
    if values.get("plugins"):  # earlier versions had none, and networks of plugins may have any settings
        values = {key: value for key, value in values.items() if not key.startswith(("model.G.", "model.D."))}
    lines = [line for line in (new_name(key, value) for key, value in values.items()) if line]
    if not lines:
        return ""
    more = f", and {len(lines) - 1} more settings have new names" if len(lines) > 1 else ""
    return (
        f"an earlier version of distgan wrote this ({lines[0]}{more}): use that version to resume, evaluate or export "
        "it, or start a new run in another run.dir"
    )
