"""What a step does to images before D sees them, and what it reports, with networks simple enough to follow by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distgan.distributed.process_group import World
from distgan.rng import device_rng
from distgan.training.gan_step import GanStep
from distgan.training.step_inputs import ImageToImageOptions, LatentSampler, StepBatch, StepHyperparams, StepOptions
from distgan.transforms.degrade import degrade
from distgan.transforms.degrade_spec import Step


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


def a_batch(num: int = 200) -> StepBatch:
    z_d, z_g, seeds = map(torch.from_numpy, LatentSampler(0, 48)(np.arange(num)))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8))
    return StepBatch(images, None, z_d, z_g, seeds)


def scaled(batch: StepBatch) -> Tensor:
    return batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1


def one_d_step(now: StepHyperparams, batch: StepBatch, **settings: object) -> GanStep:
    step = GanStep(World(), G(), D(), StepOptions("hinge", **settings))
    step.d_step(batch, torch.optim.Adam(step.D.parameters(), 1e-3, fused=True), now)
    return step


def test_instance_noise_is_on_real_images_and_fakes() -> None:
    batch = a_batch()
    real, fake = one_d_step(StepHyperparams(instance_noise=0.25), batch).D.seen
    for images, bare, look in ((real, scaled(batch), "real"), (fake, batch.z_d.view(-1, 3, 4, 4), "fake")):
        noise = device_rng.normal(batch.seeds, f"noise {look}", 48).view_as(bare)
        torch.testing.assert_close(images, bare + 0.25 * noise)
        assert (images - bare).std().item() == pytest.approx(0.25, rel=0.05)


def test_half_of_the_real_images_are_mirrored_and_no_fake_is() -> None:
    batch = a_batch()
    real, fake = one_d_step(StepHyperparams(), batch, flip=True).D.seen
    bare = scaled(batch)
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(real, bare)])
    assert all(flipped or torch.equal(a, b) for flipped, a, b in zip(mirrored, real, bare))
    assert 0.35 < mirrored.float().mean() < 0.65
    assert torch.equal(fake, batch.z_d.view(-1, 3, 4, 4))


def test_augmentation_is_on_all_that_d_sees_and_no_look_repeats_another() -> None:
    batch = a_batch()
    step = one_d_step(StepHyperparams(augment_p=1.0), batch, augment="flip", feature_matching=1.0)
    step.g_step(batch, torch.optim.Adam(step.G.parameters(), 1e-3, fused=True), StepHyperparams(augment_p=1.0))
    real, _, _, again = step.D.seen
    bare = scaled(batch)
    looks = [torch.tensor([not torch.equal(a, b) for a, b in zip(seen, bare)]) for seen in (real, again)]
    assert all(0.35 < look.float().mean() < 0.65 for look in looks)
    assert (looks[0] != looks[1]).any()


def test_each_pass_reports_its_logits() -> None:
    sizes = []
    options = StepOptions("hinge", accumulation_steps=4)
    step = GanStep(World(), G(), D(), options, lambda real, fake: sizes.append((len(real), len(fake))))
    step.d_step(a_batch(), torch.optim.Adam(step.D.parameters(), 1e-3, fused=True), StepHyperparams())
    assert sizes == [(50, 50)] * 4


def test_diversity_is_the_spread_of_fakes_over_that_of_real_images() -> None:
    batch = a_batch()
    step = one_d_step(StepHyperparams(), batch)
    fake, real = (x.double().var(dim=0, correction=0).sum().item() for x in (batch.z_d, scaled(batch)))
    assert step.diversity() == pytest.approx(fake / real, rel=1e-9)
    batch.z_d = batch.z_d[:1].expand(200, -1)  # a generator that makes the same picture again and again
    assert one_d_step(StepHyperparams(), batch).diversity() < 1e-9


class Restorer(nn.Module):
    """What it is given, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.full((1,), 0.5)), []

    def forward(self, images: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(images.detach())
        return images * self.scale


RECIPE = (Step("noise", 20, 20), Step("grey", 0, 1, p=0.5))


def one_restoring_step(
    restoring: ImageToImageOptions, batch: StepBatch, now: StepHyperparams, loss: str = "hinge", **settings: object
) -> GanStep:
    """A step of D and one of G."""
    step = GanStep(World(), Restorer(), D(), StepOptions(loss, image_to_image=restoring, **settings))
    step.d_step(batch, torch.optim.SGD(step.D.parameters(), 0, fused=True), now)
    step.g_step(batch, torch.optim.SGD(step.G.parameters(), 0, fused=True), now)
    return step


@pytest.mark.parametrize("flip", [False, True])
def test_g_restores_degraded_forms_of_the_very_images_that_d_sees(flip: bool) -> None:
    """In both steps the same ones, mirrored alike; in parts they are those of the whole."""
    batch = a_batch()
    step = one_restoring_step(ImageToImageOptions(RECIPE), batch, StepHyperparams(), flip=flip)
    real, fake = step.D.seen[:2]
    given = degrade(real, batch.seeds, RECIPE)
    assert all(torch.equal(seen, given) for seen in step.G.seen)
    assert torch.equal(fake, given * 0.5)
    assert len(step.G.seen) == 2
    parts = one_restoring_step(ImageToImageOptions(RECIPE), batch, StepHyperparams(), flip=flip, accumulation_steps=4)
    assert torch.equal(torch.cat(parts.G.seen[:4]), given)


def test_pairs_bring_their_degraded_pictures_along_and_both_are_mirrored() -> None:
    batch = a_batch()
    batch.degraded = 255 - batch.images
    step = one_restoring_step(ImageToImageOptions(), batch, StepHyperparams(), flip=True)
    torch.testing.assert_close(step.G.seen[0], -step.D.seen[0])
    assert not torch.equal(step.D.seen[0], scaled(batch))


def test_g_s_loss_is_what_d_says_and_the_weighted_distance() -> None:
    batch = a_batch()
    row = one_restoring_step(ImageToImageOptions(RECIPE, "l2", 7.0), batch, StepHyperparams()).stats.flush()
    real = scaled(batch)
    fake = 0.5 * degrade(real, batch.seeds, RECIPE)
    assert row["Loss/pixel"] == pytest.approx(7 * (fake - real).square().mean().item(), rel=1e-5)
    assert row["Loss/G"] == pytest.approx(row["Loss/G_adv"] + row["Loss/pixel"], rel=1e-6)


def test_features_are_matched_with_those_of_each_picture_s_own_clean_one() -> None:
    """D's features here are the images: their mean square distance, not that of their means."""
    batch = a_batch()
    row = one_restoring_step(
        ImageToImageOptions(RECIPE), batch, StepHyperparams(), feature_matching=3.0, group=0
    ).stats.flush()
    real = scaled(batch)
    fake = 0.5 * degrade(real, batch.seeds, RECIPE)
    assert row["Loss/fm"] == pytest.approx(3 * (fake - real).square().mean().item(), rel=1e-5)


def test_a_d_that_is_shown_the_degraded_picture_sees_both_moved_alike() -> None:
    batch, now = a_batch(), StepHyperparams(augment_p=1.0, instance_noise=0.1)
    step = one_restoring_step(ImageToImageOptions(RECIPE, conditional_D=True), batch, now, "rpgan", augment="flip")
    bare, looks = scaled(batch), ("real", "fake", "G's fake", "G's real")
    given = degrade(bare, batch.seeds, RECIPE)
    assert len(step.D.seen) == 4
    for seen, look in zip(step.D.seen, looks):
        image, beside = seen.split(3, 1)
        noise = 0.1 * device_rng.normal(batch.seeds, f"noise {look}", 48).view_as(image)
        expected = given * 0.5 if "fake" in look else bare
        mirrored = (device_rng.uniform(batch.seeds, f"augment {look}", 1) < 0.5)[:, :, None, None]
        torch.testing.assert_close(image, torch.where(mirrored, expected.flip(3), expected) + noise)
        assert torch.equal(beside, torch.where(mirrored, given.flip(3), given))  # and no noise on it
    assert step.diversity() == pytest.approx(
        torch.cat([given * 0.5, given], 1).var(0).sum().item() / torch.cat([bare, given], 1).var(0).sum().item(),
        rel=1e-4,
    )


def test_penalties_are_of_the_gradient_in_the_image_alone() -> None:
    """D's gradient is scale / 96 for each of the 48 numbers of the image, and so for the 48 beside it."""
    batch = a_batch()
    row = one_restoring_step(
        ImageToImageOptions(RECIPE, conditional_D=True), batch, StepHyperparams(r1=2.0, gp=3.0)
    ).stats.flush()
    assert row["Loss/r1"] == pytest.approx(48 / 96**2, rel=1e-5)
    assert row["Loss/gp"] == pytest.approx(3 * (48**0.5 / 96 - 1) ** 2, rel=1e-5)


def test_of_parts_the_score_is_reported() -> None:
    class Parts(D):
        def forward(self, images: Tensor, labels: Tensor | None = None, features: bool = False) -> Tensor:
            return super().forward(images)[:, None] + torch.tensor([0.0, 2.0])

    batch, told = a_batch(), []
    step = GanStep(
        World(), G(), Parts(), StepOptions("hinge", accumulation_steps=2), lambda real, fake: told.append((real, fake))
    )
    step.d_step(batch, torch.optim.SGD(step.D.parameters(), 0, fused=True), StepHyperparams())
    step.g_step(batch, torch.optim.SGD(step.G.parameters(), 0, fused=True), StepHyperparams())
    means = [images.mean((1, 2, 3)) + 1 for images in (scaled(batch), batch.z_d.view(-1, 3, 4, 4))]
    for mean, seen in zip(means, zip(*told)):
        torch.testing.assert_close(torch.cat(seen), mean)
    row = step.stats.flush()
    assert row["Logits/real_mean"] == pytest.approx(means[0].mean().item(), rel=1e-5)
    assert row["Logits/real_minus_fake"] == pytest.approx((means[0].mean() - means[1].mean()).item(), rel=1e-4)
