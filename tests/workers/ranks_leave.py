"""Leave the process group while it still frees tensors, then drop the module in DDP, which outlived it."""

import gc
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group, which its functions would hold for ever
from torch import nn

from distgan.distributed.process_group import World

world = World()
net = world.prepare(nn.Linear(4, 4))
net(torch.ones(2, 4)).sum().backward()
sys.setswitchinterval(60)  # a thread of the group waits for Python's lock until this one waits for something


def barrier() -> None:
    """Begin what ends after the group has been left, as a late thread would."""
    tensors = [torch.empty(2_000_000) for _ in range(2)]
    dist.all_gather(tensors, torch.ones(2_000_000), async_op=True)


world.barrier = barrier
world.close()
world._accelerator.free_memory()
del net, world
gc.collect()
os._exit(0)
