"""Augmentation against closed forms and slow references in numpy, and its controller.

An operation is tried alone by rows of draws in which only its own number lies below p = 1/2.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from distgan.training.controllers import Ada
from distgan.transforms.augment import (
    AUGMENTATIONS,
    Size,
    _ada_strengths,
    _color_matrix,
    _inverse_map,
    apply_plan,
    augment,
    plan,
)

NUM_DRAWS = {name: one.num_draws for name, one in AUGMENTATIONS.items()}
PIPES = list(NUM_DRAWS)
LAST = 1 - 2**-24  # the largest number that is drawn
# Where each operation's numbers begin, by pipe: the one that decides, then its values.
DIFFAUGMENT = {"brightness": 0, "saturation": 2, "contrast": 4, "translation": 6, "cutout": 9}
ADA = {
    "flip": 0, "turn": 2, "shift": 4, "scale": 7, "first": 9, "stretch": 11, "second": 13, "slide": 15,
    "brightness": 18, "contrast": 20, "luma": 22, "hue": 24, "saturation": 26, "cutout": 28,
}  # fmt: skip
PLACES = {"diffaugment": DIFFAUGMENT, "ada-cutout": ADA}


def batch(n: int = 1, size: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return (
        torch.rand(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype) * 2 - 1
    )


def rows(n: int, num: int, seed: int = 0) -> Tensor:
    return torch.rand(n, num, generator=torch.Generator().manual_seed(seed))


def only(pipe: str, **values: tuple[float, ...]) -> Tensor:
    """A row that does the named operations with these values, and no other, where p = 1/2; float64 [1, num]."""
    draws = torch.full((1, NUM_DRAWS[pipe]), LAST, dtype=torch.float64)
    for name, numbers in values.items():
        start = PLACES[pipe][name]
        draws[0, start : start + 1 + len(numbers)] = torch.tensor([0.0, *numbers], dtype=torch.float64)
    return draws


def uniform_of(normal: float) -> float:
    """The number in 0..1 that makes this normal one."""
    return NormalDist().cdf(normal) - 2**-25


def normal_of(uniform: float) -> float:
    return NormalDist().inv_cdf(uniform + 2**-25)


def done(pipe: str, size: int = 8, dtype: torch.dtype = torch.float64, **values: tuple[float, ...]) -> np.ndarray:
    return augment(batch(1, size, dtype), only(pipe, **values), pipe, 0.5)[0].numpy()


def image(size: int = 8, dtype: torch.dtype = torch.float64) -> np.ndarray:
    return batch(1, size, dtype)[0].numpy()


# Whether an operation is done.


@pytest.mark.parametrize("p", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("pipe", PIPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_images_come_back_as_they_are_where_p_is_zero(pipe: str, p: Tensor | float, dtype: torch.dtype) -> None:
    images = batch(16, 16, dtype)
    assert torch.equal(augment(images, rows(16, NUM_DRAWS[pipe]), pipe, p), images)


# The share of images that an operation changes; some leave an image as it is in a part of the cases.
SHARES = {
    "flip": 1 / 2, "luma": 1 / 2,
    "turn": 3 / 4,
    "shift": 3 / 4,  # at a size of 8: one pixel to either side or none with probability 1/2, in x and in y
    "translation": 8 / 9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("pipe", "operation"), [(pipe, operation) for pipe, places in PLACES.items() for operation in places]
)
def test_an_operation_is_done_with_probability_p(pipe: str, operation: str) -> None:
    n, p = 3000, 0.4
    starts = [*PLACES[pipe].values(), NUM_DRAWS[pipe]]
    start = PLACES[pipe][operation]
    stop = starts[starts.index(start) + 1]
    draws = torch.full((n, NUM_DRAWS[pipe]), LAST)
    draws[:, start:stop] = rows(n, stop - start)
    share = 1 - math.sqrt(1 - p) if operation in ("first", "second") else p * SHARES.get(operation, 1)
    images = batch().float().expand(n, -1, -1, -1)
    for chance in (p, torch.tensor(p)):
        changed = (augment(images, draws, pipe, chance) != images).flatten(1).any(1)
        assert changed.double().mean().item() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def test_a_flip_mirrors_half_of_the_images() -> None:
    images, draws = batch(4), torch.tensor([[0.1], [0.3], [0.5], [0.7]])
    for p, num in ((1.0, 2), (0.5, 1)):
        assert torch.equal(augment(images, draws, "flip", p), torch.cat([images[:num].flip(3), images[num:]]))


@pytest.mark.parametrize("pipe", ["diffaugment", "ada"])
def test_colour_is_a_factor_of_the_probability_of_operations_on_colour_alone(pipe: str) -> None:
    images, draws = batch(), torch.full((1, NUM_DRAWS[pipe]), 0.3, dtype=torch.float64)
    colourless = draws.clone()
    colourless[:, :6] = LAST if pipe == "diffaugment" else 0.3
    colourless[:, 18:] = LAST
    assert torch.equal(augment(images, draws, pipe, 0.5, color=0.5), augment(images, colourless, pipe, 0.5))
    assert not torch.equal(augment(images, draws, pipe, 0.5), augment(images, colourless, pipe, 0.5))


# Geometry of ADA.


def test_mirroring_is_exact() -> None:
    before = image(dtype=torch.float32)
    assert np.array_equal(done("ada-cutout", dtype=torch.float32, flip=(0.5,)), before[:, :, ::-1])
    assert np.array_equal(done("ada-cutout", dtype=torch.float32, flip=(0.49,)), before)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_quarter_turns_are_exact(quarters: int, size: int, dtype: torch.dtype) -> None:
    after = done("ada-cutout", size, dtype, turn=(quarters / 4 + 0.1,))
    assert np.array_equal(after, np.rot90(image(size, dtype), -quarters, (1, 2)))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 0), (0, 2), (-2, 1), (-1, -2)])
def test_translation_by_whole_pixels_is_exact_and_mirrors_what_lies_outside(x: int, y: int) -> None:
    size = 16
    after = done("ada-cutout", size, torch.float32, shift=((x / 2 + 1) / 2 * LAST, (y / 2 + 1) / 2 * LAST))
    wide = np.pad(image(size, torch.float32), ((0, 0), (2, 2), (2, 2)), "reflect")
    assert np.array_equal(after, wide[:, 2 - y : 2 - y + size, 2 - x : 2 - x + size])


def test_translation_reaches_an_eighth_of_the_side_evenly() -> None:
    n, size = 1000, 16
    draws = only("ada-cutout").repeat(n, 1)
    draws[:, 4], draws[:, 5:7] = 0, rows(n, 2).double()
    columns = torch.arange(size).float().expand(n, 3, size, size)
    shifts = 8 - augment(columns, draws, "ada-cutout", 0.5)[:, 0, 8, 8]
    found, counts = shifts.unique(return_counts=True)
    assert found.tolist() == [-2, -1, 0, 1, 2]
    assert (counts / n).tolist() == pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], abs=0.06)


def scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def rotation(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


def resampled(before: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """What `forward` ([3, 3], on places from the middle) makes of an image, pixel by pixel and tap by tap."""
    size, pad = before.shape[-1], 64
    wide = np.pad(before, ((0, 0), (pad, pad), (pad, pad)), "reflect")
    inverse, middle = np.linalg.inv(forward), (size - 1) / 2
    taps = {-1.0: -1 / 8, -0.5: 1 / 4, 0.0: 3 / 4, 0.5: 1 / 4, 1.0: -1 / 8}
    after = np.zeros_like(before)
    for row, column in np.ndindex(size, size):
        for (down, weight), (right, other) in ((a, b) for a in taps.items() for b in taps.items()):
            x, y, _ = inverse @ (column + right - middle, row + down - middle, 1) + middle + pad
            left, top = math.floor(x), math.floor(y)
            fx, fy = x - left, y - top
            square = wide[:, top : top + 2, left : left + 2]
            value = square @ (1 - fx, fx) @ (1 - fy, fy)
            after[:, row, column] += weight * other * value
    return after


ONE_MOVEMENT = {
    "larger": ({"scale": (uniform_of(1),)}, scaling(2**0.2, 2**0.2)),
    "smaller": ({"scale": (uniform_of(-3),)}, scaling(2**-0.6, 2**-0.6)),
    "first": ({"first": (0.7,)}, rotation(0.4 * math.pi)),
    "stretched": ({"stretch": (uniform_of(2),)}, scaling(2**0.4, 2**-0.4)),
    "second": ({"second": (0.1,)}, rotation(-0.8 * math.pi)),
    "slid": ({"slide": (uniform_of(1.5), uniform_of(-0.7))}, translation(1.5, -0.7)),  # at a size of 8
}


@pytest.mark.parametrize("name", ONE_MOVEMENT)
def test_a_movement_alone(name: str) -> None:
    values, forward = ONE_MOVEMENT[name]
    assert np.allclose(done("ada-cutout", **values), resampled(image(), forward), atol=1e-9)


def movement(u: list[float], p: float, size: int) -> np.ndarray:
    """What ADA's geometry does with these numbers, as the product of its operations; on places from the middle."""
    at = dict.fromkeys(ADA, False) | {name: u[start] < p for name, start in ADA.items() if start < 18}
    at |= {name: u[ADA[name]] < 1 - math.sqrt(1 - p) for name in ("first", "second")}
    slid = [size / 8 * normal_of(x) for x in u[16:18]]
    return np.linalg.multi_dot(
        [  # the last is the first done
            translation(*slid) if at["slide"] else np.eye(3),
            rotation((2 * u[14] - 1) * math.pi if at["second"] else 0),
            scaling(2 ** (0.2 * normal_of(u[12])), 2 ** (-0.2 * normal_of(u[12]))) if at["stretch"] else np.eye(3),
            rotation((2 * u[10] - 1) * math.pi if at["first"] else 0),
            scaling(*2 * (2 ** (0.2 * normal_of(u[8])),)) if at["scale"] else np.eye(3),
            translation(*(round((2 * x - 1) * size / 8) for x in u[5:7])) if at["shift"] else np.eye(3),
            rotation(math.floor(4 * u[3]) * math.pi / 2 if at["turn"] else 0),
            scaling(-1 if at["flip"] and u[1] >= 0.5 else 1, 1),
        ]
    )


