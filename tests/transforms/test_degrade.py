"""Degradations against closed forms, Pillow and scipy, and as functions of each image's seed alone."""

import io
import math

import numpy as np
import pytest
import scipy  # its parts load when they are used
import torch
from PIL import Image
from torch import Tensor

from distgan.image_spec import DType, ImageSpec, square
from distgan.transforms.degrade import KINDS, degrade, poisson
from distgan.transforms.degrade_spec import KINDS as KNOWN
from distgan.transforms.degrade_spec import Step, parse

RECIPE = [
    {"blur": [0.5, 2], "p": 0.5},
    {"downsample": [2, 8], "p": 0.5},
    {"noise": [0, 40]},
    {"shot": [5, 100], "p": 0.5},
    {"jpeg": [5, 95], "p": 0.7},
    {"box": [0.1, 0.5], "p": 0.5},
    {"strokes": [0.05, 0.2], "p": 0.5},
    {"grey": [0, 1]},
]


def seeds(num: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + num) * 7919 + 13


def pictures(num: int, size: int = 32, width: int = 0, channels: int = 3) -> Tensor:
    """Smooth colours with edges, on the 8-bit grid; [B, C, H, W] in -1..1, square where no width is given."""
    random, width = np.random.default_rng(0), width or size
    levels = scipy.ndimage.gaussian_filter(random.normal(size=(num, channels, size, width)), (0, 0, 3, 3)) * 600 + 128
    levels[:, :, size // 3 :, width // 2 :] += 60
    return torch.from_numpy(levels.clip(0, 255).round()).float() / 127.5 - 1


def levels(images: Tensor) -> np.ndarray:
    return ((images.double() + 1) * 127.5).round().numpy()


def spec(images: Tensor) -> ImageSpec:
    _, channels, height, width = images.shape
    return ImageSpec(height, width, channels)


def one(images: Tensor, **step: object) -> np.ndarray:
    """Levels after one step."""
    return levels(degrade(images, seeds(len(images)), parse([step], spec(images))))


def test_every_kind_has_bounds_and_a_function() -> None:
    assert list(KINDS) == list(KNOWN)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    """Bit by bit: any number of ranks and passes, and a resumed run, see the same degraded pictures."""
    images, steps = pictures(16), parse(RECIPE, square(32))
    whole = degrade(images, seeds(16), steps)
    for size in (1, 3, 5, 8):
        parts = [degrade(x, s, steps) for x, s in zip(images.split(size), seeds(16).split(size))]
        assert torch.equal(torch.cat(parts), whole)
    strided = images.to(memory_format=torch.channels_last)  # as `step` makes them of uint8 [B, R, R, 3]
    assert torch.equal(degrade(strided, seeds(16), steps), whole)
    assert np.array_equal(levels(degrade(images.double(), seeds(16), steps)), levels(whole))
    assert not torch.equal(degrade(images, seeds(16, start=1), steps), whole)
    assert len({x.numpy().tobytes() for x in degrade(images[:1].expand(16, -1, -1, -1), seeds(16), steps)}) == 16


@pytest.mark.parametrize("name", KNOWN)
def test_what_comes_out_is_an_8_bit_picture_and_another_one(name: str) -> None:
    strengths = {"noise": 17, "shot": 20, "blur": 1.5, "downsample": 4, "jpeg": 20, "box": 0.4, "strokes": 0.2}
    images = pictures(4)
    out = degrade(images, seeds(4), parse([{name: strengths.get(name, 1)}], square(32)))
    assert out.shape == images.shape
    assert torch.equal(out, torch.from_numpy(levels(out)).float() / 127.5 - 1)
    assert out.abs().max() <= 1
    assert all(not torch.equal(a, b) for a, b in zip(out, images))
    assert torch.equal(degrade(images, seeds(4), []), images)


def test_a_step_is_done_to_its_share_of_the_pictures() -> None:
    out = one(pictures(1).expand(2000, -1, -1, -1)[:, :, :16, :16].contiguous(), grey=1, p=0.3)
    is_grey = (out[:, 0] == out[:, 1]).all((1, 2))
    assert is_grey.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 2000))


