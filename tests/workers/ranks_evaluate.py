"""One rank of test_evaluate: a small generator is measured against shards.

Usage: ranks_evaluate.py SHARDS CACHE OUT NUM; under RANK and WORLD_SIZE where there are several.
"""

import json
import sys
from pathlib import Path

import torch

from distgan.data.dataset import Dataset, DatasetOptions, RankInfo
from distgan.data.decode import DecodeOptions
from distgan.data.shard_urls import find_shards
from distgan.distributed.process_group import World
from distgan.evaluation.image_sets import GeneratedImages, ShardImages, draw_labels
from distgan.evaluation.measure import measure, measure_reference
from distgan.image_spec import square
from distgan.metrics.extractors import open_extractor
from distgan.models import MODELS
from distgan.storage.byte_ranges import ByteRangeReader

shards, cache, out, num = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
world = World()
dataset = Dataset(
    find_shards(shards),
    ByteRangeReader(),
    DatasetOptions(labels=True),
    RankInfo(world.rank, world.size, world.all_gather_object),
)
torch.manual_seed(0)
G = MODELS["dcgan"].generator(square(16), 8, 10, base_channels=4, max_channels=16, norm="none", embed_dim=4)
extractor = open_extractor("toy")
reads: list[int] = []
polls = 0


class Counted(ShardImages):
    def read(self, numbers):
        reads.extend(numbers.tolist())
        return super().read(numbers)


def check_stop() -> None:
    global polls
    polls += 1


images = Counted(dataset, DecodeOptions(square(16), max_pixels=10**6), threads=1)
real = measure_reference(world, extractor, images, keep=300, check_stop=check_stop, cache=cache)
seen = sorted(number for numbers in world.all_gather_object(reads) for number in numbers)
fakes = GeneratedImages(
    G, 8, square(16), seed=3, num=num, labels=draw_labels("empirical", 3, num, dataset.class_counts)
)
found = measure(world, extractor, real, fakes, ["fd", "kid", "is", "pr", "dc"], check_stop=check_stop)
if world.is_main:
    told = {"values": {name: value for name, (value, _) in found.values.items()}, "polls": polls, "reads": seen}
    told |= {"num": found.extracted.num, "num_real": real.features.gaussian.num, "num_kept": len(real.numbers)}
    told |= {"mean": found.extracted.features.points.double().mean(dim=0).tolist(), "warnings": found.warnings}
    told |= {"labels": found.extracted.features.labels.bincount(minlength=10).tolist()}
    out.write_text(json.dumps(told))
world.close()
