"""Checkpoints: a folder of named tensors and a few numbers, complete or absent, with a hash of every file.

    step-<images>/
        G.safetensors  D.safetensors  G_ema.safetensors  opt_G.safetensors  opt_D.safetensors
        state.json     images, cursor constants, controllers, the whole config
        manifest.json  sha256 and size of each file above

Nothing in it is a pickle, so a checkpoint from elsewhere cannot run code. A folder is written under another name,
forced to disk, and renamed; whatever happens on the way, the older ones stay as they are.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from distgan.errors import ConfigError, DataError, DivergedError, MachineError
from distgan.storage.atomic import replace_file
from distgan.storage.home import user_path

log = logging.getLogger("distgan")

EXPORT = WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"  # files of an exported generator

Tensors = dict[str, dict[str, Tensor]]  # object -> name -> tensor


class DamagedError(Exception):
    """A checkpoint that is incomplete or was altered; the message says how."""


def save(folder: Path, images: int, tensors: Tensors, state: dict) -> Path:
    """Write a checkpoint into `folder`; returns where it lies.

    Raises:
        DivergedError: a value is not finite; nothing is written.
        MachineError: the disk is full or cannot be written; older checkpoints stay.
    """
    bad = next((f"{o}.{n}" for o, named in tensors.items() for n, t in named.items() if not t.isfinite().all()), None)
    if bad:
        raise DivergedError(f"{bad} is not finite after {images} images: not saved; the older checkpoints are good")
    final = folder / f"step-{images:012d}"
    part = folder / f".{final.name}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        manifest = {}
        for name, named in tensors.items():
            data = save_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in named.items()})
            manifest[f"{name}.safetensors"] = _write(part / f"{name}.safetensors", data)
        manifest["state.json"] = _write(part / "state.json", json.dumps(state, indent=1).encode())
        _write(part / "manifest.json", json.dumps(manifest, indent=1).encode())
        _sync_folder(part)
        if final.exists():  # a damaged one that a resumed run has come to again
            shutil.rmtree(final)
        part.rename(final)
        _sync_folder(folder)
        replace_file(folder / "latest.json", json.dumps({"checkpoint": final.name, "images": images}) + "\n")
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or error
        raise MachineError(
            f"checkpoint {final} could not be written: {reason}; the older checkpoints are good"
        ) from None
    return final


def load(path: Path) -> tuple[Tensors, dict]:
    """The tensors and the state of a checkpoint, after its hashes were checked. Raises DamagedError."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        hashes = {name: (told["sha256"], told["bytes"]) for name, told in manifest.items()}
        contents = {name: (path / name).read_bytes() for name in hashes}
    except FileNotFoundError as error:
        raise DamagedError(f"{os.path.basename(error.filename)} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"unreadable: {error}") from None
    for name, data in contents.items():
        digest, size = hashes[name]
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedError(f"{name} is not what was written ({len(data)} of {size} bytes)")
    try:
        tensors = {n.removesuffix(".safetensors"): load_tensors(d) for n, d in contents.items() if n != "state.json"}
        return tensors, json.loads(contents["state.json"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedError(f"unreadable: {error}") from None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a run."""
    return sorted((p for p in folder.glob("step-" + 12 * "[0-9]") if p.is_dir()), reverse=True)


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose hashes hold, and what is wrong with newer ones."""
    refused: list[str] = []
    for path in newest_first(folder):
        try:
            load(path)
            return path, refused
        except DamagedError as damage:
            refused.append(f"{path.name}: {damage}")
    return None, refused


def find(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest good one of a run folder or of its checkpoints/.

    RUN/best means the one that evaluations found to be the best.
    """
    if (path / "manifest.json").exists():
        return path
    if names_best(path):
        folder = path.parent if newest_first(path.parent) else path.parent / "checkpoints"
        name = read_best(folder).get("checkpoint")
        if name is None or not (folder / name / "manifest.json").exists():
            raise DataError(
                f"{path}: {folder} has no best checkpoint: a run knows one once it has evaluated (eval.every); name "
                "the run for its newest checkpoint"
            )
        return folder / name
    if all((path / file).exists() for file in EXPORT):
        raise DataError(
            f"{path} is what `distgan export` wrote: a generator alone, without the discriminator and the optimizers "
            "that resuming needs. Name the run that it was made of, or one of its checkpoints"
        )
    found, refused = newest_good(path if newest_first(path) else path / "checkpoints")
    if found is not None:
        for reason in refused:
            log.warning(f"passing over a damaged checkpoint: {reason}")
        return found
    if refused:
        raise DataError(f"{path}: no good checkpoint there; {'; '.join(refused)}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.name == "checkpoints" or any((path / name).exists() for name in ("checkpoints", "config.yaml")):
        raise DataError(
            f"{path}: no checkpoint yet: the first one is written after checkpoint.every images, or when the run is "
            "stopped"
        )
    raise DataError(
        f"{path}: neither a run folder, nor a checkpoint, nor a folder that `distgan export` wrote: name one of these"
    )


def told(path: Path, found: Path) -> str:
    """For a person, which checkpoint `find` took for `path`, and why."""
    why = "named" if found == path else "the best one" if names_best(path) else "the newest good one"
    return f"checkpoint: {found}, after {read_state(found)['images']:,} images ({why})"


def names_best(path: Path) -> bool:
    """Whether a path asks for the best checkpoint of the run that it lies in; not so a folder of that name."""
    return path.name == "best" and not path.exists() and path.parent.is_dir()


def read_state(path: Path) -> dict:
    """The state of a checkpoint, without its tensors."""
    try:
        return json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: state.json is unreadable ({error}): name another checkpoint") from None


def choose(folder: Path, resume: str, *, looking: bool = False) -> tuple[Path | None, bool]:
    """Where a run with its checkpoints in `folder` goes on from, and whether that is a checkpoint of its own.

    Args:
        resume: "auto", the newest good one; "never", none, which needs a folder without any; or a path: one of the
            run's own takes it back to there (newer ones are set aside), any other is where a new run begins. What was
            trained with the same path since then is gone on with, as by "auto": the same command goes on.
        looking: Whether to leave everything as it is.
    """
    own, refused = newest_good(folder)
    for reason in refused:
        log.warning(f"passing over a damaged checkpoint: {reason}")
    if resume == "never":
        if own or refused:
            raise ConfigError(f"run.resume=never, but {folder} has checkpoints: choose another run.dir")
        return None, False
    if resume != "auto":
        wanted = find(user_path(resume))
        if wanted.parent.resolve() != folder.resolve():
            return (own, True) if own else (wanted, False)
        if own is not None and read_state(own)["config"]["run"]["resume"] == resume:
            return own, True
        if looking:
            return wanted, True
        times = 1 + len({path.name.split("-")[1] for path in folder.glob("aside-*")})
        for newer in newest_first(folder):
            if newer.name > wanted.name:
                newer.rename(folder / f"aside-{times}-{newer.name}")
        return wanted, True
    if refused and own is None:
        raise DataError(f"{folder} has no good checkpoint left; move it away to start anew")
    return own, True


def require_left(folder: Path, resume: str, images: int, max_minutes: float) -> None:
    """Refuse to begin a run of so many images or minutes from a checkpoint of another one that has had them.

    Raises:
        ConfigError: with the way out; before anything is written.
    """
    if resume in ("auto", "never") or newest_good(folder)[0] is not None:
        return
    wanted = find(user_path(resume))
    state = read_state(wanted)
    seen, minutes = state["images"], state.get("train_sec", 0) / 60
    if 0 < max_minutes <= minutes:
        raise ConfigError(
            f"run.resume={resume}: {wanted.name} was trained for {minutes:.1f} minutes, which "
            f"train.max_minutes={max_minutes:g} counts: nothing would be trained. Set train.max_minutes to more"
        )
    if seen >= images:
        raise ConfigError(
            f"run.resume={resume}: {wanted.name} has seen {seen:,} images, which train.images={images:,} counts: "
            f"nothing would be trained. Set train.images to more than {seen:,}"
        )


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the newest `keep_last`, the first at or after each multiple of `keep_every` images, and the best.

    The best is what `note_best` was told.
    """
    best = read_best(folder).get("checkpoint")
    paths = newest_first(folder)[::-1]
    images = [int(path.name.removeprefix("step-")) for path in paths]
    for before, at, path in list(zip([0, *images], images, paths))[:-keep_last]:
        if path.name != best and (not keep_every or at // keep_every == before // keep_every):
            shutil.rmtree(path, ignore_errors=True)
    for part in folder.glob(".step-*.part"):  # of a save that was killed
        shutil.rmtree(part, ignore_errors=True)


def read_best(folder: Path) -> dict:
    """What best.json tells of the best checkpoint (`checkpoint`, `metric`, `value`); nothing where there is none."""
    try:
        found = json.loads((folder / "best.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_best(folder: Path, told: dict | None) -> None:
    """Make best.json tell this, or go."""
    if told is None:
        (folder / "best.json").unlink(missing_ok=True)
    elif told != read_best(folder):
        replace_file(folder / "best.json", json.dumps(told) + "\n")


def optimizer_tensors(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, Tensor]:
    """An optimizer's state as "<weight>/<slot>". Its settings are functions of the config and the images seen."""
    state = optimizer.state_dict()["state"]
    names = [name for name, _ in net.named_parameters()]
    return {f"{names[i]}/{slot}": value for i, slots in state.items() for slot, value in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`."""
    numbers = {name: i for i, (name, _) in enumerate(net.named_parameters())}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        weight, _, slot = name.rpartition("/")
        state.setdefault(numbers[weight], {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write(path: Path, data: bytes) -> dict:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
