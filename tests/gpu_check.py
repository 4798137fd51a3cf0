"""Check on one GPU what no CPU shows, cheap and decisive things first, within a limit of time.

    python tests/gpu_check.py OUT [--minutes 9] [--only NAME ...]

Each check is a process of its own, so that one which breaks the GPU's state leaves the others alone. It adds a line of
JSON to OUT/gpu_check.jsonl: {"check", "state", "seconds"} and its figures; "state" is "passed", "failed", "measured"
(figures that nothing is held against) or "skipped" for want of time. OUT/performance.md gets the figures as a table.
Exits with 1 where a check failed. With ACCELERATE_USE_CPU=true it tries itself on a CPU, with smaller networks.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distgan.config.batch_plan import make_batch_plan
from distgan.config.load import load
from distgan.distributed.device_copy import DeviceCopy
from distgan.distributed.process_group import World
from distgan.metrics.extractors import EXTRACTORS, Extractor
from distgan.metrics.extractors.inception import Inception
from distgan.tools.bench.harness import running_trainer, temporary_run
from distgan.training.factory import build_nets, step_options
from distgan.training.gan_step import GanStep
from distgan.training.optimizers import build_optimizer
from distgan.training.step_inputs import StepBatch, StepHyperparams
from distgan.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
PACKAGE = str(ROOT / "distgan") + os.sep
# Without asking for a GPU: that starts CUDA, and then no check could, which are forks of this process.
ON_CPU = os.environ.get("ACCELERATE_USE_CPU") == "true" or not torch.backends.cuda.is_built()
FAMILIES = {  # a config of each family, and its settings that fit a GPU; those that a CPU runs in seconds
    "dcgan64": "digits32",
    "sngan-cifar10": "sngan-cifar10-small",
    "r3gan-cifar10": "r3gan-cifar10-small",
    "r3gan-ffhq64": "r3gan-cifar10-small",
    "hourglass128": "hourglass128-small",
    "restore128": "restore-small",
}
IN_FP32 = ("train.precision=fp32", "train.penalty_precision=fp32")
ADA = ("augment.pipe=ada", "augment.target=0.6")
VARIANTS = [  # config, settings, seconds that it takes
    ("dcgan64", ADA, 15),
    ("r3gan-ffhq64", ("loss.r1=0", "loss.r2=0"), 15),
    *(("r3gan-ffhq64", (f"train.penalty_precision={kind}",), 25) for kind in ("fp32", "tf32")),
    ("r3gan-ffhq64", IN_FP32, 25),
    *((name, ("train.compile=g",), 60) for name in ("dcgan64", "r3gan-ffhq64")),
    ("dcgan64", ("train.compile=all",), 60),
    ("dcgan64", ("train.compile=all", "train.cuda_graphs=true"), 60),
    ("dcgan64", ("train.compile=all", "train.tf32=true"), 60),
]


class Failed(Exception):
    """A check found what must not be; the message says what."""


def require(is_so: bool, message: str) -> None:
    if not is_so:
        raise Failed(message)


# A run to look into.


def config_of(name: str, *settings: str):
    """Load a shipped config for made-up images, at a tenth of its batch on a CPU."""
    name = FAMILIES.get(name, name) if ON_CPU else name
    small = ["train.batch=8", "train.micro_batch=0", "data.decode_threads=1"] if ON_CPU else []
    fixed = ["data.shards=synthetic", "data.holdout=0"]
    return load(str(ROOT / "configs" / f"{name}.yaml"), [*fixed, *small, *settings])


@contextlib.contextmanager
def trainer_of(name: str, *settings: str) -> Iterator[Trainer]:
    with contextlib.ExitStack() as stack:
        config, world = stack.enter_context(temporary_run(config_of(name, *settings)))
        yield stack.enter_context(running_trainer(config, world, make_batch_plan(config, world.size)))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# What must hold.


def environment() -> dict:
    """Name the machine, and measure the peak of its matrix products, which "of peak" refers to."""
    facts: dict = {"torch": torch.__version__, "device": "cpu"}
    if ON_CPU:
        return facts
    properties = torch.cuda.get_device_properties(0)
    facts |= {"device": properties.name, "memory_gb": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    facts |= {"capability": list(torch.cuda.get_device_capability()), "cudnn": torch.backends.cudnn.version()}
    return facts | {f"peak_tflops_{kind}": peak(kind) for kind in ("fp32", "tf32", "bf16")}


def peak(kind: str, size: int = 8192, times: int = 20) -> float:
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
    for number in range(times + 3):
        if number == 3:
            torch.cuda.synchronize()
            started = time.perf_counter()
        a @ a
    torch.cuda.synchronize()
    return 2 * size**3 * times / (time.perf_counter() - started) / 1e12


def bad_first_step() -> dict:
    """A first step that is not finite changes nothing, and the second is as if it were the first, by any optimizer."""
    worst = {}
    for name in ("adam", "adamw", "sgd", "rmsprop"):
        with trainer_of("digits32", "train.on_nan=skip", f"optim.D.name={name}", "optim.D.betas=[0.5,0.9]") as trainer:
            learner = trainer.learner
            batch, fine = trainer.next_batch(), learner.schedulers.step_hyperparams(0)
            before = [weight.clone() for weight in learner.D.parameters()]
            learner.step.d_step(batch, learner.opt_D, replace(fine, r1=float("inf")))
            same = all(map(torch.equal, before, learner.D.parameters()))
            require(same, f"{name}: a step that is not finite changed weights")
            learner.step.d_step(batch, learner.opt_D, fine)
            after = [weight.clone() for weight in learner.D.parameters()]
            fresh = build_optimizer(trainer.config.optim.D, learner.D)
            for weight, old in zip(learner.D.parameters(), before):
                weight.data.copy_(old)
            learner.step.d_step(batch, fresh, fine)
            second, first = (change(before, weights) for weights in (after, learner.D.parameters()))
            worst[name] = relative(second, first)
            require(worst[name] < 1e-2, f"{name}: the step after a skipped one is another one: {worst[name]:.2g}")
    return worst


def change(before: Iterable[Tensor], after: Iterable[Tensor]) -> Tensor:
    return torch.cat([(b - a).detach().flatten() for a, b in zip(before, after)])


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def waits() -> dict:
    """The host waits for the device nowhere in an iteration, as CUDA itself sees it."""
    if ON_CPU:
        return {"note": "a CPU has nothing to wait for"}
    found: dict[str, dict[str, int]] = {}
    for name in (*FAMILIES, "digits32"):
        with trainer_of(name) as trainer:
            trainer._tick = lambda measured: None
            for _ in range(3):
                trainer.train_iteration()
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                for _ in range(3):
                    trainer.train_iteration()
                torch.cuda.set_sync_debug_mode("default")
        places = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]
        found[name] = dict(Counter(places))
    require(not any(found.values()), f"the host waits: {found}")
    return found


def float64_agrees() -> dict:
    """One step of D and of G of each family in float64 is the CPU's."""
    worst: dict[str, float] = {}
    for name in FAMILIES:
        config = config_of(name, *IN_FP32)
        if config.model.family == "restore":
            continue
        changes = [change_in_float64(config, torch.device(kind)) for kind in ("cpu", "cpu" if ON_CPU else "cuda")]
        worst[name] = max(relative(b, a) for a, b in zip(*changes))
        require(worst[name] < 1e-9, f"{name}: a step differs by {worst[name]:.2g}")
    return worst


