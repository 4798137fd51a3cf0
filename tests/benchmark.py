"""Ratios that this project promises, each measured against its reference in one run: A B A B.

Usage: benchmark.py [index] [plan] [loader] [pack] [step]      (all of them by default; a few minutes)

Absolute times are noise on a shared machine; a figure is the median over rounds, with the smallest and largest.
"""

import copy
import io
import itertools
import multiprocessing
import os
import queue
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn.functional import softplus

from distgan import ema
from distgan.data import index, tar
from distgan.data.dataset import Dataset, find_shards
from distgan.data.image import decode, fit
from distgan.data.pack import SAVE, Options, pack
from distgan.data.plan import Layout, Plan
from distgan.data.source import Source
from distgan.data.stream import Stream
from distgan.models import MODELS
from distgan.step import DeviceBatch, GanStep, Noise, Strengths
from distgan.world import World

Run = Callable[[], object]


def timed(function: Run, clock: Callable[[], float] = time.process_time) -> float:
    """Process time of one call, its threads included; or what another clock says."""
    started = clock()
    function()
    return clock() - started


def compare(
    ours: Run, reference: Run, rounds: int = 5, clock: Callable[[], float] = time.process_time
) -> list[tuple[float, float]]:
    """Times of both, taken in turns, each as often first; the first round warms up and is left out."""
    pairs = []
    for number in range(rounds + 1):
        if number % 2:
            pairs.append((timed(ours, clock), timed(reference, clock)))
        else:
            pairs.append((timed(reference, clock), timed(ours, clock))[::-1])
    return pairs[1:]


def ratios(pairs: list[tuple[float, float]]) -> list[float]:
    return [a / b for a, b in pairs]


def report(name: str, figures: list[float], wanted: str, unit: str = "x") -> None:
    middle, low, high = statistics.median(figures), min(figures), max(figures)
    print(f"{name:66s} {middle:8.3f} {unit:3s} [{low:.3f} .. {high:.3f}]   wanted {wanted}", flush=True)


def jpegs(num: int, side: int) -> list[bytes]:
    """Random walks in colour with some noise, about as compressible as photographs; 200 different ones."""
    rng, found = np.random.default_rng(0), []
    for _ in range(min(num, 200)):
        walk = rng.normal(size=(side, side, 3)).cumsum(0).cumsum(1)
        walk -= walk.min((0, 1))
        noisy = 230 * walk / walk.max((0, 1)) + rng.normal(scale=6, size=walk.shape)
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return list(itertools.islice(itertools.cycle(found), num))


def write_shards(folder: Path, num: int, side: int, shards: int = 4) -> list[str]:
    """Shards of JPEGs with labels; their paths."""
    folder.mkdir()
    files = jpegs(num, side)
    for shard in range(shards):
        with open(folder / f"{shard:03d}.tar", "wb") as file:
            for i, data in enumerate(files[shard::shards]):
                for suffix, part in (("cls", b"%d" % (i % 10)), ("jpg", data)):
                    file.write(tar.header(f"{shard:03d}{i:06d}.{suffix}", len(part)))
                    file.write(part + b"\0" * (-len(part) % tar.BLOCK))
            file.write(tar.END)
    return find_shards(str(folder))


def bench_index(folder: Path) -> None:
    (path,) = write_shards(folder / "shards", 20_000, 32, shards=1)

    def names() -> None:
        with tarfile.open(path) as archive:
            archive.getmembers()

    pairs = compare(names, lambda: index.build(path, Source()))
    report("index: tarfile.getmembers over ours, 20,000 samples", ratios(pairs), ">= 5")


