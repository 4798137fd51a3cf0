"""What a step does to images before D sees them, and what it reports, with networks simple enough to follow by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distgan import draw
from distgan.step import DeviceBatch, GanStep, Noise, Strengths
from distgan.world import World


class G(nn.Module):
    """An image is its latent, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return (z * self.scale).view(len(z), 3, 4, 4)


class D(nn.Module):
    """Keeps what it sees, and gives its mean, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, images: Tensor, labels: Tensor | None = None, features: bool = False) -> Tensor:
        self.seen.append(images.detach())
        logits = self.scale * images.mean((1, 2, 3))
        return (logits, [images]) if features else logits


def a_batch(num: int = 200) -> DeviceBatch:
    z_d, z_g, seeds = map(torch.from_numpy, Noise(0, 48)(np.arange(num)))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8))
    return DeviceBatch(images, None, z_d, z_g, seeds)


def scaled(batch: DeviceBatch) -> Tensor:
    return batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1


def one_d_step(now: Strengths, batch: DeviceBatch, **settings: object) -> GanStep:
    step = GanStep(World(), G(), D(), "hinge", **settings)
    step.d_step(batch, torch.optim.Adam(step.D.parameters(), 1e-3, fused=True), now)
    return step


def test_instance_noise_is_on_real_images_and_fakes() -> None:
    batch = a_batch()
    real, fake = one_d_step(Strengths(noise=0.25), batch).D.seen
    for images, bare, look in ((real, scaled(batch), "real"), (fake, batch.z_d.view(-1, 3, 4, 4), "fake")):
        noise = draw.normal(batch.seeds, f"noise {look}", 48).view_as(bare)
        torch.testing.assert_close(images, bare + 0.25 * noise)
        assert (images - bare).std().item() == pytest.approx(0.25, rel=0.05)


def test_half_of_the_real_images_are_mirrored_and_no_fake_is() -> None:
    batch = a_batch()
    real, fake = one_d_step(Strengths(), batch, flip=True).D.seen
    bare = scaled(batch)
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(real, bare)])
    assert all(flipped or torch.equal(a, b) for flipped, a, b in zip(mirrored, real, bare))
    assert 0.35 < mirrored.float().mean() < 0.65
    assert torch.equal(fake, batch.z_d.view(-1, 3, 4, 4))


def test_augmentation_is_on_all_that_d_sees_and_no_look_repeats_another() -> None:
    batch = a_batch()
    step = one_d_step(Strengths(p=1.0), batch, pipe="flip", matching=1.0)
    step.g_step(batch, torch.optim.Adam(step.G.parameters(), 1e-3, fused=True), Strengths(p=1.0))
    real, _, _, again = step.D.seen
    bare = scaled(batch)
    looks = [torch.tensor([not torch.equal(a, b) for a, b in zip(seen, bare)]) for seen in (real, again)]
    assert all(0.35 < look.float().mean() < 0.65 for look in looks)
    assert (looks[0] != looks[1]).any()


def test_observers_are_told_the_logits_of_each_pass() -> None:
    told = []
    one_d_step(Strengths(), a_batch(), passes=4, observe=lambda real, fake: told.append((len(real), len(fake))))
    assert told == [(50, 50)] * 4


def test_diversity_is_the_spread_of_fakes_over_that_of_real_images() -> None:
    batch = a_batch()
    step = one_d_step(Strengths(), batch)
    fake, real = (x.double().var(dim=0, correction=0).sum().item() for x in (batch.z_d, scaled(batch)))
    assert step.diversity() == pytest.approx(fake / real, rel=1e-9)
    batch.z_d = batch.z_d[:1].expand(200, -1)  # a generator that makes the same picture again and again
    assert one_d_step(Strengths(), batch).diversity() < 1e-9