def change_in_float64(config, device: torch.device, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Return how a step of D and one of G change their weights, on the CPU."""
    torch.manual_seed(0)
    num_classes = config.data.classes or (10 if config.model.conditional else 0)
    G, D = (net.double() for net in build_nets(config, num_classes))
    world = World()
    world.device = device
    options = replace(step_options(config, make_batch_plan(config, 1)), dtype=torch.float64, accumulation_steps=1)
    step = GanStep(world, G.to(device), D.to(device), options)
    random = np.random.default_rng(0)
    side = config.data.resolution
    arrays = [
        random.integers(0, 256, (batch, side, side, 3), np.uint8),
        random.integers(0, max(1, num_classes), batch),
        *(random.normal(size=(batch, config.model.z_dim)) for _ in "DG"),
        random.integers(0, 2**62, batch),
    ]
    images, labels, z_d, z_g, seeds = (torch.from_numpy(array).to(device) for array in arrays)
    inputs = StepBatch(images, labels if num_classes else None, z_d, z_g, seeds)
    changes = []
    for net, run in ((D, step.d_step), (G, step.g_step)):
        before = [weight.detach().clone() for weight in net.parameters()]
        run(inputs, torch.optim.SGD(net.parameters(), lr=1.0), StepHyperparams(r1=0.1, r2=0.1))
        changes.append(change(before, net.parameters()).cpu())
    return changes[0], changes[1]


def copies_under_load() -> dict:
    """Batches arrive whole on a device that is far behind the host."""
    device = torch.device("cpu" if ON_CPU else "cuda")
    copy, size = DeviceCopy(device), 64 if ON_CPU else 8192
    busy = torch.randn(size, size, device=device)
    pinned = [torch.empty(64, 64, 64, 3, dtype=torch.uint8, pin_memory=not ON_CPU).numpy() for _ in range(2)]
    sums: list[Tensor] = []
    for number in range(40):
        copy.wait()
        images, latents = pinned[number % 2], np.full((64, 512), number, np.float32)
        images[:] = number
        (there,), (small,) = copy([images], [latents])
        for _ in range(3):
            busy = busy @ busy * 1e-3
        sums.append(torch.stack([there.double().mean(), small.double().mean()]))
    wrong = [number for number, means in enumerate(torch.stack(sums).tolist()) if means != [number, number]]
    require(not wrong, f"batches {wrong} were overwritten before they were read")
    return {"batches": len(sums)}


def ddp_of_one_rank() -> dict:
    """DDP with one rank changes no gradient."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ.update(meeting, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    config = config_of("digits32")
    world, changes = World(), []
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
    for size in (1, 2):
        torch.manual_seed(0)
        G, D = build_nets(config, 10)
        world.size = size  # while the losses are wrapped
        step = GanStep(world, G, D, step_options(config, make_batch_plan(config, 1)))
        world.size = 1
        torch.manual_seed(1)
        images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8).to(world.device)
        z = torch.randn(8, config.model.z_dim).to(world.device)
        batch = StepBatch(images, torch.arange(8, device=world.device), z, z, torch.arange(8, device=world.device))
        before = [weight.detach().clone() for weight in D.parameters()]
        step.d_step(batch, torch.optim.SGD(D.parameters(), lr=1.0), StepHyperparams(r1=0.1))
        changes.append(change(before, D.parameters()))
    difference = relative(changes[1], changes[0])
    require(difference < 1e-5, f"DDP changes the step by {difference:.2g}")
    world.close()
    return {"backend": backend, "difference": difference}


