"""Ratios that this project promises, each measured against its reference in one run: A B A B.

Usage: benchmark.py [index] [plan] [loader] [pack] [step] [peer] [start] [frechet] [evaluation]

All of them by default, which takes some ten minutes.

Absolute times are noise on a shared machine; a figure is the median over rounds, with the smallest and largest.
"""

import copy
import io
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import processes
import scipy.linalg
import simplejpeg
import torch
from PIL import Image
from streams import make_stream

from distgan.config.batch_plan import make_batch_plan
from distgan.config.load import load
from distgan.data import shard_index
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.decode import decode
from distgan.data.encode import PackOptions
from distgan.data.image_file import FORMATS
from distgan.data.pack import pack
from distgan.data.resize import fit
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.data.synthetic import jpegs, write_shards
from distgan.image_spec import square
from distgan.metrics import frechet
from distgan.metrics.frechet import Moments
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.tools.bench.bench import ADDED, HOST, bench
from distgan.tools.bench.harness import running_trainer, temporary_run

DCGAN = """
data: {shards: synthetic, resolution: 64, prefetch: 1}
model: {z_dim: 100}
loss: {name: non_saturating}
optim: {G: {betas: [0.5, 0.99]}, D: {betas: [0.5, 0.99]}}
train: {batch: 16}
"""
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


def made_up_shards(folder: Path, num: int, side: int) -> list[str]:
    """Shards of made-up JPEGs; their paths."""
    write_shards(folder, num, square(side))
    return find_shards(str(folder))


def bench_index(folder: Path) -> None:
    write_shards(folder / "shards", 80_000, square(32))
    path = str(folder / "shards" / "000.tar")

    def names() -> None:
        with tarfile.open(path) as archive:
            archive.getmembers()

    pairs = compare(names, lambda: shard_index.build(path, ByteRangeReader()))
    report("index: tarfile.getmembers over ours, 20,000 samples", ratios(pairs), ">= 5")