def test_movements_apply_one_after_the_other() -> None:
    numbers = rows(3, NUM_DRAWS["ada"], seed=5).double()
    numbers[:, [0, 2, 4, 7, 9, 11, 13, 15]] = 0  # all are done
    numbers[:, 1] = torch.tensor([0.2, 0.7, 0.8])
    numbers[:, 18:] = LAST
    for before, u in zip(batch(3).numpy(), numbers.tolist()):
        after = augment(torch.tensor(before)[None], torch.tensor([u], dtype=torch.float64), "ada", 0.5)[0].numpy()
        assert np.allclose(after, resampled(before, movement(u, 0.5, 8)), atol=1e-9)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_the_inverse_map_of_random_draws(p: float) -> None:
    """The source of every place, by inverting the product of all movements; whole pixels where no other is done."""
    draws, size = rows(100, NUM_DRAWS["ada"], seed=11).double(), 32
    strengths, is_general = _ada_strengths(draws, p, 1.0)
    inverse = _inverse_map(strengths[:10], Size(size, size))
    for u, found, whole in zip(draws.tolist(), inverse.numpy(), (~is_general).tolist()):
        expected = np.linalg.inv(movement(u, p, size))[:2]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
        assert not whole or np.allclose(expected, expected.round(), atol=1e-12)