def bench_plan(folder: Path) -> None:
    for num, wanted in ((1_280_000, "< 50 ms"), (100_000_000, "< 2000 ms")):
        counts = np.full(num // 10_000, 10_000)
        run = lambda counts=counts: Plan(counts, Layout(256, 64, 64), 0).ids(np.arange(256))  # noqa: E731
        times = [1000 * timed(run) for _ in range(4)][1:]
        report(f"plan and first batch: {num:,} samples", times, wanted, "ms")


def bench_loader(folder: Path) -> None:
    bench_loader_at(folder, 256, 1200, wanted="<= 0.4")
    bench_loader_at(folder, 32, 12_000, wanted="<= 0.2")


def bench_loader_at(folder: Path, side: int, num: int, wanted: str) -> None:
    import webdataset as wds
    from torch.utils.data import DataLoader

    urls = write_shards(folder / f"{side}", num, side)
    data = Dataset(urls, Source(), labels=True, cache_dir=folder)
    layout = Layout.choose(data.num_samples, data.mean_bytes, 64)
    files, buffer = jpegs(num, side), np.empty((side, side, 3), np.uint8)

    def ours(threads: int = 1) -> None:
        stream = Stream(data, Plan(data.counts, layout, 0), batch=64, resolution=side, threads=threads)
        for _ in range(num // 64):
            next(stream)
        stream.close()

    def naive() -> None:
        samples = wds.WebDataset(urls, shardshuffle=False).shuffle(1000).decode("torchrgb").to_tuple("jpg", "cls")
        for _ in DataLoader(samples, batch_size=64, num_workers=0):
            pass

    def pure() -> None:
        for file in files:
            simplejpeg.decode_jpeg(file, "RGB", buffer=buffer)

    def by_process() -> None:
        """The alternative: a worker process that makes the batches and hands them over as shared tensors."""
        batches = torch.multiprocessing.get_context("fork").Queue(4)

        def work() -> None:
            stream = Stream(data, Plan(data.counts, layout, 0), batch=64, resolution=side, threads=1)
            for _ in range(num // 64):
                batches.put(torch.from_numpy(next(stream).images.copy()))
            batches.put(None)
            time.sleep(5)  # a shared tensor dies with its maker

        worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        worker.start()
        while batches.get() is not None:
            pass
        worker.kill()
        worker.join()

    wall = time.perf_counter
    report(f"loader, {side} px: CPU time over WebDataset + DataLoader", ratios(compare(ours, naive, 3)), wanted)
    report(f"loader, {side} px: pure decoding over all of its CPU time", ratios(compare(pure, ours)), "-")
    two = compare(lambda: ours(2), ours, clock=wall)
    report(f"loader, {side} px: two threads over one, wall time", ratios(two), "< 1 at 256")
    report(
        f"loader, {side} px: a process over a thread, wall time", ratios(compare(by_process, ours, clock=wall)), "> 1"
    )


def bench_pack(folder: Path) -> None:
    for side, to, num in ((32, 32, 4000), (512, 256, 60)):
        source = folder / f"{side}"
        source.mkdir()
        for i, data in enumerate(jpegs(num, side)):
            (source / f"{i:05d}.jpg").write_bytes(data)
        whole, parts = packing(source, folder / "out", to), by_hand(source, to)
        report(f"pack, {side} -> {to} px: over decode + resize + encode", ratios(compare(whole, parts, 3)), "<= 1.3")


def packing(source: Path, out: Path, resolution: int) -> Run:
    return lambda: pack(str(source), str(out), Options(resolution=resolution), workers=1, overwrite=True)


def by_hand(source: Path, resolution: int) -> Run:
    """The least that has to be done for each picture."""

    def run() -> None:
        for path in sorted(source.glob("*.jpg")):
            pixels = fit(decode(path.read_bytes()).pixels, resolution)
            Image.fromarray(pixels).save(io.BytesIO(), **SAVE["png"])

    return run


class NullG(torch.nn.Module):
    """One weight; an image is its latent."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, z: torch.Tensor, labels: None = None) -> torch.Tensor:
        return (z * self.scale).view(len(z), 3, 8, 8)


class NullD(NullG):
    def forward(self, images: torch.Tensor, labels: None = None) -> torch.Tensor:
        return (images * self.scale).mean((1, 2, 3))


def bench_step(folder: Path, rounds: int = 20) -> None:
    torch.manual_seed(0)
    sizes = {"width": 64, "max_width": 512, "norm": "none"}
    G = MODELS["dcgan"].generator(64, 100, 0, **sizes, embedding=1)
    D = MODELS["dcgan"].discriminator(64, 0, **sizes)
    ours, bare = loops(G, D, z_dim=100, side=64, batch=16, steps=2)
    report("step: DCGAN-64, batch 16, process time over a bare loop", ratios(compare(ours, bare, rounds)), "<= 1.02")
    ours, bare = loops(NullG(), NullD(), z_dim=192, side=8, batch=16, steps=200)
    pairs = compare(ours, bare, rounds // 2, clock=time.thread_time)  # of the thread that a GPU would wait for
    report("step: a null model, host time added to an iteration", [5 * (a - b) for a, b in pairs], "<= 0.3 ms", "ms")
    report("step: the bare loop's own host time for an iteration", [5 * b for _, b in pairs], "-", "ms")


def loops(G: torch.nn.Module, D: torch.nn.Module, *, z_dim: int, side: int, batch: int, steps: int) -> tuple[Run, Run]:
    """The same training twice: with the parts of this package, and written by hand for one device."""
    world, images = World(), torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)

    def nets() -> list:
        g, d = copy.deepcopy(G), copy.deepcopy(D)
        optimizers = [torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.99), fused=True) for net in (g, d)]
        return [g, d, copy.deepcopy(g), *optimizers]

    our_g, our_d, our_average, our_opt_g, our_opt_d = nets()
    step, noise = GanStep(world, our_g, our_d, "nonsaturating"), Noise(0, z_dim)

    def ours() -> None:
        for drawn in ahead(noise(np.arange(i * batch, (i + 1) * batch)) for i in range(steps)):
            given = DeviceBatch(images, None, *map(world.send, drawn))
            step.d_step(given, our_opt_d, Strengths())
            step.g_step(given, our_opt_g, Strengths())
            ema.update(our_average, our_g, 0.999)
        step.meter.flush()

    bare_g, bare_d, bare_average, opt_g, opt_d = nets()
    sums = torch.zeros(2)

    def bare() -> None:
        for _ in range(steps):
            real = images.permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                fake = bare_g(torch.randn(batch, z_dim))
            d_loss = softplus(-bare_d(real)).mean() + softplus(bare_d(fake)).mean()
            d_loss.backward()
            opt_d.step()
            opt_d.zero_grad()
            bare_d.requires_grad_(False)
            g_loss = softplus(-bare_d(bare_g(torch.randn(batch, z_dim)))).mean()
            g_loss.backward()
            bare_d.requires_grad_(True)
            opt_g.step()
            opt_g.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(list(bare_average.parameters()), list(bare_g.parameters()), 0.001)
                sums[0] += d_loss.detach()
                sums[1] += g_loss.detach()

    return ours, bare


def ahead(items: Iterator) -> Iterator:
    """Items made by another thread, as the stream makes its batches."""
    made: queue.SimpleQueue = queue.SimpleQueue()

    def make() -> None:
        for item in items:
            made.put(item)
        made.put(None)

    threading.Thread(target=make, daemon=True).start()
    return iter(made.get, None)


BENCHMARKS = {"index": bench_index, "plan": bench_plan, "loader": bench_loader, "pack": bench_pack, "step": bench_step}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or BENCHMARKS:
        with tempfile.TemporaryDirectory() as folder:
            BENCHMARKS[name](Path(folder))
