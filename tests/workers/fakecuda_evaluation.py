"""Chunks of evaluations and of generation on fake CUDA tensors, in a process that has loaded tests/fakecuda.cpp.

Reads cases (`fakecuda.Case`, of fakecuda.CHUNKED) as lines of JSON; prints what was counted of each, {"name", "error"}
or {"name", "launches", "waits", "mixes", "refused"}, as lines of JSON. They are of one chunk, after others that fill
caches.
"""

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator
from unittest import mock

import fakecuda
import numpy as np
import torch
from fakecuda_steps import DEVICE, Fakes, moved, pinned
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from distgan.config.decode_options import decode_options
from distgan.config.schema import Config, image_spec
from distgan.distributed.process_group import World
from distgan.evaluation import measure
from distgan.evaluation.image_sets import CHUNKS, GeneratedImages, Images, ImageSet
from distgan.evaluation.restoration import RestorationEval
from distgan.inference import generate, sampling
from distgan.inference.request import GenerateOptions, resolve
from distgan.inference.sampling import CHUNK
from distgan.inference.selection import SampleSelection
from distgan.inference.trained_generator import Spec, TrainedGenerator
from distgan.metrics import memorization, per_class
from distgan.metrics.extractors import EXTRACTORS, Extractor, resize
from distgan.metrics.frechet import Gaussian
from distgan.metrics.registry import METRICS, Features
from distgan.training import factory
from distgan.transforms import degrade, degrade_spec
from distgan.transforms.image_values import to_display

NUM_CHUNKS = 4
NUM_CLASSES = 10
Mark = Callable[[], None]  # called between two chunks


def fake_world() -> World:
    world = World()
    world.device = DEVICE
    return world


def build_nets(config: Config) -> tuple[torch.nn.Module, torch.nn.Module]:
    G, D = factory.build_nets(config, 0 if config.restore.degrade else NUM_CLASSES)
    return moved(G, DEVICE), moved(D, DEVICE)


def trained(config: Config) -> TrainedGenerator:
    spec = Spec(config.model.family, config.data.resolution, config.model.z_dim, NUM_CLASSES)
    return TrainedGenerator(build_nets(config)[0], spec, {})


def open_extractor(name: str) -> Extractor:
    """An extractor with random weights, since those of a file are not needed to count."""
    kind = EXTRACTORS[name]
    return Extractor(name, kind, kind.build(), "none", kind.resizer, DEVICE)


class Files:
    """Images that come from the host."""

    reads_files = False
    resolution = 32
    num = NUM_CHUNKS * CHUNKS["cuda"]

    def read(self, numbers: np.ndarray) -> Images:
        return Images(numbers, torch.zeros(len(numbers), 3, 32, 32, dtype=torch.uint8), None)


def evaluate(config: Config, mark: Mark) -> None:
    """The rounds of `extract`, of a generator's images, all of whose features are kept."""
    G, _ = build_nets(config)
    num = NUM_CHUNKS * CHUNKS["cuda"]
    labels = np.arange(num) % NUM_CLASSES
    images = GeneratedImages(G, config.model.z_dim, image_spec(config.data), seed=0, num=num, labels=labels)
    extract(images, config, num, mark)


