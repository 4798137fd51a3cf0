"""Schemas of manifest.json and state.json of a checkpoint, for their readers to rely on."""

from typing import Annotated, TypedDict

from distgan.condition_spec import MAX_EXAMPLES, MAX_LENGTH, Field
from distgan.errors import DataError
from distgan.storage.untrusted import AtMost, Between, Count, Like, Name, Positive, Sha256, Share, parse

Classes = Annotated[int, Between(0, 1_000_000)]
Seconds = Annotated[float, Between(0, 1e12)]
FILE_NAME = r"\w[\w-]{0,100}\.(safetensors|json)"  # a plain name: no folder, no path out of the checkpoint
Aspect = Annotated[float, Between(0, 1000)]  # width over height; 0 is none
STEP_NAME = r"step-\d{12}"
# What W&B refuses in an id would end the run later.
WandbId = Annotated[str, Like(r"[^/\\#?%:\s\x00-\x1f]{1,128}", "an id of a W&B run")]


class File(TypedDict):
    """One of manifest.json."""

    sha256: Sha256
    bytes: Count


class Layout(TypedDict):
    """The constants of the order of samples."""

    lanes: Annotated[int, Between(1, 2**22)]
    block: Annotated[int, Between(1, 2**20)]
    window: Annotated[int, Between(1, 2**12)]
    version: Positive


class Ada(TypedDict):
    p: Share


class Balance(TypedDict):
    level: Share


class Controls(TypedDict, total=False):
    """The state of the controllers, and the sums of logits that they have not used yet."""

    verdicts: dict[str, list[float]]
    augment: Ada
    balance: Balance


class _Always(TypedDict):
    images: Count
    num_classes: Classes
    config: dict[str, object]


class SavedState(_Always, total=False):
    """state.json. What is not required here, older versions did not write, or a generator does without."""

    iterations: Count
    num_skipped: Count
    num_rollbacks: Count
    num_replaced: Annotated[list[Count], AtMost(2**20)]
    train_sec: Seconds
    eval_sec: Seconds
    evaluation_pending: bool
    wandb_id: WandbId
    fingerprint: Name
    layout: Layout
    unseen: list[Classes]
    class_names: list[Name]
    aspect: Aspect
    conditions: Annotated[list[Field], AtMost(MAX_LENGTH)]
    examples: Annotated[list[list[float | None]], AtMost(MAX_EXAMPLES)]
    revision: Positive
    plugins: dict[str, Sha256]
    own_networks: bool
    mean_path_length: Annotated[float, Between(0, 1e30)]
    stats: Annotated[list[list[float]], AtMost(2**20)]
    controls: Controls


class Best(TypedDict):
    """best.json, which names the best checkpoint."""

    checkpoint: Annotated[str, Like(STEP_NAME, "the name of a checkpoint")]


TO_RESUME = ("num_replaced", "wandb_id", "fingerprint", "layout", "stats", "controls")


def parse_manifest(value: object, where: object) -> dict[str, File]:
    """Return the files of a checkpoint by name, state.json among them. Raises DataError."""
    files = parse(dict[str, File], value, where)
    parse(list[Annotated[str, Like(FILE_NAME, "a plain file name")]], list(files), where)
    if "state.json" not in files:
        raise DataError(f"{where}: state.json is not in it")
    return files


def require_resumable(state: SavedState, where: object) -> None:
    """Refuse a state that a run cannot resume from. Raises DataError."""
    if missing := [name for name in TO_RESUME if name not in state]:
        raise DataError(f"{where}: state.json: {missing[0]}: got nothing, expected it to be there")
    stats, controls = state["stats"], state["controls"]
    if not stats or len({len(sums) for sums in stats}) > 1:
        raise DataError(f"{where}: state.json: stats: got {len(stats)} rows, expected some of one length")
    for name in ("augment", "balance"):
        if name in controls and len(controls.get("verdicts", {}).get(name, ())) != 3:
            raise DataError(f"{where}: state.json: controls.verdicts.{name}: expected three numbers")