def cuda_graphs() -> dict:
    """Steps that are replayed as CUDA graphs are those that are not."""
    weights = []
    for settings in ((), ("train.compile=g",), ("train.compile=g", "train.cuda_graphs=true")):
        with trainer_of("digits32", "train.batch=32", *settings) as trainer:
            before = [weight.detach().clone() for weight in trainer.learner.D.parameters()]
            for _ in range(6):
                trainer.train_iteration()
            weights.append(change(before, trainer.learner.D.parameters()))
    compiled, replayed = (relative(one, weights[0]) for one in weights[1:])
    require(replayed < max(0.05, 3 * compiled), f"after six iterations: {replayed:.2g}, without graphs {compiled:.2g}")
    return {"compiled": compiled, "replayed": replayed}


def strict() -> dict:
    """Nothing that a run does is refused by train.deterministic=strict."""
    names = list(FAMILIES)
    for name in names:
        with trainer_of(name, "train.deterministic=strict") as trainer:
            for _ in range(2):
                trainer.train_iteration()
            wait(trainer.world.device)
    return {"configs": names}


def gpu_tests() -> dict:
    """`pytest -m gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    require(done.returncode in (0, 5), f"{last}\n{done.stdout[-2000:]}")
    return {"summary": last}


# What is measured.


def speed(name: str, *settings: str, seconds: float = 3.0) -> dict:
    """Measure iterations of a config: wall time, the host's time, kernels, arithmetic and memory."""
    with trainer_of(name, *settings) as trainer:
        trainer._tick = lambda measured: None
        device, images = trainer.world.device, trainer.batch_plan.batch * trainer.config.train.n_critic
        for _ in range(2 if ON_CPU else 8):  # cuDNN tries its kernels, a compiler compiles
            trainer.train_iteration()
        with FlopCounterMode(display=False) as counted:
            if trainer.config.train.compile == "off":  # a compiled graph is opaque to the counter
                trainer.train_iteration()
        wait(device)
        num, started, host = 0, time.perf_counter(), time.thread_time()
        while time.perf_counter() - started < (0.1 if ON_CPU else seconds):
            trainer.train_iteration()
            num += 1
        host = time.thread_time() - host
        wait(device)
        wall = (time.perf_counter() - started) / num
        found = {"img_per_sec": images / wall, "ms": 1000 * wall, "host_ms": 1000 * host / num}
        if flops := counted.get_total_flops():
            found |= {"gflop_per_image": flops / images / 1e9, "tflops": flops / wall / 1e12}
        if device.type == "cuda":
            found |= {"memory_gb": torch.cuda.max_memory_allocated() / 2**30} | kernels(trainer, wall)
    return found


