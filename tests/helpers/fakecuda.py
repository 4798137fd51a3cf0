"""Fake CUDA tensors on a CPU build of torch, and a mode that counts what a GPU would be asked to do.

Shapes, dtypes and devices are those of a run on one GPU; there are no values, no kernels, no streams and no NCCL, and
nothing is timed. So it shows device mixes, copies, waits of the host and the number of launches, and nothing else.

`python tests/helpers/fakecuda.py` counts the launches of QUICK, SLOW and CHUNKED and writes them to BUDGET, which no
test may exceed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from processes import ROOT, WORKERS, environment
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from unordered import is_refused

import distgan
from distgan.config.load import load
from distgan.config.schema import Config

PACKAGE = str(Path(distgan.__file__).parent) + os.sep
SOURCE = Path(__file__).parent / "fakecuda.cpp"
BUDGET = Path(__file__).parent / "fakecuda_launches.json"  # D's and G's, or those of a chunk, by name of a case
STEPS, EVALUATION = "fakecuda_steps.py", "fakecuda_evaluation.py"  # workers
# What makes the host wait: numbers taken out of a tensor, and shapes that depend on its values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "bincount")
# Operators that start no kernel beside views and what writes shapes alone: they allocate, or say something of a tensor.
FREE = (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view", "set_",
    "resize_", "is_pinned", "is_same_size", "_has_compatible_shallow_copy_type",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A config of `configs/` with these settings; `fault` is a key of fakecuda_steps.FAULTS."""

    name: str
    config: str
    settings: tuple[str, ...] = ()
    fault: str = ""


QUICK = [
    Case("dcgan64", "dcgan64.yaml"),
    Case("digits32", "digits32.yaml"),
    Case("ada", "digits32.yaml", ("augment.pipe=ada", "augment.target=0.6", "balance.adapt=d_lr", "balance.every=320")),
    Case("restore-small bf16", "restore-small.yaml", ("train.precision=bf16",)),
]
SLOW = [
    *(
        Case(path.stem, path.name)
        for path in sorted((ROOT / "configs").glob("*.yaml"))
        if path.stem not in ("dcgan64", "digits32")
    ),
    Case(
        "dcgan64 diffaugment",
        "dcgan64.yaml",
        ("augment.pipe=diffaugment", "data.flip=true", "augment.instance_noise=0.1"),
    ),
    Case("digits32 uint16", "digits32.yaml", ("data.channels=1", "data.dtype=uint16", "data.resolution=[24,32]")),
    Case(
        "digits32 bands",
        "digits32.yaml",
        ("data.channels=5", "data.dtype=float32", "data.range=[-3,2]", "augment.pipe=ada", "data.flip=true"),
    ),
    Case("dcgan64 skip", "dcgan64.yaml", ("train.on_nan=skip",)),
    Case("dcgan64 ada", "dcgan64.yaml", ("augment.pipe=ada", "augment.target=0.6")),
]

# A chunk of an evaluation or of generation; the first word of a name says which, see fakecuda_evaluation.PARTS.
CHUNKED = [
    Case("evaluate dcgan64", "dcgan64.yaml", ("eval.extractor=toy",)),
    Case("evaluate sngan-cifar10", "sngan-cifar10.yaml", ("eval.extractor=efficientnet_lite0",)),
    Case("evaluate r3gan-cifar10", "r3gan-cifar10.yaml", ("eval.extractor=inception",)),
    Case("evaluate-files", "dcgan64.yaml", ("eval.extractor=inception",)),
    Case("generate sngan-cifar10", "sngan-cifar10.yaml"),
    Case("keep-best sngan-cifar10", "sngan-cifar10.yaml"),
    Case("restore restore-small", "restore-small.yaml"),
    Case("metrics", "sngan-cifar10.yaml"),
]


