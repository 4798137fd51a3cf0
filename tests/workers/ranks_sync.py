"""One rank of test_sync: what ranks make of their gradients in each way of sending them, and when they send them.

Usage: ranks_sync.py OUT; under RANK and WORLD_SIZE.
"""

import json
import sys
import time

import torch
from safetensors.torch import save_file
from torch import nn

from distgan.distributed.process_group import World

WIDTH, LAYERS, SEEN = 512, 8, 24  # a megabyte of weights to each layer: with buckets of 1 MB, one for each


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def gradients(world: World, passes: int = 2) -> torch.Tensor:
    """Of a sum of squares over a batch whose halves lie on two ranks; each rank starts with other weights."""
    model = net()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(world.rank)
    wrapped = world.prepare(model)
    x = torch.randn(SEEN, WIDTH, generator=torch.Generator().manual_seed(1)).chunk(world.size)[world.rank]
    for number, part in enumerate(x.chunk(passes), 1):
        with world.grad_sync(wrapped, last=number == passes):
            wrapped(part.to(world.device)).square().mean().div(passes).backward()
    world.average_gradients(model.parameters())
    return torch.stack([weight.grad for weight in model.parameters()])


def timeline(world: World) -> list[tuple[str, float]]:
    """What happens in one backward, in order: a layer's gradient is ready, a bucket is sent or has come; the end."""
    wrapped, events, started = world.prepare(net()), [], 0.0

    def note(what: str) -> None:
        events.append((what, time.perf_counter() - started))

    def send(_: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        number = bucket.index()
        note(f"bucket {number} is sent")
        future = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()

        def come(done: torch.futures.Future) -> torch.Tensor:
            note(f"bucket {number} has come")
            return done.value()[0] / world.size

        return future.then(come)

    wrapped.register_comm_hook(None, send)
    for number, weight in enumerate(wrapped.parameters()):
        weight.register_hook(lambda gradient, number=number: note(f"gradient {number} is ready"))
    for _ in range(3):  # buckets have their last layout after the first
        loss = wrapped(torch.randn(SEEN, WIDTH)).square().mean()
        events.clear()
        started = time.perf_counter()
        loss.backward()
        note("the backward has ended")
    return events


def main(out: str) -> None:
    ways = {
        "ddp": {},
        "small buckets": {"bucket_mb": 1},
        "flat": {"sync": "flat"},
        "bf16": {"bf16_gradients": True},
        "flat bf16": {"bf16_gradients": True, "sync": "flat"},
    }
    found = {name: gradients(World(**options)) for name, options in ways.items()}
    save_file(found, f"{out}.{World().rank}")
    world = World(bucket_mb=1)
    with open(f"{out}.{world.rank}.json", "w") as file:
        json.dump(timeline(world), file)
    world.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