def kernels(trainer: Trainer, wall: float) -> dict:
    """Count the kernels of an iteration, and the share of its time in which the GPU runs one."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        trainer.train_iteration()
        torch.cuda.synchronize()
    durations = [event.device_time for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(durations), "busy_pct": min(100.0, 100 * sum(durations) / 1e6 / wall)}


def features() -> dict:
    """Measure the features of an evaluation, by Inception with random weights, with its weights in two layouts."""
    device, found = torch.device("cpu" if ON_CPU else "cuda"), {}
    pixels = torch.randint(0, 256, (1 if ON_CPU else 256, 3, 64, 64), dtype=torch.uint8)
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        net = Inception().to(memory_format=layout)
        extractor = Extractor("inception", EXTRACTORS["inception"], net, 64 * "0", "tf1_bilinear", device)
        extractor(pixels)
        wait(device)
        started = time.perf_counter()
        for _ in range(1 if ON_CPU else 10):
            extractor(pixels)
        wait(device)
        found[f"{name}_img_per_sec"] = len(pixels) * (1 if ON_CPU else 10) / (time.perf_counter() - started)
    return found


def over_bare(name: str) -> dict:
    """Compare a run with the shortest loop that makes the same updates."""
    from distgan.tools.bench.bench import bench

    rows = bench(config_of(name, "loss.label_smoothing=0"), 64 if ON_CPU else 0, ["bare"], rounds=2)
    return {row.name: row.median for row in rows if "bare" in row.name or row.name == "images per second"}


# The order, and the limit of time.


@dataclass(frozen=True)
class Check:
    """One line of the report; `seconds` is what it is expected to take."""

    name: str
    run: Callable[[], dict]
    seconds: float
    must_hold: bool = True


def speed_of(name: str, settings: tuple[str, ...], seconds: float) -> Check:
    run = functools.partial(speed, name, *settings)
    return Check(" ".join(("speed", name, *settings)), run, seconds, must_hold=False)


CHECKS = [
    Check("environment", environment, 8, must_hold=False),
    Check("bad first step", bad_first_step, 15),
    Check("waits", waits, 40),
    Check("float64", float64_agrees, 40),
    Check("copies under load", copies_under_load, 10),
    Check("ddp of one rank", ddp_of_one_rank, 12),
    Check("deterministic=strict", strict, 40),
    *(speed_of(name, (), 20) for name in FAMILIES),
    Check("pytest -m gpu", gpu_tests, 120),
    Check("features", features, 20, must_hold=False),
    Check("over a bare loop dcgan64", functools.partial(over_bare, "dcgan64"), 40, must_hold=False),
    *(speed_of(*one) for one in VARIANTS[:5]),
    Check("cuda graphs", cuda_graphs, 90),
    *(speed_of(*one) for one in VARIANTS[5:]),
]


def in_own_process(check: Check, limit: float) -> dict:
    """Run a check in a process that has imported everything, but has not started CUDA."""
    ours, theirs = multiprocessing.Pipe()
    started = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_answer, args=(check, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(limit) else {"state": "failed", "why": f"not done after {limit:.0f} s"}
    except EOFError:
        found = {"state": "failed", "why": "its process died"}
    if "not done" in found.get("why", ""):
        process.kill()
    process.join(10)
    process.kill()
    return {"check": check.name, **found, "seconds": round(time.monotonic() - started, 1)}


def _answer(check: Check, pipe: Connection) -> None:
    try:
        pipe.send({"state": "passed" if check.must_hold else "measured", **check.run()})
    except Failed as failed:
        pipe.send({"state": "failed", "why": str(failed)})
    except Exception:
        pipe.send({"state": "failed", "why": traceback.format_exc()[-2000:]})


def table(found: list[dict]) -> str:
    """Return the figures of speed as a table in Markdown."""
    facts = next((one for one in found if one["check"] == "environment"), {})
    head = ("config", "img/s", "ms", "host ms", "kernels", "GPU busy", "GFLOP/img", "TFLOP/s", "of peak", "memory, GB")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in found:
        if not one["check"].startswith("speed ") or "img_per_sec" not in one:
            continue
        _, name, *settings = one["check"].split(" ")
        kind = config_of(name, *settings).train.precision
        most = facts.get(f"peak_tflops_{'tf32' if 'train.tf32=true' in settings else kind}")
        share = f"{one['tflops'] / most:.0%}" if most and "tflops" in one else ""
        cells = [f"`{' '.join((name, *settings))}`", f"{one['img_per_sec']:,.0f}"]
        cells += [f"{one['ms']:.1f}", f"{one['host_ms']:.1f}"]
        cells += [f"{one[key]:{form}}" if key in one else "" for key, form in (("kernels", ",d"), ("busy_pct", ".0f"))]
        cells += [f"{one[key]:.1f}" if key in one else "" for key in ("gflop_per_image", "tflops")]
        cells += [share, f"{one['memory_gb']:.1f}" if "memory_gb" in one else ""]
        lines.append("| " + " | ".join(cells) + " |")
    name = facts.get("device", "?")
    return f"{name}, torch {facts.get('torch')}; `python tests/gpu_check.py OUT`\n\n" + "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="*", default=[], help="checks whose names begin so")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + 60 * options.minutes, []
    for check in CHECKS:
        if options.only and not check.name.startswith(tuple(options.only)):
            continue
        left = end - time.monotonic()
        if left < check.seconds:
            why = f"{left:.0f} s are left, and it takes {check.seconds:.0f}"
            one = {"check": check.name, "state": "skipped", "why": why}
        else:
            one = in_own_process(check, left)
        found.append(one)
        print(json.dumps(one), flush=True)
        with open(options.out / "gpu_check.jsonl", "a") as file:
            file.write(json.dumps(one) + "\n")
    (options.out / "performance.md").write_text(table(found))
    return int(any(one["state"] == "failed" for one in found))


if __name__ == "__main__":
    sys.exit(main())
