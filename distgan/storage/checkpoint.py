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

from distgan.errors import DataError, DivergedError, MachineError
from distgan.storage.atomic import replace_file
from distgan.storage.saved_state import File, SavedState, parse_manifest
from distgan.storage.untrusted import MAX_JSON_BYTES, json_of, open_regular, parse, read_json

EXPORT = WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"  # files of an exported generator

Tensors = dict[str, dict[str, Tensor]]  # object -> name -> tensor
Shapes = dict[str, dict[str, tuple[int, ...]]]


class CorruptCheckpointError(Exception):
    """A checkpoint that is incomplete or was altered; the message says how."""


def save(folder: Path, images: int, tensors: Tensors, state: dict) -> Path:
    """Write a checkpoint into `folder`; returns its path.

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
        if final.exists():  # a corrupt one that a resumed run has reached again
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
    """Return the tensors and the state of a checkpoint, after its hashes were checked.

    Args:
        expected: From the state, the shapes of what will be made of it. Files that are far too large for that are not
            read, and other shapes are refused.

    Raises:
        CorruptCheckpointError: It is incomplete, was altered, or holds other tensors.
    """
    with _telling_damage(path):
        manifest, state = _described(path)
    shapes = {} if expected is None else expected(state)
    with _telling_damage(path):
        _require_room(manifest, shapes)
        contents = {name: _file(path, name, entry) for name, entry in manifest.items() if name != "state.json"}
        tensors = {name.removesuffix(".safetensors"): tensors_of(data, name) for name, data in contents.items()}
        for name, wanted in shapes.items():
            require_shapes(tensors.get(name, {}), wanted, name)
    return tensors, state


def verify(path: Path) -> None:
    """Check that a checkpoint is complete, without memory for its tensors. Raises CorruptCheckpointError."""
    with _telling_damage(path):
        for name, entry in _described(path)[0].items():
            with open_regular(path / name, follow_links=False) as file:
                size, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()
                while size == entry["bytes"] and (part := file.read(2**22)):
                    digest.update(part)
                _require_hash(name, size, digest.hexdigest(), entry)


@contextlib.contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    """Raise CorruptCheckpointError for all that can be wrong with the files of a checkpoint."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{os.path.basename(error.filename)} is missing") from None
    except DataError as error:
        raise CorruptCheckpointError(str(error).removeprefix(f"{path}/")) from None
    except OSError as error:
        raise CorruptCheckpointError(f"unreadable: {error}") from None


def _described(path: Path) -> tuple[dict[str, File], SavedState]:
    """Return the files that a checkpoint lists, and its state. Raises DataError, or FileNotFoundError."""
    manifest = parse_manifest(read_json(path / "manifest.json", follow_links=False), "manifest.json")
    data = _file(path, "state.json", manifest["state.json"])
    return manifest, parse(SavedState, json_of(data, "state.json"), "state.json")


def _file(path: Path, name: str, entry: File) -> bytes:
    """Read a file of a checkpoint. Raises DataError where it is not the one that the manifest lists."""
    limit = MAX_JSON_BYTES if name.endswith(".json") else entry["bytes"]
    with open_regular(path / name, follow_links=False) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size == entry["bytes"] <= limit else b""
    _require_hash(name, size, hashlib.sha256(data).hexdigest(), entry)
    return data


def _require_hash(name: str, size: int, digest: str, entry: File) -> None:
    """Refuse a file whose size or hash is not the one that the manifest lists. Raises DataError."""
    if size != entry["bytes"] or digest != entry["sha256"]:
        raise DataError(f"{name} is not what was written ({size} of {entry['bytes']} bytes)")


def _require_room(manifest: dict[str, File], shapes: Shapes) -> None:
    """Refuse files that are larger than what they are for, or than this machine's memory."""
    for name, wanted in shapes.items():
        most = 2**22 + 8 * sum(math.prod(shape) for shape in wanted.values())
        if (size := manifest.get(f"{name}.safetensors", {"bytes": 0})["bytes"]) > most:
            raise DataError(f"{name}.safetensors has {size:,} bytes, but its network needs at most {most:,}")
    total = sum(entry["bytes"] for entry in manifest.values())
    if total > (memory := machine_memory()):
        raise DataError(f"{total / 1e9:,.0f} GB of tensors, more than the {memory / 1e9:,.0f} GB of this machine")


def machine_memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tensors_of(data: bytes, where: object) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises DataError."""
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{where}: no tensors in it: {error}") from None


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def require_shapes(tensors: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Refuse tensors of another network. Raises DataError, which names the first that differs."""
    given = shapes_of(tensors)
    if differ := sorted(name for name in given.keys() | wanted if given.get(name) != wanted.get(name)):
        has, needs = (str(list(shapes[differ[0]])) if differ[0] in shapes else "nothing" for shapes in (given, wanted))
        raise DataError(
            f"{what}: the weights are not of the network that is described there: {differ[0]} is {has} instead of "
            f"{needs}, and {len(differ) - 1} more"
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, Tensor]:
    """Return an optimizer's state as "<weight>/<slot>". Its settings are functions of config and images seen."""
    state = optimizer.state_dict()["state"]
    names = _names_in_order(optimizer, net)
    return {f"{names[i]}/{slot}": value for i, slots in state.items() for slot, value in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`. What was frozen when they were saved starts from zero.

    Raises DataError for tensors of another network.
    """
    numbers = {name: i for i, name in enumerate(_names_in_order(optimizer, net))}
    weights = dict(net.named_parameters())
    shapes = shapes_of(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        weight, _, slot = name.rpartition("/")
        if weight not in numbers or tuple(value.shape) != (() if slot == "step" else shapes[weight]):
            raise DataError(f"the optimizer's {name} is of another network: {list(value.shape)}")
        if value.shape:  # in the memory format of the weight, which fused optimizers rely on
            value = torch.empty_strided(value.shape, weights[weight].stride(), dtype=value.dtype).copy_(value)
        state.setdefault(numbers[weight], {})[slot] = value
    for number, slots in optimizer.state_dict()["state"].items():
        if number not in state:
            state[number] = {slot: torch.zeros_like(value) for slot, value in slots.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names_in_order(optimizer: torch.optim.Optimizer, net: nn.Module) -> list[str]:
    """Return the names of an optimizer's weights, in the order in which its state counts them: group by group."""
    names = {id(weight): name for name, weight in net.named_parameters()}
    return [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]


def _write(path: Path, data: bytes) -> dict:
    """Write a file to disk; returns its entry in the manifest."""
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