def test_noise_has_the_given_deviation() -> None:
    out = one(torch.zeros(50, 3, 32, 32) + 1 / 255, noise=25) - 128
    assert out.std() == pytest.approx(math.sqrt(25**2 + 1 / 12), rel=0.01)
    assert abs(out.mean()) < 0.3
    assert abs(np.corrcoef(out[:-1].ravel(), out[1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("rate", [0.0, 0.3, 2.0, 7.9, 8.1, 20.0, 300.0, 1e4])
def test_poisson_numbers_have_their_distribution(rate: float) -> None:
    """Each uniform number of a fine, even grid gives the quantile; scipy's is exact."""
    u = (torch.arange(2**16).double() * 2**8 + 128) * 2**-24
    found = poisson(torch.full((2**16,), rate), u.float()).double().numpy()
    exact = scipy.stats.poisson.ppf(u.numpy(), rate) if rate else np.zeros(2**16)
    assert np.abs(found - exact).max() <= 1
    assert (found != exact).mean() < (1e-4 if rate <= 8 else 4e-3)
    assert found.mean() == pytest.approx(rate, rel=2e-3, abs=1e-4)
    assert found.var() == pytest.approx(rate, rel=2e-3, abs=1e-4)


def test_shot_noise_is_brighter_where_the_picture_is() -> None:
    grey = torch.full((60, 3, 16, 16), 101 / 127.5 - 1)
    out = one(grey, shot=50)
    assert out.mean() == pytest.approx(101, rel=0.01)
    assert out.var() == pytest.approx(101 * 255 / 50, rel=0.05)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])
def test_blur_is_that_of_scipy(sigma: float) -> None:
    images = pictures(3)
    expected = scipy.ndimage.gaussian_filter(
        levels(images), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0) + 2 * (math.ceil(3 * sigma),)
    )
    assert np.abs(one(images, blur=sigma) - expected).max() <= 0.501


def test_downsampling_is_that_of_pillow() -> None:
    """Means by a box, and the linear interpolation of `resize`, which agree away from rounding in between."""
    images = pictures(2)
    for factor in (2, 4, 16):
        out = one(images, downsample=factor)
        for picture, mine in zip(levels(images), out):
            for plane, my_plane in zip(picture, mine):
                small = Image.fromarray(plane.astype(np.float32)).resize((32 // factor,) * 2, Image.Resampling.BOX)
                large = np.asarray(small.resize((32, 32), Image.Resampling.BILINEAR))
                assert np.abs(large - my_plane).max() <= 0.51


def test_a_range_of_factors_draws_powers_of_two_evenly() -> None:
    ramp = (torch.arange(16.0) / 15 * 2 - 1).expand(600, 3, 16, 16)
    out = degrade(((ramp + 1) * 127.5).round() / 127.5 - 1, seeds(600), parse([{"downsample": [2, 8]}], square(16)))
    kinds, counts = np.unique(levels(out)[:, 0, 0], axis=0, return_counts=True)
    assert len(kinds) == 3
    assert counts.min() > 150


@pytest.mark.parametrize("quality", [5, 25, 50, 75, 95, 100])
def test_jpeg_is_that_of_pillow(quality: int) -> None:
    """libjpeg-turbo reckons in whole numbers: a level or two may differ, the loss may not."""
    colours = pictures(4, size=64)
    images = torch.cat([colours, colours[:, :1].expand(-1, 3, -1, -1)])
    out = one(images, jpeg=quality)
    for picture, mine in zip(levels(images), out):
        file = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0).astype(np.uint8)).save(file, "JPEG", quality=quality, subsampling=2)
        theirs = np.asarray(Image.open(file)).transpose(2, 0, 1).astype(float)
        lost = np.abs(theirs - picture).mean()
        is_grey = (picture == picture[:1]).all()
        assert np.abs(mine - theirs).mean() < (0.3 if is_grey else 0.25 * lost + 0.4)
        assert np.abs(mine - picture).mean() == pytest.approx(lost, rel=0.03, abs=0.1)


def test_a_box_has_its_size_and_lies_inside() -> None:
    out = one(torch.ones(200, 3, 32, 32), box=0.25)
    assert set(np.unique(out)) == {128, 255}
    masked = (out[:, 0] == 128).sum((1, 2))
    assert set(np.unique(masked)) <= {64}
    assert len({x.tobytes() for x in out}) > 150
    assert (out[:, 0] == 128).any(0)[3:-3, 3:-3].all()  # anywhere


def test_strokes_are_free_forms_that_widen() -> None:
    thin, wide = (one(torch.ones(100, 3, 32, 32), strokes=share)[:, 0] == 128 for share in (0.05, 0.2))
    assert (thin <= wide).all()
    assert thin.any((1, 2)).mean() > 0.9
    assert 0.03 < thin.mean() < 0.2 < wide.mean() < 0.6