def test_half_a_pixel_is_cubic_interpolation() -> None:
    size = 16
    after = done("ada-cutout", size, slide=(uniform_of(0.25), 0.5 - 2**-25))
    wide = np.pad(image(size), ((0, 0), (0, 0), (2, 2)), "reflect")
    near, far = wide[..., 1:-2] + wide[..., 2:-1], wide[..., :-3] + wide[..., 3:]
    assert np.allclose(after, (9 * near - far)[..., :-1] / 16, atol=1e-9)


def test_a_flat_image_stays_flat_and_a_ramp_a_ramp() -> None:
    draws = rows(20, NUM_DRAWS["ada"]).double()
    draws[:, 18:] = LAST
    assert torch.allclose(
        augment(torch.full((20, 3, 8, 8), 0.3).double(), draws, "ada", 0.9), torch.tensor(0.3).double()
    )
    ramp = torch.arange(32).double().expand(1, 3, 32, 32)
    turned = augment(ramp, only("ada-cutout", first=(0.6,)), "ada-cutout", 0.5)[0, 0]
    across, down = turned[16, 17] - turned[16, 16], turned[17, 16] - turned[16, 16]
    assert (across.item(), down.item()) == pytest.approx((math.cos(0.2 * math.pi), math.sin(0.2 * math.pi)), abs=1e-9)


# Colours of ADA.


