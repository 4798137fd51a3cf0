"""Weights that a new run starts from: of a run, a checkpoint, an exported folder, or a file of state dicts."""

import fcntl
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from distgan.condition_spec import Field
from distgan.errors import ConfigError, DataError
from distgan.image_spec import ImageSpec
from distgan.inference import loading
from distgan.inference.exported_folder import WEIGHTS, is_exported, read_exported
from distgan.inference.trained_generator import Spec
from distgan.storage.checkpoint import machine_memory, tensors_of
from distgan.storage.home import user_path
from distgan.storage.torch_file import read_torch_file, require_own_memory
from distgan.storage.untrusted import open_regular, read

# Names of the networks in files of state dicts.
PARTS = {"G": "G", "D": "D", "G_ema": "G_ema", "g": "G", "d": "D", "g_ema": "G_ema"}
KINDS = (
    "a run folder, RUN/best, a checkpoint, a folder that `distgan export` wrote, or a .safetensors or .pt file of "
    "state dicts"
)


@dataclass(frozen=True)
class WeightSource:
    """State dicts by network, and what is known of the networks that they are of.

    Attributes:
        nets: Tensors by name, of G, D and G_ema as far as they are there; "" for those of one unnamed network.
        spec: The description of the generator; None of a plain file.
        sha256: Hash of the file, or of the manifest of the checkpoint, which has the hashes of its files.
        ignored: Names in a file that are no state dict of a network.
    """

    path: Path
    nets: dict[str, dict[str, Tensor]]
    spec: Spec | None
    sha256: str
    ignored: list[str] = field(default_factory=list)

    @property
    def image(self) -> ImageSpec | None:
        """Return the kind of the images that the networks are for; None where the file does not say."""
        return None if self.spec is None else self.spec.image

    @property
    def conditions(self) -> list[Field]:
        """Return the conditions that the networks know."""
        return [] if self.spec is None else self.spec.conditions


def read_source(source: str, run_dir: str) -> WeightSource:
    """Read what `init.from` names.

    Args:
        run_dir: The folder of the run that is to start.

    Raises:
        ConfigError: It is the run itself, or of networks that this version does not have.
        DataError: It is of no known form, corrupt, of a run that is being trained, or not finite.
    """
    path = user_path(source)
    if path.resolve() == user_path(run_dir).resolve() or user_path(run_dir).resolve() in path.resolve().parents:
        raise ConfigError(
            f"init.from={source}: this is the run itself, which the same command resumes without init.from. To start "
            "again from its weights, choose another run.dir"
        )
    if path.is_dir():
        found = _of_folder(path, source)
    elif path.suffix == ".safetensors":
        found = _of_safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        found = _of_torch_file(path)
    elif not path.exists():
        raise DataError(f"init.from={source}: no such file or folder: name {KINDS}")
    else:
        why = ": a pickle runs code where it is opened" if path.suffix in (".pkl", ".pickle", ".ckpt", ".bin") else ""
        raise DataError(f"init.from={source}: not opened{why}: name {KINDS}")
    for net, tensors in found.nets.items():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                named = f"{net}.{name}" if net else name
                raise DataError(
                    f"init.from={source}: {named} is not finite: name an earlier checkpoint, or leave its network out "
                    "of init.parts"
                )
    return found


def _of_folder(path: Path, source: str) -> WeightSource:
    if is_exported(path):
        spec, tensors, _ = read_exported(path)
        digest = hashlib.sha256(read(path / WEIGHTS, machine_memory(), follow_links=False)).hexdigest()
        return WeightSource(path, {"G_ema": tensors}, spec, digest)
    if (path / ".lock").exists() and _is_held(path):
        raise DataError(
            f"init.from={source}: this run is being trained now, and its newest checkpoint changes: wait until it "
            f"ends, or name a checkpoint ({path / 'checkpoints'}/step-...)"
        )
    where, all_tensors, config, state = loading.read_checkpoint(path)
    digest = str(loading.origin_of(where, state["config"], state["images"])["sha256"])
    nets = {name: all_tensors[name] for name in ("G", "D", "G_ema")}
    return WeightSource(where, nets, loading.spec_of(config, state), digest)


def _is_held(run: Path) -> bool:
    """Return whether a process holds a run's lock."""
    with open_regular(run / ".lock", follow_links=False) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks on this file system
            return False
    return False


def _of_safetensors(path: Path) -> WeightSource:
    try:
        data = read(path, machine_memory())
    except FileNotFoundError:
        raise DataError(f"init.from={path}: no such file") from None
    tensors = tensors_of(data, path)
    nets: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        net, _, rest = name.partition(".")
        if net not in PARTS or not rest:
            nets = {"": tensors}  # of one network, without a name in front
            break
        nets.setdefault(PARTS[net], {})[rest] = tensor
    return WeightSource(path, nets, None, hashlib.sha256(data).hexdigest())


def _of_torch_file(path: Path) -> WeightSource:
    try:
        values, data = read_torch_file(path)
    except FileNotFoundError:
        raise DataError(f"init.from={path}: no such file") from None
    nets: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        if name in PARTS and isinstance(value, dict):
            nets[PARTS[name]] = {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}
    ignored = [name for name, value in values.items() if name not in PARTS and not isinstance(value, Tensor)]
    if not nets:
        nets = {"": {name: value for name, value in values.items() if isinstance(value, Tensor)}}
    else:
        ignored = [name for name in values if name not in PARTS]
    if not any(nets.values()):
        raise DataError(
            f"init.from={path}: no state dict in it, only {', '.join(list(values)[:10]) or 'nothing'}: save "
            "{'G': G.state_dict(), 'D': D.state_dict(), 'G_ema': G_ema.state_dict()}, or some of these"
        )
    for net, tensors in nets.items():
        for name, tensor in tensors.items():
            require_own_memory(f"{net}.{name}", tensor, path)
    return WeightSource(path, nets, None, hashlib.sha256(data).hexdigest(), ignored)