def bench_plan(folder: Path) -> None:
    for num, wanted in ((1_280_000, "< 50 ms"), (100_000_000, "< 2000 ms")):
        counts = np.full(num // 10_000, 10_000)
        run = lambda counts=counts: ShuffleOrder(counts, ShuffleLayout(256, 64, 64), 0).ids(np.arange(256))  # noqa: E731
        times = [1000 * timed(run) for _ in range(4)][1:]
        report(f"plan and first batch: {num:,} samples", times, wanted, "ms")


def bench_loader(folder: Path) -> None:
    bench_loader_at(folder, 256, 1200, wanted="<= 0.4")
    bench_loader_at(folder, 32, 12_000, wanted="<= 0.2")


def bench_loader_at(folder: Path, side: int, num: int, wanted: str) -> None:
    import webdataset as wds
    from torch.utils.data import DataLoader

    urls = made_up_shards(folder / f"{side}", num, side)
    data = Dataset(urls, ByteRangeReader(), DatasetOptions(labels=True), cache_dir=folder)
    layout = ShuffleLayout.choose(data.num_samples, data.mean_bytes, 64)
    files, buffer = jpegs(num, side, side), np.empty((side, side, 3), np.uint8)

    def ours(threads: int = 1) -> None:
        stream = make_stream(data, ShuffleOrder(data.counts, layout, 0), batch=64, resolution=side, threads=threads)
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
            stream = make_stream(data, ShuffleOrder(data.counts, layout, 0), batch=64, resolution=side, threads=1)
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
        for i, data in enumerate(jpegs(num, side, side)):
            (source / f"{i:05d}.jpg").write_bytes(data)
        whole, parts = packing(source, folder / "out", to), by_hand(source, to)
        report(f"pack, {side} -> {to} px: over decode + resize + encode", ratios(compare(whole, parts, 3)), "<= 1.3")


def packing(source: Path, out: Path, resolution: int) -> Run:
    return lambda: pack(str(source), str(out), PackOptions(resolution=resolution), workers=1, overwrite=True)


def by_hand(source: Path, resolution: int) -> Run:
    """The least that has to be done for each picture."""

    def run() -> None:
        for path in sorted(source.glob("*.jpg")):
            pixels = fit(decode(path.read_bytes()).pixels, square(resolution))
            Image.fromarray(pixels).save(io.BytesIO(), FORMATS["png"][0], **FORMATS["png"][1])

    return run


def bench_step(folder: Path, rounds: int = 5) -> None:
    """The trainer itself, by `distgan bench`."""
    config = folder / "dcgan.yaml"
    config.write_text(DCGAN)
    rows = bench(load(str(config), [f"run.dir={folder / 'run'}"]), images=rounds * 32, against=["bare"], rounds=rounds)
    found = {row.name: row.figures for row in rows}
    ratio = found["over a bare loop, CPU time of all threads"]
    report("step: DCGAN-64, batch 16, CPU time over a bare loop", ratio, "<= 1.02")
    ours, added = (found[name] for name in (HOST, ADDED))
    report("step: a null model, host time added to an iteration", added, "<= 0.3 ms", "ms")
    report("step: the bare loop's own host time for an iteration", [a - b for a, b in zip(ours, added)], "-", "ms")


def bench_peer(folder: Path, rounds: int = 50) -> None:
    """The loop that PyTorch's DCGAN example teaches, on the networks of the same paper, its data on disk as JPEGs."""
    config = folder / "dcgan.yaml"
    config.write_text(DCGAN)
    more = ["model.G.norm=batch", "model.D.norm=batch", f"run.dir={folder / 'run'}"]
    for i, data in enumerate(jpegs(400, 64, 64)):
        (folder / f"{i:05d}.jpg").write_bytes(data)
    with temporary_run(load(str(config), more)) as (settings, world):
        batch_plan = make_batch_plan(settings, world.size)
        with running_trainer(settings, world, batch_plan) as trainer:
            example = dcgan_example(
                trainer.learner.G, trainer.learner.D, sorted(folder.glob("*.jpg")), batch_plan.batch
            )
            pairs = compare(trainer.train_iteration, lambda: next(example), rounds, clock=time.perf_counter)
    report("peer: images a second over those of the PyTorch DCGAN example", [b / a for a, b in pairs], ">= 1.0")


# torch wants _dynamo for an optimizer
IMPORTS = "import torch, torch._dynamo, accelerate, webdataset, distgan.training.trainer"
FIRST_STEP = """
import sys
from distgan.tools.bench.harness import running_trainer, temporary_run
from distgan.config.load import load
from distgan.config.batch_plan import make_batch_plan
with temporary_run(load(sys.argv[1])) as (config, world), \
        running_trainer(config, world, make_batch_plan(config, 1)) as trainer:
    trainer.train_iteration()
"""
SINCE_START = "import psutil, time; print(time.time() - psutil.Process().create_time())"


def bench_start(folder: Path, rounds: int = 5) -> None:
    """From the start of the process to the end of the first step, on 1,000 shards whose indexes are there."""
    write_shards(folder / "few", 64, square(64))
    (folder / "many").mkdir()
    for i in range(1000):
        shutil.copy(folder / "few" / f"{i % 4:03d}.tar", folder / "many" / f"{i:04d}.tar")
    config = folder / "start.yaml"
    config.write_text(DCGAN.replace("synthetic", str(folder / "many")))
    own = os.environ | {"DISTGAN_CACHE": str(folder / "cache"), "ACCELERATE_USE_CPU": "true"}

    def seconds(code: str) -> float:
        command = [sys.executable, "-c", f"{code}\n{SINCE_START}", str(config)]
        return float(subprocess.run(command, env=own, check=True, capture_output=True, text=True).stdout.split()[-1])

    seconds(FIRST_STEP)  # makes the indexes
    pairs = [(seconds(FIRST_STEP), seconds(IMPORTS)) for _ in range(rounds)]
    report("start: to the first step on 1,000 shards, less the imports", [a - b for a, b in pairs], "<= 2 s", "s")
    report("start: the imports", [b for _, b in pairs], "-", "s")


def bench_frechet(folder: Path) -> None:
    """At the size of Inception's features, next to scipy's root of the product, as other tools take it."""
    drawn = np.random.default_rng(0)
    real, fake = (Moments.of(torch.from_numpy(drawn.normal(size=(3000, 2048)))).gaussian() for _ in range(2))
    root = frechet.root(real.cov)
    pairs = compare(
        lambda: frechet.distance(real, fake, root),
        lambda: scipy.linalg.sqrtm(real.cov.numpy() @ fake.cov.numpy()),
        rounds=2,
    )
    report("Fréchet distance, 2,048 features, over scipy's sqrtm", ratios(pairs), "<= 0.4")


EVALUATE = """
import sys, torch
from distgan.evaluation.measure import measure
from distgan.evaluation.image_sets import GeneratedImages
from distgan.metrics.extractors import open_extractor
from distgan.metrics.frechet import Gaussian
from distgan.metrics.reference_stats import Reference
from distgan.metrics.registry import Features
from distgan.models import MODELS
from distgan.distributed.process_group import World
from distgan.image_spec import square
world, extractor = World(), open_extractor("efficientnet_lite0")
torch.manual_seed(0)
G = MODELS["dcgan"].generator(square(64), 100, 0, base_channels=64, max_channels=512, norm="none", embed_dim=0)
one = torch.eye(extractor.dim, dtype=torch.float64)
known = Features(Gaussian(10_000, torch.zeros(extractor.dim, dtype=torch.float64), one), torch.empty(0), root=one)
fakes = GeneratedImages(G, 100, square(64), seed=0, num=int(sys.argv[1]), labels=None)
found = measure(world, extractor, Reference(known), fakes, ["fd"], poll=lambda: None)
print(found.seconds)
world.close()
"""


def bench_evaluation(folder: Path, num: int = 512, rounds: int = 3) -> None:
    """A DCGAN-64 generator by the offline extractor: drawn, seen and compared, on one rank and on two."""

    def seconds(world: int, log: Path) -> float:
        codes = processes.run_ranks(world, ["-c", EVALUATE, str(num)], log, timeout=600)
        assert codes == [0] * world, processes.output(log, world)
        return float(Path(f"{log}.0").read_text().split()[-1])

    pairs = []
    for number in range(rounds):
        pairs.append((seconds(1, folder / f"one-{number}"), seconds(2, folder / f"two-{number}")))
    report(f"evaluation of {num} images: one rank's time over two ranks'", ratios(pairs), ">= 1.7")
    report("evaluation: images a second and rank", [num / one for one, _ in pairs], "-", "")


class Pictures(torch.utils.data.Dataset):
    """Files as floats in -1..1, by Pillow, as the example's ImageFolder and transforms give them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(Image.open(self.paths[i]).convert("RGB")))
        return pixels.permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def dcgan_example(G: torch.nn.Module, D: torch.nn.Module, paths: list[Path], batch: int) -> Iterator[None]:
    """One iteration after another: D on real images, D on fakes, then G through D, whose gradients are made too."""
    G, D = copy.deepcopy(G), copy.deepcopy(D)
    opt_d, opt_g = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (D, G))
    loss, ones, zeros = torch.nn.BCELoss(), torch.ones(batch), torch.zeros(batch)
    loader = torch.utils.data.DataLoader(Pictures(paths), batch_size=batch, shuffle=True, drop_last=True)
    while True:
        for real in loader:
            D.zero_grad()
            on_real = loss(D(real).sigmoid(), ones)
            on_real.backward()
            fake = G(torch.randn(batch, 100))
            on_fake = loss(D(fake.detach()).sigmoid(), zeros)
            on_fake.backward()
            opt_d.step()
            G.zero_grad()
            for_g = loss(D(fake).sigmoid(), ones)
            for_g.backward()
            opt_g.step()
            (on_real + on_fake).item(), for_g.item()  # it prints them in each iteration
            yield


BENCHMARKS = {
    "index": bench_index,
    "plan": bench_plan,
    "loader": bench_loader,
    "pack": bench_pack,
    "step": bench_step,
    "peer": bench_peer,
    "start": bench_start,
    "frechet": bench_frechet,
    "evaluation": bench_evaluation,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or BENCHMARKS:
        with tempfile.TemporaryDirectory() as folder:
            BENCHMARKS[name](Path(folder))