def test_brightness_and_contrast_of_ada() -> None:
    assert np.allclose(done("ada-cutout", brightness=(uniform_of(1.5),)), image() + 0.3, atol=1e-12)
    assert np.allclose(done("ada-cutout", contrast=(uniform_of(-2),)), image() / 2, atol=1e-12)


def luma(x: np.ndarray) -> np.ndarray:
    """The component along the axis of greys, in each channel; [1, R, R]."""
    return x.mean(0, keepdims=True)


def test_the_luma_flip_negates_luma_and_keeps_the_rest() -> None:
    before = image()
    assert np.allclose(done("ada-cutout", luma=(0.5,)), before - 2 * luma(before), atol=1e-12)
    assert np.array_equal(done("ada-cutout", luma=(0.49,)), before)


def test_hue_turns_about_the_greys() -> None:
    before = image()
    turned = done("ada-cutout", hue=(0.5 + 1 / 3,))  # a third of the circle
    assert np.allclose(turned, before[[2, 0, 1]], atol=1e-12)  # red becomes green
    turned = done("ada-cutout", hue=(0.9,))
    assert np.allclose(luma(turned), luma(before), atol=1e-12)
    assert np.allclose((turned**2).sum(0), (before**2).sum(0), atol=1e-12)
    assert not np.allclose(turned, before, atol=0.1)


def test_saturation_of_ada_scales_the_distance_from_grey() -> None:
    before = image()
    after = done("ada-cutout", saturation=(uniform_of(-2),))
    assert np.allclose(after, luma(before) + (before - luma(before)) / 4, atol=1e-12)


def recoloring(u: list[float], p: float) -> np.ndarray:
    """What ADA's operations on color do with these numbers (u[0] is the first of them), as a matrix [4, 4]."""
    v = np.array([[1.0], [1], [1], [0]]) / math.sqrt(3)
    along, across = v @ v.T, np.diag([1.0, 1, 1, 0])
    cross = np.pad(np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3), (0, 1))
    result = np.eye(4)
    if u[0] < p:
        result[:3, 3] += 0.2 * normal_of(u[1])
    if u[2] < p:
        result[:3] *= 2 ** (0.5 * normal_of(u[3]))
    if u[4] < p and u[5] >= 0.5:
        result = (np.eye(4) - 2 * along) @ result  # a mirror across the plane of no luma
    if u[6] < p:
        angle = (2 * u[7] - 1) * math.pi
        turn = across * math.cos(angle) + cross * math.sin(angle) + along * (1 - math.cos(angle))  # Rodrigues
        result = (turn + np.diag([0, 0, 0, 1.0])) @ result
    if u[8] < p:
        result = (along + (across - along) * 2 ** normal_of(u[9]) + np.diag([0, 0, 0, 1.0])) @ result
    return result