def library() -> Path | str:
    """The library to preload, compiled where there is none for this torch yet; or why there can be none."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if sys.platform != "linux" or compiler is None:
        return "fake CUDA tensors need Linux and a C++ compiler (g++)"
    if torch.backends.cuda.is_built():
        return "fake CUDA tensors are for a CPU build of torch"
    home = Path(torch.__file__).parent
    if not (home / "include" / "ATen").is_dir():
        return "this torch came without its C++ headers"
    key = hashlib.sha256(f"{torch.__version__} {sys.version} {home}".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distgan-tests"
    path = cache / f"fakecuda-{key}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"{path.name}.{os.getpid()}"
        options = ["-std=c++20", "-w", f"-I{home / 'include'}", f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu"]
        options.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
        command = [compiler, "-shared", "-fPIC", str(SOURCE), *options, "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            command = [compiler, *options, "-fsyntax-only", "-x", "c++", "-"]
            if (
                subprocess.run(command, input="#include <ATen/ATen.h>\n", capture_output=True, text=True).returncode
                != 0
            ):
                return f"{compiler} cannot compile torch's own headers"
            raise AssertionError(done.stderr[-3000:])
        part.replace(path)  # another process may have been quicker, with the same
    return path


def run(library: Path, cases: Iterable[Case], timeout: float = 800, worker: str = STEPS) -> dict[str, dict]:
    """What a worker counts of each case, by name; all in one process, since its start is what takes time."""
    variables = {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}
    more = environment(**variables, ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="", PYTHONFAULTHANDLER="1")
    command = [sys.executable, str(WORKERS / worker)]
    text = "".join(json.dumps(asdict(case)) + "\n" for case in cases)
    done = subprocess.run(command, env=more, input=text, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stderr[-5000:]}\nended with {done.returncode}"
    return {found["name"]: found for found in map(json.loads, done.stdout.splitlines())}


def library_or_skip() -> Path:
    """The library to preload; without it the test is skipped with the reason."""
    built = library()
    if isinstance(built, str):
        pytest.skip(built)
    return built


def answer(count: Callable[[Case, Config], dict], faults: Mapping[str, tuple], settings: Sequence[str]) -> None:
    """In the process that `run` starts: count each case of stdin, under its fault, and print what was found.

    Args:
        faults: Arguments of `mock.patch.object`, by the name of a fault; "" for none.
        settings: Come before those of a case.
    """
    for line in sys.stdin:
        case = Case(**json.loads(line))
        try:
            config = load(str(ROOT / "configs" / case.config), [*settings, *case.settings])
            with mock.patch.object(*faults[case.fault]):
                found = count(case, config)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:1000]}
        print(json.dumps({"name": case.name} | found), flush=True)


class Counts(TorchDispatchMode):
    """Counts launches on the device, copies to and from it, waits, and operators that mix devices.

    A launch is a call of ATen's that neither makes a view nor changes shapes alone; one for all weights (`_foreach`,
    fused) is one. It stands for kernels, whose number only a GPU tells. Numbers that are asked for are 0 and False,
    since there are none. A copy to the device is a wait unless it is one that the host does not wait for
    (non_blocking) out of memory that is pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        self.launches, self.copies = 0, 0
        self.waits: Counter[str] = Counter()
        self.mixes: Counter[str] = Counter()
        self.refused: set[str] = set()  # by train.deterministic=strict

    def wait(self, what: str) -> None:
        """Something made the host wait; it is put down under the place in the package that did it."""
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        place = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}" if frame else "torch"
        self.waits[f"{place} {what}"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if is_refused(func, args):
            self.refused.add(name)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_gpu = any(x.device.type == "cuda" for x in given)
        if name == "_local_scalar_dense":
            if on_gpu:
                self.wait("takes a number")
            return {torch.bool: False, torch.int64: 0}.get(args[0].dtype, 0.0)
        if on_gpu and (name in WAITS or (name.startswith("index") and _has_mask(args))):
            self.wait(name)
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        kinds = {x.device.type for x in (*given, *made)}
        if name in ("_to_copy", "copy_") and kinds == {"cpu", "cuda"}:
            self._copy(name, made[0].device.type, args, kwargs)
        elif "cuda" in kinds:
            if any(x.device.type == "cpu" and x.dim() > 0 for x in given):
                self.mixes[name] += 1
            is_view = func.is_view or torch.Tag.inplace_view in func.tags
            if func.namespace == "aten" and not is_view and name not in FREE:
                self.launches += 1
        return out

    def _copy(self, name: str, to: str, args: tuple, kwargs: dict) -> None:
        asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        source = args[1] if name == "copy_" else args[0]
        if to == "cuda" and asynchronous and getattr(source, "is_said_to_be_pinned", False):
            self.copies += 1
        else:
            self.wait("copies to the device" if to == "cuda" else "copies to the host")


def _has_mask(args: tuple) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else []
    return any(isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in indices)


def main() -> None:
    built = library()
    if isinstance(built, str):
        sys.exit(built)
    found = run(built, [*QUICK, *SLOW], timeout=3600)
    lines = [f'  "{name}": [{one["D"]}, {one["G"]}]' for name, one in found.items()]
    chunks = run(built, CHUNKED, worker=EVALUATION)
    lines += [f'  "{name}": [{one["launches"]}]' for name, one in chunks.items()]
    BUDGET.write_text("{\n" + ",\n".join([f'  "torch": "{torch.__version__}"', *lines]) + "\n}\n")


if __name__ == "__main__":
    main()
