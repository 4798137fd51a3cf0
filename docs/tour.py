"""A tour of distgan from Python, in cells: open it as a notebook (VS Code, Jupytext), or run it from top to bottom.

python docs/tour.py            # some minutes on a CPU, and leaves all it makes in ./tour
python docs/tour.py 2k         # a quick run: too few images for digits that can be read
"""

# %% [markdown]
# # Digits, from images to a generator and back
#
# The package brings 1,797 scanned digits along, so nothing has to be fetched. First they become WebDataset shards,
# which is what `distgan pack` does with any folder, archive or `.npz` file.

# %%
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

import distgan
from distgan.cli.main import main

IMAGES = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1][0].isdigit() else "60k"
place = Path("tour")
digits = Path(distgan.__file__).parent / "data" / "digits.npz"
main(["pack", str(digits), str(place / "digits"), "--resolution", "32", "--workers", "1"])

# %% [markdown]
# ## Training
#
# `distgan.train` is `distgan train`: a config, and settings that win over it. Run this cell again after you
# interrupted it, and it resumes where it was, bit for bit.

# %%
config = place / "digits.yaml"
config.write_text(
    """
data: {resolution: 32}
model:
  conditional: true
  z_dim: 64
  G: {base_channels: 16, max_channels: 128}
  D: {base_channels: 16, max_channels: 128}
loss: {name: rpgan, r1: 0.2, r2: 0.2, penalty_interval: 4}
optim: {G: {lr: 1e-3}, D: {lr: 1e-3}}
ema: {half_life: 5k}
train: {batch: 64}
sample: {every: 20k}
checkpoint: {every: 20k}
wandb: {mode: disabled}
"""
)
run = place / "run"
if distgan.train(config, f"data.shards={place / 'digits'}", f"run.dir={run}", f"train.images={IMAGES}") != 0:
    sys.exit("interrupted: run this again to resume")

# %% [markdown]
# ## The generator
#
# `load_generator` takes a run, a checkpoint or an exported folder, and what it gives is called for images; image i
# depends on the seed and i alone.

# %%
G = distgan.load_generator(run)
labels = torch.arange(100) // 10
fakes = G(100, seed=1, labels=labels)
assert torch.equal(fakes[:5], G(5, seed=1, labels=labels[:5]))


def grid(images: torch.Tensor, columns: int) -> Image.Image:
    """[B, 3, R, R] in -1..1 -> one image."""
    pixels = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(pixels[i : i + columns], axis=1) for i in range(0, len(pixels), columns)]
    return Image.fromarray(np.concatenate(rows))


grid(fakes, 10).resize((640, 640), Image.Resampling.NEAREST).save(place / "fakes.png")

# %% [markdown]
# A walk through latent space, from the first latent to the second and on, all of them as sevens.

# %%
z = torch.randn(4, G.z_dim, generator=torch.Generator().manual_seed(2))
ways = [torch.lerp(a, b, t) for a, b in pairwise(z) for t in torch.linspace(0, 1, 8)]
walk = G(torch.stack(ways), torch.full((24,), 7))
grid(walk, 8).resize((640, 240), Image.Resampling.NEAREST).save(place / "walk.png")

# %% [markdown]
# ## The stream in a loop of your own
#
# `open_stream` gives the batches that a run would see: every image once per epoch, in an order that is a function of
# the seed, and stopped after n batches it resumes exactly there. Here it feeds a linear classifier, which then reads
# the generated digits.

# %%
reader = torch.nn.Linear(3 * 32 * 32, 10)
optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
with distgan.open_stream(str(place / "digits"), batch=128, resolution=32, labels=True) as stream:
    for batch, _ in zip(stream, range(150)):
        images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = torch.nn.functional.cross_entropy(reader(images.flatten(1)), torch.from_numpy(batch.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

right = (reader(fakes.flatten(1)).argmax(1) == labels).float().mean().item()
print(f"a classifier of real digits reads {right:.0%} of the generated ones as they were asked for")

# %% [markdown]
# PyTorch's `DataLoader` gives the same batches, with any number of worker processes; and webdataset's pipelines and
# decoders take the samples in the same order, with all their parts as they are stored.

# %%
batches = distgan.StreamDataset(str(place / "digits"), 128, resolution=32, labels=True)
first_images, first_labels = next(iter(DataLoader(batches, batch_size=None, num_workers=2)))

samples = distgan.SampleDataset(str(place / "digits"), 128, labels=True)
pipeline = webdataset.DataPipeline(samples, webdataset.decode("rgb8"), webdataset.to_tuple("png", "cls"))
image, label = next(iter(pipeline))
assert label == first_labels[0]
assert np.array_equal(image, first_images[0].permute(1, 2, 0))

# %% [markdown]
# ## Your own part in a run
#
# A callback is called at the start, after steps, lines of metrics, samples, evaluations and checkpoints, and at the
# end; its return may end the run. `load_config` gives all settings, checked, as `distgan.Config`. Networks and
# optimizers may be objects of your own, which are saved and resumed like any other; for networks that commands can load
# again, see [plugins.md](plugins.md).


# %%
class Diary(distgan.Callback):
    def on_tick(self, trainer, metrics):
        print(f"{trainer.state.images} images, D orders {metrics['Logits/D_accuracy']:.0%} of pairs correctly")
        return trainer.state.images >= 4000  # enough


class LinearG(torch.nn.Linear):
    """z [B, 64] -> images [B, 3, 32, 32] in -1..1."""

    def forward(self, z, labels=None):
        return super().forward(z).tanh().unflatten(1, (3, 32, 32))


class LinearD(torch.nn.Linear):
    """images [B, 3, 32, 32] -> logits [B]; with `features`, features too."""

    def forward(self, images, labels=None, features=False):
        logits = super().forward(images.flatten(1)).flatten()
        return (logits, [images]) if features else logits


own = ["model.conditional=false", "train.images=6k", "train.tick=2k", "sample.every=0"]
settings = distgan.load_config(config, f"data.shards={place / 'digits'}", f"run.dir={place / 'own'}", *own)
networks = LinearG(64, 3 * 32 * 32), LinearD(3 * 32 * 32, 1)
adams = tuple(torch.optim.AdamW(net.parameters()) for net in networks)  # with the learning rates of `settings`
distgan.train(settings, callbacks=[Diary()], networks=networks, optimizers=adams)

# %% [markdown]
# ## What a run wrote
#
# `metrics.jsonl` has a line for each tick, and [metrics.md](metrics.md) says what the keys mean. `distgan report`
# makes one HTML file of a run.

# %%
main(["report", str(run), "--out", str(place / "report.html")])
