"""Checkpoints: a folder of named tensors and a few numbers, complete or absent, with a hash of every file.

    step-<images>/
        G.safetensors  D.safetensors  G_ema.safetensors  opt_G.safetensors  opt_D.safetensors
        state.json     images, cursor constants, controllers, the whole config
        manifest.json  sha256 and size of each file above

Nothing in it is a pickle, so a checkpoint from elsewhere cannot run code. A folder is written under another name,
forced to disk, and renamed; whatever happens on the way, the older ones stay as they are.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from distgan.errors import ConfigError, DataError, DivergedError, MachineError
from distgan.storage.atomic import replace_file
from distgan.storage.home import user_path
from distgan.storage.saved_state import Best, File, SavedState, parse_manifest
from distgan.storage.untrusted import MAX_JSON_BYTES, json_of, open_regular, parse, read_json

log = logging.getLogger("distgan")

EXPORT = WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"  # files of an exported generator

Tensors = dict[str, dict[str, Tensor]]  # object -> name -> tensor
Shapes = dict[str, dict[str, tuple[int, ...]]]


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
        if final.exists():  # a corrupt one that a resumed run has come to again
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


def load(path: Path, expected: Callable[[SavedState], Shapes] | None = None) -> tuple[Tensors, SavedState]:
    """The tensors and the state of a checkpoint, after its hashes were checked.

    Args:
        expected: From the state, the shapes of what will be made of it. Files that are far too large for that are not
            read, and other shapes are refused.

    Raises:
        DamagedError: It is incomplete, was altered, or holds other tensors.
    """
    with _telling_damage(path):
        manifest, state = _described(path)
    shapes = {} if expected is None else expected(state)
    with _telling_damage(path):
        _require_room(manifest, shapes)
        contents = {name: _file(path, name, told) for name, told in manifest.items() if name != "state.json"}
        tensors = {name.removesuffix(".safetensors"): tensors_of(data, name) for name, data in contents.items()}
        for name, wanted in shapes.items():
            require_shapes(tensors.get(name, {}), wanted, name)
    return tensors, state


def verify(path: Path) -> None:
    """See that a checkpoint is whole, without room for its tensors. Raises DamagedError."""
    with _telling_damage(path):
        for name, told in _described(path)[0].items():
            with open_regular(path / name, follow_links=False) as file:
                size, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()
                while size == told["bytes"] and (part := file.read(2**22)):
                    digest.update(part)
                _require_hash(name, size, digest.hexdigest(), told)


@contextlib.contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    """Raise DamagedError for all that can be wrong with the files of a checkpoint."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"{os.path.basename(error.filename)} is missing") from None
    except DataError as error:
        raise DamagedError(str(error).removeprefix(f"{path}/")) from None
    except OSError as error:
        raise DamagedError(f"unreadable: {error}") from None


def _described(path: Path) -> tuple[dict[str, File], SavedState]:
    """What a checkpoint says of itself: its files, and its state. Raises DataError, or FileNotFoundError."""
    manifest = parse_manifest(read_json(path / "manifest.json", follow_links=False), "manifest.json")
    data = _file(path, "state.json", manifest["state.json"])
    return manifest, parse(SavedState, json_of(data, "state.json"), "state.json")


def _file(path: Path, name: str, told: File) -> bytes:
    """The bytes of a checkpoint's file. Raises DataError where they are not those of the manifest."""
    limit = MAX_JSON_BYTES if name.endswith(".json") else told["bytes"]
    with open_regular(path / name, follow_links=False) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size == told["bytes"] <= limit else b""
    _require_hash(name, size, hashlib.sha256(data).hexdigest(), told)
    return data


def _require_hash(name: str, size: int, digest: str, told: File) -> None:
    if size != told["bytes"] or digest != told["sha256"]:
        raise DataError(f"{name} is not what was written ({size} of {told['bytes']} bytes)")


def _require_room(manifest: dict[str, File], shapes: Shapes) -> None:
    """Refuse files that are larger than what they are for, or than this machine's memory."""
    for name, wanted in shapes.items():
        most = 2**22 + 8 * sum(math.prod(shape) for shape in wanted.values())
        if (size := manifest.get(f"{name}.safetensors", {"bytes": 0})["bytes"]) > most:
            raise DataError(f"{name}.safetensors has {size:,} bytes, but its network needs at most {most:,}")
    total = sum(told["bytes"] for told in manifest.values())
    if total > (memory := machine_memory()):
        raise DataError(f"{total / 1e9:,.0f} GB of tensors, more than the {memory / 1e9:,.0f} GB of this machine")


def machine_memory() -> int:
    """In bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tensors_of(data: bytes, where: object) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DataError."""
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{where}: no tensors in it: {error}") from None


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def require_shapes(tensors: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Refuse tensors of another network. Raises DataError, which names the first that differs."""
    found = shapes_of(tensors)
    if differ := sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name)):
        has, needs = (str(list(shapes[differ[0]])) if differ[0] in shapes else "nothing" for shapes in (found, wanted))
        raise DataError(
            f"{what}: the weights are not of the network that is described there: {differ[0]} is {has} instead of "
            f"{needs}, and {len(differ) - 1} more"
        )


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a run."""
    return sorted((p for p in folder.glob("step-" + 12 * "[0-9]") if p.is_dir()), reverse=True)


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose hashes hold, and what is wrong with newer ones."""
    refused: list[str] = []
    for path in newest_first(folder):
        try:
            verify(path)
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
            log.warning(f"skipping a corrupt checkpoint: {reason}")
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


def read_state(path: Path) -> SavedState:
    """The state of a checkpoint, without its tensors."""
    file = path / "state.json"
    try:
        return parse(SavedState, read_json(file, follow_links=False), file)
    except FileNotFoundError:
        raise DataError(f"{path}: state.json is missing: name another checkpoint") from None


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
        log.warning(f"skipping a corrupt checkpoint: {reason}")
    if resume == "never":
        if own or refused:
            raise ConfigError(f"run.resume=never, but {folder} has checkpoints: choose another run.dir")
        return None, False
    if resume != "auto":
        wanted = find(user_path(resume))
        if wanted.parent.resolve() != folder.resolve():
            return (own, True) if own else (wanted, False)
        if own is not None and _began_at(own) == resume:
            return own, True
        if looking:
            return wanted, True
        times = 1 + len({path.name.split("-")[1] for path in folder.glob("aside-*")})
        for newer in newest_first(folder):
            if newer.name > wanted.name:
                newer.rename(folder / f"aside-{times}-{newer.name}")
        return wanted, True
    if refused and own is None:
        raise DataError(f"{folder} has no good checkpoint left; move it away to start from scratch")
    return own, True


def _began_at(path: Path) -> object:
    """What run.resume was in the run that wrote a checkpoint."""
    run = read_state(path)["config"].get("run")
    return run.get("resume") if isinstance(run, dict) else None


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
        return dict(parse(Best, read_json(folder / "best.json", follow_links=False), "best.json"))
    except FileNotFoundError:
        return {}
    except DataError as error:
        log.warning(f"warning: {folder / 'best.json'}: {error}: skipped")
        return {}


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
    """Undo `optimizer_tensors`. Raises DataError for tensors of another network."""
    numbers = {name: i for i, (name, _) in enumerate(net.named_parameters())}
    shapes = shapes_of(dict(net.named_parameters()))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        weight, _, slot = name.rpartition("/")
        if weight not in numbers or tuple(value.shape) != (() if slot == "step" else shapes[weight]):
            raise DataError(f"the optimizer's {name} is of another network: {list(value.shape)}")
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