def evaluate_files(config: Config, mark: Mark) -> None:
    """The rounds of `extract`, of real images, some of whose features are kept."""
    extract(Files(), config, Files.num // 3, mark)


def extract(images: ImageSet, config: Config, keep: int, mark: Mark) -> None:
    with_progress = measure._with_progress

    def marked(rounds: Iterable[Images | None], num: int, world: World) -> Iterator[Images | None]:
        for share in with_progress(rounds, num, world):
            yield share
            mark()

    with mock.patch.object(measure, "_with_progress", marked):
        measure.extract(fake_world(), open_extractor(config.eval.extractor), images, keep)


def write_files(config: Config, mark: Mark) -> None:
    """The chunks of `distgan generate`, up to the pixels on the host."""
    for i, _ in enumerate(
        generate.draw_group(G := trained(config), None, selection(1.0), resolve(GenerateOptions(), G), 0)
    ):
        if (i + 1) % CHUNK == 0:
            mark()


def write_best(config: Config, mark: Mark) -> None:
    """The chunks of `distgan generate --keep-best`, with D's score of each image."""
    D = build_nets(config)[1].eval()

    def score(images: Tensor, labels: Tensor | None) -> Tensor:
        mark()
        return D(images, labels).float()

    G = trained(config)
    list(generate.draw_group(G, score, selection(0.5), resolve(GenerateOptions(), G), 0))


def selection(share: float) -> SampleSelection:
    return SampleSelection(NUM_CHUNKS * CHUNK, NUM_CHUNKS * CHUNK, tuple(range(NUM_CLASSES)), share)


def restore(config: Config, mark: Mark) -> None:
    """The chunks of PSNR and SSIM."""
    size = config.data.resolution
    blank = np.zeros((size, size, 3), np.uint8)
    dataset = types.SimpleNamespace(
        num_samples=0, num_held_out=NUM_CHUNKS * CHUNK, num_classes=0, pairs=False, read=lambda *_, **__: blank
    )
    recipe = degrade_spec.parse(config.restore.degrade, image_spec(config.data))
    evaluation = RestorationEval(dataset, recipe, decode_options(config.data), config.model.z_dim)
    restored = RestorationEval._restored

    def marked(self: RestorationEval, G: torch.nn.Module, numbers: range, first: int) -> Tensor:
        mark()
        return restored(self, G, numbers, first)

    with mock.patch.object(RestorationEval, "_restored", marked):
        evaluation.measure(build_nets(config)[0], fake_world())


def metrics(config: Config, mark: Mark) -> None:
    """All metrics of features that are on the device but those whose shapes depend on values (kid by class)."""
    mark()
    mark()
    gaussian = Gaussian(600, torch.zeros(32), torch.eye(32))
    labels = torch.arange(600, device=DEVICE) % NUM_CLASSES
    side = Features(gaussian, torch.ones(600, 32, device=DEVICE), torch.ones(600, 10, device=DEVICE), labels)
    side.root = gaussian.cov
    for metric in METRICS.values():
        metric.values(side, side, False)  # errors count images, and there are none
    per_class.probe_accuracies(side, side, NUM_CLASSES)
    memorization.nearness(side.points, side.points)
    memorization.nearness(side.points, side.points, side.points)
    mark()


PARTS: dict[str, Callable[[Config, Mark], None]] = {
    "evaluate": evaluate,
    "evaluate-files": evaluate_files,
    "generate": write_files,
    "keep-best": write_best,
    "restore": restore,
    "metrics": metrics,
}


def count(part: str, config: Config) -> dict:
    """What the chunk between the second and the third mark asks of the device."""
    counts = fakecuda.Counts()
    chunks: list[dict] = []

    def mark() -> None:
        chunks.append({"launches": counts.launches, "waits": counts.waits, "mixes": counts.mixes})
        counts.clear()

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "is_available", lambda: True),
            (torch.Tensor, "pin_memory", pinned),
            (torch.Tensor, "numpy", lambda tensor: np.zeros(tuple(tensor.shape), np.uint8)),
            (FakeTensor, "tolist", lambda tensor: np.zeros(tuple(tensor.cpu().shape)).tolist()),
            (torch.nn.Module, "to", lambda net, device=DEVICE, **_: moved(net, device)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(Fakes(allow_non_fake_inputs=True))
        stack.enter_context(counts)
        PARTS[part](config, mark)
    for cached in (resize._tf1_places, resize._bicubic_weights, CACHED_TABLE):
        cached.cache_clear()  # their tensors are of this mode
    return chunks[2] | {"refused": sorted(counts.refused)}


def _through_the_host(images: Tensor, *of: object) -> Tensor:
    return to_display(images, *of).cpu()


def _one_launch_more(images: Tensor, *of: object) -> Tensor:
    return to_display(images * 1, *of)


def _by_a_look(pixels: Tensor) -> Tensor:
    return GRAY(pixels) + int(pixels.sum())


CACHED_TABLE, GRAY = degrade._on_device, measure.count_gray
FAULTS = {
    "": (sampling, "to_display", to_display),
    "pixels through the host": (sampling, "to_display", _through_the_host),
    "one launch more": (sampling, "to_display", _one_launch_more),
    "a number of the device": (measure, "count_gray", _by_a_look),
}


def main() -> None:
    fakecuda.answer(lambda case, config: count(case.name.split()[0], config), FAULTS, ["data.shards=none"])


if __name__ == "__main__":
    main()