def test_grey_goes_to_luma() -> None:
    colour = torch.tensor([255.0, 51.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 127.5 - 1
    luma = 0.299 * 255 + 0.587 * 51
    assert np.allclose(one(colour, grey=1), round(luma))
    assert np.allclose(one(colour, grey=0.5)[0, :, 0, 0], [(255 + luma) / 2, (51 + luma) / 2, luma / 2], atol=0.51)


def test_strengths_are_drawn_evenly_from_their_range() -> None:
    out = one(torch.ones(1000, 3, 16, 16), box=[0.1, 0.9])
    sides = np.sqrt((out[:, 0] == 128).sum((1, 2)))
    assert np.histogram(sides, [1, 4, 8, 12, 15])[0].min() > 100


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([{"blurr": 1}], r"\[0\]=.*noise, shot, blur"),
        ([{"blur": 1, "noise": 2}], r"\[0\]="),
        ([{"noise": 1}, {"blur": [2, 40]}], r"\[1\]: blur=\[2, 40\] is impossible at data.resolution=32.*to 8"),
        ([{"blur": [2, 1]}], "lowest, highest"),
        ([{"blur": "much"}], "a number"),
        ([{"noise": float("nan")}], "a number"),
        ([{"noise": True}], "a number"),
        ([{"noise": -1}], "impossible"),
        ([{"downsample": 32}], "from 2 to 16"),
        ([{"downsample": 3}], "power of two"),
        ([{"jpeg": 0}], "from 1 to 100"),
        ([{"box": 1.0}], "from 0.01 to 0.9"),
        ([{"shot": 0}], "impossible"),
        ([{"grey": 1, "p": 0}], r"\[0\].p=0"),
        ([{"p": 0.5}], r"\[0\]="),
        ([{}], r"\[0\]="),
    ],
)
def test_impossible_steps_are_told(items: list[dict], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(items, square(32))


def test_the_bounds_themselves_work() -> None:
    images = pictures(2)
    for name, kind in KNOWN.items():
        high = kind.high * 32 if kind.high_in_sides else kind.high
        for strength in (kind.low, high):
            assert parse([{name: strength}], square(32)) == [Step(name, strength, strength)]
            assert np.isfinite(one(images, **{name: strength})).all()


# Other channels and shapes.

ANY = ["noise", "shot", "blur", "downsample", "box", "strokes"]
SOME = {"noise": 17, "shot": 20, "blur": 1.5, "downsample": 4, "jpeg": 20, "box": 0.4, "strokes": 0.2, "grey": 1}


@pytest.mark.parametrize(("channels", "alpha"), [(1, False), (2, True), (4, True), (5, False)])
def test_steps_of_any_channels(channels: int, alpha: bool) -> None:
    image = ImageSpec(40, 96, channels, alpha=alpha)
    images = pictures(4, 40, 96, channels)
    for name in ANY:
        steps = parse([{name: SOME[name]}], image)
        whole = degrade(images, seeds(4), steps)
        assert whole.shape == images.shape
        assert not torch.equal(whole, images)
        assert torch.equal(torch.cat([degrade(x, s, steps) for x, s in zip(images.split(1), seeds(4).split(1))]), whole)


def test_steps_without_draws_of_their_own_treat_each_channel_alike_and_transposed_images_transposed() -> None:
    images = pictures(3, 40, 96, 5)
    for name in ("blur", "downsample"):
        step = {name: SOME[name]}
        out = one(images, **step)
        for channel in range(5):
            assert np.array_equal(one(images[:, channel, None], **step)[:, 0], out[:, channel])
        turned = one(images.mT.contiguous(), **step).swapaxes(2, 3)
        assert np.abs(turned - out).max() <= 1  # the order of sums, and rounding


@pytest.mark.parametrize("size", [(48, 64), (40, 96), (20, 50)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_other_shapes_and_of_gray_is_that_of_pillow(size: tuple[int, int], channels: int) -> None:
    images = pictures(3, *size, channels)
    for quality in (20, 75):
        for picture, mine in zip(levels(images), one(images, jpeg=quality)):
            file = io.BytesIO()
            pixels = picture.transpose(1, 2, 0).astype(np.uint8).squeeze()
            Image.fromarray(pixels).save(file, "JPEG", quality=quality, **{"subsampling": 2} if channels == 3 else {})
            theirs = np.atleast_3d(np.asarray(Image.open(file))).transpose(2, 0, 1).astype(float)
            lost = np.abs(theirs - picture).mean()
            assert np.abs(mine - theirs).mean() < (0.3 if channels == 1 else 0.25 * lost + 0.4)


def test_shares_are_of_the_shorter_side() -> None:
    white = torch.ones(300, 1, 16, 64)
    masked = one(white, box=0.5)[:, 0] == 128
    assert set(np.unique(masked.sum((1, 2)))) <= {64}
    assert masked.any((0, 1)).all()  # anywhere along the longer side
    strokes = one(white, strokes=0.2)[:, 0] == 128
    assert strokes.any(0).mean() > 0.9 and 0.02 < strokes.mean() < 0.6


def test_gray_leaves_transparency_alone() -> None:
    images = pictures(2, channels=4)
    steps = parse([{"grey": 1}], ImageSpec(32, 32, 4, alpha=True))
    out = degrade(images, seeds(2), steps)
    assert torch.equal(out[:, 3:], images[:, 3:])
    assert torch.equal(out[:, :3], degrade(images[:, :3], seeds(2), steps))


def test_the_depth_of_images_is_kept() -> None:
    images = torch.rand(4, 2, 16, 16, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    steps = parse([{"noise": 5}], ImageSpec(16, 16, 2))
    deep = ((images + 1) * 32767.5).round() / 32767.5 - 1
    kinds = square(1), ImageSpec(1, 1, dtype="uint16"), ImageSpec(1, 1, 3, "float32", -1, 1)
    assert torch.allclose(degrade(deep, seeds(4), [], kinds[1]), deep, rtol=0, atol=1e-6)
    assert torch.allclose(degrade(images, seeds(4), [], kinds[2]), images, rtol=0, atol=1e-6)
    noisy = {kind.dtype: degrade(images, seeds(4), steps, kind) for kind in kinds}
    for dtype, step in (("uint8", 1 / 127.5), ("uint16", 1 / 32767.5)):
        steps_from_zero = (noisy[dtype] + 1) / step
        assert torch.allclose(steps_from_zero, steps_from_zero.round(), rtol=0, atol=2e-2)
        assert (noisy[dtype] - noisy["float32"]).abs().max() <= step * 1.01


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 10), ("uint8", 3, 203), ("uint16", 100, 4096)])
def test_degraded_images_of_a_range_are_values_that_can_be_stored(dtype: DType, low: float, high: float) -> None:
    """They are whole numbers of the range, up to both ends, and an image without noise is unchanged."""
    image = ImageSpec(32, 32, 2, dtype, low, high)
    stored = np.random.default_rng(0).integers(low, high + 1, (4, 32, 32, 2))
    given = torch.from_numpy((2 * (stored - low) / (high - low) - 1).astype(np.float32)).permute(0, 3, 1, 2)
    assert torch.allclose(degrade(given, seeds(4), [], image), given, rtol=0, atol=1e-6)
    out = degrade(given, seeds(4), parse([{"noise": 100}], image), image)
    values = (out.double().numpy() + 1) * (high - low) / 2 + low
    np.testing.assert_allclose(values, values.round(), rtol=0, atol=1e-6 * (high - low))
    assert (values.round().min(), values.round().max()) == (low, high)


@pytest.mark.parametrize(
    ("item", "image", "told"),
    [
        ({"jpeg": 50}, ImageSpec(32, 32, 5), "jpeg is defined for images of 1 or 3 channels, and these have 5"),
        ({"jpeg": 50}, ImageSpec(32, 32, 4, alpha=True), "1 or 3 channels, without transparency, and these have 4"),
        ({"grey": 1}, ImageSpec(32, 32, 1), "grey is defined for images of 3 channels, and these have 1"),
        ({"grey": 1}, ImageSpec(32, 32, 4), "3 channels, and these have 4"),
        ({"downsample": 32}, ImageSpec(48, 96), "from 2 to 16"),
        ({"downsample": 8}, ImageSpec(20, 36), "from 2 to 4"),
        ({"blur": 9}, ImageSpec(32, 64), r"impossible at data.resolution=\[32,64\].* to 8"),
    ],
)
def test_steps_that_images_do_not_allow_are_told(item: dict, image: ImageSpec, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse([item], image)