@pytest.mark.parametrize("p", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_the_colour_matrix_of_random_draws(p: float) -> None:
    draws = rows(100, NUM_DRAWS["ada"], seed=12).double()
    strengths, _ = _ada_strengths(draws, p, 1.0)
    for u, found in zip(draws.tolist(), _color_matrix(strengths[10:]).numpy()):
        np.testing.assert_allclose(found, recoloring(u[18:], p)[:3], rtol=1e-10, atol=1e-10)


def test_colours_apply_one_after_the_other() -> None:
    numbers = rows(3, NUM_DRAWS["ada"], seed=6).double()
    numbers[:, :18] = LAST
    numbers[:, 18::2] = 0  # all are done
    numbers[:, 23] = torch.tensor([0.2, 0.7, 0.8])
    for before, u in zip(batch(3).numpy(), numbers.tolist()):
        after = augment(torch.tensor(before)[None], torch.tensor([u], dtype=torch.float64), "ada", 0.5)[0].numpy()
        matrix = recoloring(u[18:], 0.5)[:3]
        expected = np.tensordot(matrix[:, :3], before, 1) + matrix[:, 3, None, None]
        assert np.allclose(after, expected, atol=1e-12)


def test_colours_come_after_movements_and_the_cutout_last() -> None:
    moved = {"scale": (uniform_of(1),), "slide": (0.3, 0.6)}
    together = done("ada-cutout", **moved, brightness=(uniform_of(1),), cutout=(0.2, 0.7))
    expected = done("ada-cutout", **moved) + 0.2
    expected[:, 4:8, 0:4] = 0
    assert np.allclose(together, expected, atol=1e-12)


# DiffAugment.


def test_colours_of_diffaugment() -> None:
    before = image()
    assert np.allclose(done("diffaugment", brightness=(0.9,)), before + 0.4, atol=1e-12)
    grey = before.mean(0, keepdims=True)
    assert np.allclose(done("diffaugment", saturation=(0.9,)), (before - grey) * 1.8 + grey, atol=1e-12)
    assert np.allclose(done("diffaugment", contrast=(0.9,)), (before - before.mean()) * 1.4 + before.mean(), atol=1e-12)


@pytest.mark.parametrize(("u", "shift"), [(0.0, -2), (0.3, -1), (0.5, 0), (0.7, 1), (LAST, 2)])
def test_translation_of_diffaugment_puts_zeros_behind(u: float, shift: int) -> None:
    wide = np.pad(image(16, torch.float32), ((0, 0), (4, 4), (4, 4)))
    after = done("diffaugment", 16, torch.float32, translation=(u, 0.5))
    assert np.array_equal(after, wide[:, 4:20, 4 - shift : 20 - shift])
    after = done("diffaugment", 16, torch.float32, translation=(0.7, u))
    assert np.array_equal(after, wide[:, 4 - shift : 20 - shift, 3:19])


def test_operations_of_diffaugment_apply_one_after_the_other() -> None:
    values = {"brightness": (0.2,), "saturation": (0.9,), "contrast": (0.1,), "translation": (0.9, 0.1)}
    x = image() + 0.2 - 0.5
    x = (x - luma(x)) * 1.8 + luma(x)
    x = (x - x.mean()) * 0.6 + x.mean()
    x = np.pad(x, ((0, 0), (0, 1), (1, 0)))[:, 1:, :-1]  # one to the right, one up
    x[:, 3:7, 0:3] = 0
    assert np.allclose(done("diffaugment", **values, cutout=(0.15, 0.6)), x, atol=1e-12)


@pytest.mark.parametrize("size", [8, 32, 33, 64])
def test_diffaugment_of_random_draws(size: int) -> None:
    """The formulas of Zhao et al., image by image, with whole numbers drawn as theirs are."""
    p, images, draws = 0.7, batch(40, size), rows(40, NUM_DRAWS["diffaugment"], seed=size).double()
    reach, side = math.floor(size / 8 + 0.5), math.floor(size / 2 + 0.5)
    for before, u, found in zip(images.numpy(), draws.tolist(), augment(images, draws, "diffaugment", p).numpy()):
        x = before + (u[1] - 0.5 if u[0] < p else 0)
        x = luma(x) + (x - luma(x)) * (2 * u[3] if u[2] < p else 1)
        x = x.mean() + (x - x.mean()) * (u[5] + 0.5 if u[4] < p else 1)
        if u[6] < p:
            right, down = (math.floor(v * (2 * reach + 1)) - reach for v in u[7:9])
            wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
            x = wide[:, reach - down : reach - down + size, reach - right : reach - right + size].copy()
        if u[9] < p:
            left, top = (math.floor(v * (size + 1 - side % 2)) - side // 2 for v in u[10:12])
            x[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


# Cutout.


def zeros(after: np.ndarray) -> tuple[set[int], set[int]]:
    """Rows and columns of the zeros, which must fill a rectangle."""
    found = (after == 0).all(0)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert found.sum() == len(rows) * len(columns)
    return set(rows.tolist()), set(columns.tolist())


@pytest.mark.parametrize(("u", "first"), [(0.0, -4), (0.3, 1), (0.5, 4), (LAST, 12)])
@pytest.mark.parametrize("pipe", PLACES)
def test_the_cutout_is_a_square_of_half_the_side(pipe: str, u: float, first: int) -> None:
    expected = set(range(max(first, 0), min(first + 8, 16)))
    assert zeros(done(pipe, 16, cutout=(u, 0.5))) == (set(range(4, 12)), expected)
    assert zeros(done(pipe, 16, cutout=(0.5, u))) == (expected, set(range(4, 12)))
    after = done(pipe, 16, cutout=(u, u))
    assert np.array_equal(after[after != 0], image(16)[after != 0])  # the rest is as it was


@pytest.mark.parametrize("size", [6, 7, 8])
def test_the_cutout_of_diffaugment_at_other_sizes(size: int) -> None:
    side = int(size / 2 + 0.5)
    choices = size + 1 - side % 2
    for k in range(choices):
        first = k - side // 2
        expected = set(range(max(first, 0), min(first + side, size)))
        assert zeros(done("diffaugment", size, cutout=((k + 0.5) / choices, 0.5)))[1] == expected


# Whatever the pipe.


@pytest.mark.parametrize("pipe", PIPES)
def test_an_image_comes_out_the_same_in_any_batch(pipe: str) -> None:
    images, draws = batch(19, 16, torch.float32), rows(19, NUM_DRAWS[pipe])
    together = augment(images, draws, pipe, 0.8)
    for i in range(19):
        assert torch.equal(augment(images[i : i + 1], draws[i : i + 1], pipe, 0.8), together[i : i + 1])
    some = torch.randperm(19, generator=torch.Generator().manual_seed(0))[:11]
    assert torch.equal(augment(images[some], draws[some], pipe, 0.8), together[some])


@pytest.mark.parametrize("pipe", PIPES)
def test_what_is_planned_for_many_images_does_the_same_to_parts_of_them(pipe: str) -> None:
    images, draws = batch(8, 16, torch.float32), rows(8, NUM_DRAWS[pipe])
    parts = zip(*(part.chunk(2) for part in plan(draws, pipe, (3, 16, 16), 0.8)))
    found = [apply_plan(part, planned, pipe) for part, planned in zip(images.chunk(2), parts)]
    assert torch.equal(torch.cat(found), augment(images, draws, pipe, 0.8))


@pytest.mark.parametrize("pipe", PIPES)
def test_derivatives_in_the_images(pipe: str) -> None:
    draws = rows(2, NUM_DRAWS[pipe], seed=3)

    def curved(images: Tensor) -> Tensor:
        return augment(images.sin(), draws, pipe, 1.0).square()

    images = batch(2).requires_grad_()
    assert torch.autograd.gradcheck(curved, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(curved, images, fast_mode=True)


@pytest.mark.parametrize("pipe", PIPES)
def test_all_kinds_of_float(pipe: str) -> None:
    draws = rows(8, NUM_DRAWS[pipe])
    exact = augment(batch(8, 16), draws, pipe, 0.8)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        after = augment(batch(8, 16, dtype), draws, pipe, 0.8)
        assert after.dtype == dtype
        assert torch.allclose(after.double(), exact, rtol=tolerance, atol=tolerance)
    plain = augment(batch(8, 16, torch.float32), draws, pipe, 0.8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(batch(8, 16, torch.float32), draws, pipe, 0.8), plain)


@pytest.mark.parametrize("pipe", PIPES)
def test_the_ends_of_what_is_drawn(pipe: str) -> None:
    draws = torch.full((66, NUM_DRAWS[pipe]), LAST)
    draws[0] = 0
    draws[1:65] = torch.where(rows(64, NUM_DRAWS[pipe]) < 0.5, 0, LAST)
    after = augment(batch(66, 16, torch.float32), draws, pipe)
    assert after.isfinite().all()
    assert after.shape == (66, 3, 16, 16)


# The controller.


def test_p_moves_by_the_images_seen() -> None:
    ada = Ada(target=0.6, speed_images=1000, p_max=0.8)
    for sign_mean, p in ((0.7, 0.1), (1.0, 0.2), (0.6, 0.2), (0.5, 0.1), (-1.0, 0.0), (-1.0, 0.0)):
        ada.update(sign_mean, 100)
        assert ada.p == pytest.approx(p)
    ada.update(0.7, 5000)
    assert ada.p == 0.8
    ada.update(float("nan"), 100)  # says nothing
    assert ada.p == 0.8


def test_the_state_of_the_controller() -> None:
    ada, other = Ada(speed_images=1000), Ada(speed_images=1000)
    for _ in range(7):
        ada.update(1.0, 64)
    other.load_state(ada.state())
    for one in (ada, other):
        one.update(0.0, 10)
    assert ada.p == other.p > 0
    lower = Ada(p_max=0.25)
    lower.load_state(ada.state())
    assert lower.p == 0.25


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_p_settles_where_the_sign_is_the_target(start: float) -> None:
    """A D that overfits less the more it is augmented, and follows slowly."""
    ada, sign = Ada(target=0.6, speed_images=50_000, p_max=1.0), 0.0
    ada.load_state({"p": start})
    found = []
    for _ in range(4000):
        sign += 0.2 * ((0.9 - 0.6 * ada.p) - sign)
        ada.update(sign, 64)
        found.append(ada.p)
    assert np.allclose(found[-1000:], 0.5, atol=0.01)
