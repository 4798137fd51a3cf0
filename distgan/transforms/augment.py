"""Differentiable augmentation of the images that D sees, real and fake alike.

No random number is drawn here: each image comes with a row of uniform numbers, so its augmentation does not depend on
rank, batch or micro-batch. An operation is applied to an image where the operation's own number is below p.

`plan` computes all that has no gradient, for any number of images in the same few calls, since a call costs a GPU more
than these small tensors do: whether an operation is applied, matrices, positions. `apply_plan` changes the pixels. What
is small is float64, because libraries differ in the last bits of a cosine or of a sum, and rounding to the images' type
absorbs that. All arithmetic on pixels is elementwise, a gather or a sum of four: the result for an image is the same,
bit by bit, alone and in a batch, and autocast and TF32 have nothing to round.

`torch.nn.functional.grid_sample` is not used: torch 2.13 has the second derivative that R1 needs but older versions did
not (pytorch issue 34704), and its gradient on CUDA has no deterministic form. A gather has both everywhere.

Geometry changes all channels; operations on color are for three of them, have a form for one, and are brightness and
contrast alone for others. Sides may differ: distances are in pixels in both directions, shares are of each side.

Sources: Zhao et al. 2020 (DiffAugment), section 4 and appendix; Karras et al. 2020 (ADA), section 3 and appendix B.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Plan = tuple[Tensor, ...]  # what a pipe does to each image, [B, ...] each, by the pipe


class PlanOptions(NamedTuple):
    """What a pipe's plan depends on beside its random numbers; see `plan`."""

    shape: tuple[int, int, int]
    p: Tensor | float = 1.0
    color: float = 1.0
    dtype: torch.dtype = torch.float32
    alpha: bool = False

    @property
    def size(self) -> "Size":
        return Size(*self.shape[1:])

    @property
    def num_colors(self) -> int:
        return self.shape[0] - self.alpha


class Augmentation(NamedTuple):
    """An entry of `AUGMENTATIONS`. Each image is changed by its own numbers alone; with p = 0 none is.

    Attributes:
        num_draws: Uniform numbers that an image needs.
        plan: (draws [B, num_draws], options) -> what to do to each image, tensors [B, ...]; nothing with a gradient.
        apply: (images [B, C, H, W] in float32 or float64, plan, alpha) -> images of the same shape; twice
            differentiable.
    """

    num_draws: int
    plan: Callable[[Tensor, PlanOptions], Plan]
    apply: Callable[[Tensor, Plan, bool], Tensor]


def augment(
    images: Tensor, draws: Tensor, pipe: str, p: Tensor | float = 1.0, color: float = 1.0, alpha: bool = False
) -> Tensor:
    """Return augmented images for D; twice differentiable in `images`, with the same shape and type.

    Args:
        images: In about -1..1; [B, C, H, W].
        draws, pipe, p, color, alpha: As for `plan`.
    """
    return apply_plan(images, plan(draws, pipe, images.shape[1:], p, color, images.dtype, alpha), pipe, alpha)


def plan(
    draws: Tensor,
    pipe: str,
    shape: Sequence[int],
    p: Tensor | float = 1.0,
    color: float = 1.0,
    dtype: torch.dtype = torch.float32,
    alpha: bool = False,
) -> Plan:
    """Return what will be done to images of a shape (C, H, W), [B, ...] each: parts of a batch take their rows.

    Args:
        draws: In [0, 1), on a grid of 2^-24 as `device_rng.uniform` makes them; float32 or float64 [B,
            num_draws].
        pipe: A key of `AUGMENTATIONS`. "flip" mirrors half of the images where p = 1, "diffaugment" is all of Zhao et
            al., "ada" is the pipe that Karras et al. call bgc, "ada-cutout" adds their cutout.
        p: Probability of each operation, 0..1. The host does not wait for the value of a tensor of no dimensions. With
            0 the images are returned unchanged.
        color: Operations on color have `color` times the probability p; 0.5 in R3GAN (Huang et al. 2024).
        dtype: Of the images.
        alpha: Whether the last channel is transparency. It moves with the colors, and what is cut out or comes from
            outside of an image is zero in it too, half transparent; operations on color leave it alone.
    """
    kind = AUGMENTATIONS[pipe]
    assert draws.shape[1] == kind.num_draws, f"{tuple(draws.shape)} draws for {pipe}"
    assert draws.dtype in (torch.float32, torch.float64), f"{draws.dtype} is too coarse to draw in"
    channels, height, width = shape
    dtype = torch.promote_types(dtype, torch.float32)
    return kind.plan(draws, PlanOptions((channels, height, width), p, color, dtype, alpha))


def apply_plan(images: Tensor, planned: Plan, pipe: str, alpha: bool = False) -> Tensor:
    """Return images [B, C, H, W] augmented as `plan` decided; the same shape and type."""
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    return AUGMENTATIONS[pipe].apply(x, planned, alpha).to(images.dtype)


def _plan_flip(draws: Tensor, options: PlanOptions) -> Plan:
    return (draws < options.p / 2,)


def _flip(x: Tensor, planned: Plan, alpha: bool) -> Tensor:
    (is_mirrored,) = planned
    return torch.where(is_mirrored[:, :, None, None], x.flip(3), x)


def _plan_diffaugment(draws: Tensor, options: PlanOptions) -> Plan:
    p, size = options.p, options.size
    return (
        _jitter_strengths(draws[:, :6], p * options.color).to(options.dtype),
        *_translation(draws[:, 6:9], p, size),
        _whole_rectangle(draws[:, 9:], p, size),
    )


def _diffaugment(x: Tensor, planned: Plan, alpha: bool) -> Tensor:
    strengths, index, is_outside, is_cut = planned
    x = _of_colors(x, alpha, _jitter, strengths)
    x = _pixels(x, index).masked_fill(is_outside[:, None], 0.0)
    return x.masked_fill(is_cut[:, None], 0.0)


def _plan_ada(draws: Tensor, options: PlanOptions) -> Plan:
    size = options.size
    strengths, is_general = _ada_strengths(draws, options.p, options.color, is_square=size.height == size.width)
    inverse = _inverse_map(strengths[:10], size).to(options.dtype)
    matrix = _color_matrix(strengths[10:], options.num_colors).to(options.dtype)
    return (*_neighbors(inverse, size), is_general, matrix)


def _ada(x: Tensor, planned: Plan, alpha: bool) -> Tensor:
    index, weights, is_general, matrix = planned
    return _of_colors(_move(x, index, weights, is_general), alpha, _recolor, matrix)


def _plan_ada_cutout(draws: Tensor, options: PlanOptions) -> Plan:
    return (*_plan_ada(draws, options), _rectangle(draws[:, 28:], options.p, options.size))


def _ada_cutout(x: Tensor, planned: Plan, alpha: bool) -> Tensor:
    *of_ada, is_cut = planned
    return _ada(x, tuple(of_ada), alpha).masked_fill(is_cut[:, None], 0.0)


def _of_colors(images: Tensor, alpha: bool, change: Callable[[Tensor, Tensor], Tensor], how: Tensor) -> Tensor:
    """Change the channels of color; transparency stays as it is."""
    return torch.cat([change(images[:, :-1], how), images[:, -1:]], 1) if alpha else change(images, how)


# ADA.


def _ada_strengths(draws: Tensor, p: Tensor | float, color: float, is_square: bool = True) -> tuple[Tensor, Tensor]:
    """Return how strong each operation of ADA is, 0 where it is not applied, and whether pixels leave the grid.

    These are float64 [15, B], in the order below, and bool [B]. Angles are in half turns; what is uniform otherwise is
    in -1..1; what is normal has a variance of 1. The probability of each rotation is such that at least one of the two
    is applied with probability p. Where images are no squares, quarter turns are half turns in a half of the cases.
    """
    by_p, by_rotation, by_color = ((draws < chance).unbind(1) for chance in (p, 1 - (1 - p) ** 0.5, p * color))
    twice = 2 * draws.double()
    spread = twice - 1
    # By the inverse of the distribution function. Half a step of the grid is added, so that 0 gives no infinity and the
    # ends are as far from 0: they are +-5.42.
    normal = (math.sqrt(2) * torch.erfinv(spread + 2**-24)).unbind(1)
    half, uniform = twice.floor().unbind(1), spread.unbind(1)
    quarters = (2 * twice[:, 3]).floor() / 2 if is_square else half[3]
    operations = [
        (by_p[0], half[1]),  # mirrored
        (by_p[4], uniform[5]),  # shifted by whole pixels, x
        (by_p[4], uniform[6]),  # and y
        (by_p[2], quarters),  # turned by quarters
        (by_rotation[9], uniform[10]),  # rotated first
        (by_rotation[13], uniform[14]),  # rotated second
        (by_p[7], normal[8]),  # scaled
        (by_p[11], normal[12]),  # stretched
        (by_p[15], normal[16]),  # shifted, x
        (by_p[15], normal[17]),  # and y
        (by_color[18], normal[19]),  # brightness
        (by_color[20], normal[21]),  # contrast
        (by_color[22], half[23]),  # luma flipped
        (by_color[24], uniform[25]),  # hue
        (by_color[26], normal[27]),  # saturation
    ]
    is_applied = torch.stack([applied for applied, _ in operations])
    return torch.stack([value for _, value in operations]) * is_applied, is_applied[4:10].any(0)


def _recolor(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply a color matrix, or a gain and an offset, to each image; as `_color_matrix` returns them."""
    if matrix.shape[2] == 2:
        gain, offset = matrix[..., None, None].unbind(2)
        return images * gain + offset
    matrix = matrix[
        ..., None, None
    ]  # a matrix product would round in bf16 under autocast, and in TF32 where that is on
    r, g, b = (images[:, None] * matrix[:, :, :3]).unbind(2)
    return r + g + b + matrix[:, :, 3]


def _color_matrix(strengths: Tensor, num_colors: int = 3) -> Tensor:
    """Return the color matrices [linear | offset], [B, 3, 4] float64 (Karras et al. 2020, appendix B, in its order).

    For other numbers of channels it is [gain | offset], [B, 1, 2]. One channel gets what three equal ones would on
    average: hue and saturation leave it as it is. More have no luma and no hue: brightness and contrast change alone.

    Brightness adds N(0, 0.2^2) and contrast multiplies by 2^N(0, 0.5^2). The rest is about the axis of greys, v =
    (1, 1, 1) / sqrt(3): the luma flip mirrors the component along v in half of the images, hue turns the others about v
    by any angle, saturation scales them by 2^N(0, 1). These commute, so that with P the projection on v and K the cross
    product with v the product of all is  contrast * (flip * P + saturation * (cos * (1 - P) + sin * K)).
    """
    brightness, contrast, is_flipped, hue, saturation = strengths.unbind(0)
    flip, angle = 1 - 2 * is_flipped, hue * math.pi
    contrast, saturation = torch.exp2(0.5 * contrast), torch.exp2(saturation)
    if num_colors != 3:
        gain = contrast * flip if num_colors == 1 else contrast
        return torch.stack([gain, gain * (0.2 * brightness)], 1)[:, None]
    along, across = saturation * torch.cos(angle), saturation * torch.sin(angle) / math.sqrt(3)
    rest = (flip - along) / 3  # each entry of P is 1/3; this order makes the matrix exactly 1 where nothing is applied
    same, before, after, offset = along + rest, rest - across, rest + across, flip * (0.2 * brightness)
    rows = [same, before, after, offset, after, same, before, offset, before, after, same, offset]
    return torch.stack(rows, 1).view(-1, 3, 4) * contrast[:, None, None]


# Geometry. A position is (column, row) in pixels from the middle of the image, the row growing downwards.


class Size(NamedTuple):
    """Sides of images, in pixels."""

    height: int
    width: int


def _by_axis(x: float, y: float, like: Tensor, dims: int) -> Tensor | float:
    """Return a number for columns and one for rows, [2, 1 ...] of `dims` dimensions; or the number that is both's.

    They are made on the device, since the host waits for a copy.
    """
    if x == y:
        return x
    return torch.linspace(x, y, 2, device=like.device, dtype=like.dtype).view(2, *[1] * (dims - 1))


def _inverse_map(strengths: Tensor, size: Size) -> Tensor:
    """Return the map of positions in the result to positions in the source, [linear | offset], [B, 2, 3] float64.

    Karras et al. 2020, appendix B: an image is mirrored (in half of the cases), turned by 0 to 3 quarters, shifted by
    whole pixels up to 1/8 of its side, scaled by 2^N(0, 0.2^2), rotated by any angle, stretched by 2^N(0, 0.2^2) along
    x and its inverse along y, rotated by any angle, and shifted by N(0, 1/8^2) of its side. The inverses apply from the
    last to the first.
    """
    eighths = _by_axis(size.width / 8, size.height / 8, strengths, 2)
    angles = strengths[3:6] * math.pi
    cos, sin = torch.cos(angles), torch.sin(angles)
    turn, first, second = torch.stack([cos, sin, -sin, cos], 2).unflatten(2, (2, 2))  # from the y axis to the x axis
    scale, stretch = torch.exp2(-0.2 * strengths[6:8])
    shift = (strengths[1:3] * eighths).round().T
    slide = (strengths[8:10] * eighths).T

    mirror = torch.stack([1 - 2 * strengths[0], torch.ones_like(scale)], 1)
    pixels = mirror[:, :, None] * turn.round()  # round: cos(pi / 2) is not quite 0
    general = pixels @ (first * torch.stack([scale * stretch, scale / stretch], 1)[:, None]) @ second
    offset = general @ slide[..., None] + pixels @ shift[..., None]
    return torch.cat([general, -offset], 2)


def _neighbors(inverse: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return what is read for each position of the fine grid: pixels of the source, and their weights; [B, 4, H, W].

    The fine grid is half a pixel dense, from one pixel before the first to one after the last. Pixels are counted row
    by row. They are the four around the position, where the source is continued by its mirror image.
    """
    height, width = size
    x = _fine_grid(width, inverse)
    y = x if height == width else _fine_grid(height, inverse)
    last = _by_axis(width - 1.0, height - 1.0, inverse, 3)
    m = inverse[..., None, None]  # [B, 2, 3, 1, 1]
    position = _reflected(m[:, :, 0] * x + m[:, :, 1] * y[:, None] + (m[:, :, 2] + last / 2), last)  # [B, 2, H, W]
    first = torch.clamp(position.floor(), max=last - 1)  # there is a pixel after each
    near = first[:, :, None] + torch.arange(2, device=x.device)[:, None, None]  # [B, 2, 2, H, W]: columns, rows
    columns, rows = near.unbind(1)
    right, down = (1 - (position[:, :, None] - near).abs()).unbind(1)
    index, weights = rows[:, :, None] * width + columns[:, None], down[:, :, None] * right[:, None]
    return index.long().flatten(1, 2), weights.flatten(1, 2)


def _fine_grid(size: int, like: Tensor) -> Tensor:
    """Return the positions of the fine grid along one side, from the middle of the image."""
    middle = (size - 1) / 2
    return torch.linspace(-1 - middle, size - middle, 2 * size + 3, device=like.device, dtype=like.dtype)


def _reflected(position: Tensor, last: Tensor | float) -> Tensor:
    """Mirror positions about the middles of the first and the last pixel until they are in 0..last."""
    period = 2 * last
    turns = (position / period).round()
    if isinstance(period, Tensor):
        return torch.addcmul(position, turns, period, value=-1).abs()
    return torch.add(position, turns, alpha=-period).abs()


def _move(images: Tensor, index: Tensor, weights: Tensor, is_general: Tensor) -> Tensor:
    """Apply all geometric operations of ADA by one resampling. Outside an image is its mirror image.

    The source is read between its pixels by linear interpolation, at twice the density of the result, and reduced by
    the low-pass (-1, 2, 6, 2, -1) / 8 of Le Gall and Tabatabai 1988. Nothing is lost on whole pixels; a shift by half a
    pixel is (-1, 9, 9, -1) / 16, which is cubic interpolation, where linear alone would blur. The doubled density
    weakens the aliasing of images that shrink, but does not remove it: half-way to the fine grid's limit the low-pass
    still passes everything. The wavelet of Karras et al. (sym6, 12 taps each way) is sharper; the loss of either filter
    is the same for real images and fakes.
    """
    # [B, C, 2H + 3, 2W + 3]; of four numbers, each in a plane of its own, a sum has one order, whatever the batch
    fine = (_pixels(images, index) * weights[:, None]).sum(2)
    low = _halved(_halved(fine).mT).mT
    # The low-pass reproduces pixels that lie on pixels up to rounding: use the exact ones.
    return torch.where(is_general[:, None, None, None], low, fine[:, :, 2:-2:2, 2:-2:2])


def _pixels(images: Tensor, index: Tensor) -> Tensor:
    """Gather pixels by row * W + column: int64 [B, ...] -> [B, C, ...]."""
    index = index[:, None].expand(-1, images.shape[1], *index.shape[1:])
    return images.flatten(2).gather(2, index.flatten(2)).view(index.shape)


def _halved(fine: Tensor) -> Tensor:
    """Apply the low-pass along the last dimension and keep every second number: [..., 2W + 3] -> [..., W]."""
    if fine.device.type == "cpu":
        size = fine.shape[-1] - 4
        a, b, c, d, e = (fine[..., i : i + size : 2] for i in range(5))
    else:  # the same views; their gradient takes few kernels, but longer on a CPU
        a, b, c, d, e = fine.unfold(-1, 5, 2).unbind(-1)
    return torch.add(torch.add(0.75 * c, b + d, alpha=0.25), a + e, alpha=-0.125)


# DiffAugment.


def _jitter_strengths(draws: Tensor, p: Tensor | float) -> Tensor:
    """Return how much brightness, saturation and contrast change, 0 where they do not; float64 [B, 3].

    Brightness adds -0.5..0.5. Saturation scales a pixel's distance from its gray, which is the mean of its channels, by
    0..2; contrast scales the distance from the mean of the image by 0.5..1.5: of these it is the factor minus one.
    """
    brightness, saturation, contrast = (2 * draws[:, 1::2].double() - 1).unbind(1)
    return torch.stack([brightness / 2, saturation, contrast / 2], 1) * (draws[:, ::2] < p)


def _jitter(images: Tensor, strengths: Tensor) -> Tensor:
    """Change brightness, then saturation, then contrast; 0 leaves an image unchanged, bit by bit.

    Saturation is of three channels alone: one has none, and others have no gray.
    """
    brightness, saturation, contrast = strengths[..., None, None, None].unbind(1)
    x = images + brightness
    if images.shape[1] == 3:
        r, g, b = x.split(1, 1)
        x = x + (x - (r + g + b) / 3) * saturation
    mean = x.mean((1, 2, 3), keepdim=True, dtype=torch.float64).to(x.dtype)  # the order of a sum depends on the batch
    return x + (x - mean) * contrast


def _translation(draws: Tensor, p: Tensor | float, size: Size) -> tuple[Tensor, Tensor]:
    """Translate by whole pixels up to 1/8 of each side both ways, filled with zeros (mid-gray).

    Returns the pixel to read for each place, row * W + column, and whether it is outside of the image; [B, H, W].
    """
    chosen = draws[:, 0] < p
    (top, is_outside_y), (left, is_outside_x) = (
        _shifted(draws[:, 2 - axis], chosen, side) for axis, side in enumerate(size)
    )
    return top[:, :, None] * size.width + left[:, None], is_outside_y[:, :, None] | is_outside_x[:, None]


def _shifted(u: Tensor, chosen: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the pixel to read for each place along one side, and whether it is outside of the image; [B, side]."""
    limit = int(side / 8 + 0.5)
    shift = (_whole(u, 2 * limit + 1) - limit) * chosen
    position = torch.arange(side, device=u.device) - shift.long()[:, None]
    inside = position.clamp(0, side - 1)
    return inside, inside != position


def _whole(u: Tensor, n: int) -> Tensor:
    """Return numbers that are uniform among 0, 1, ..., n - 1. In float32 the product may round up to n."""
    return (u.double() * n).floor()


# Cutout: half of each side, set to zero (mid-gray) in all channels.


def _whole_rectangle(draws: Tensor, p: Tensor | float, size: Size) -> Tensor:
    """Return the pixels that DiffAugment cuts out, around any pixel, or a pixel corner where half a side is even."""

    def center(u: Tensor, side: int) -> Tensor:
        odd = _half(side) % 2
        return _whole(u, side + 1 - odd) + odd / 2

    rows, columns = (
        _is_in_stretch(center(draws[:, 2 - axis], side), _half(side), side) for axis, side in enumerate(size)
    )
    return rows[:, :, None] & (columns & (draws[:, :1] < p))[:, None]


def _half(side: int) -> int:
    return int(side / 2 + 0.5)


def _rectangle(draws: Tensor, p: Tensor | float, size: Size) -> Tensor:
    """Return the pixels that ADA cuts out, around any position."""
    rows, columns = (
        _is_in_stretch(draws[:, 2 - axis].double() * side, side / 2, side) for axis, side in enumerate(size)
    )
    return rows[:, :, None] & (columns & (draws[:, :1] < p))[:, None]


def _is_in_stretch(center: Tensor, length: float, side: int) -> Tensor:
    """Return which pixels' middles along one side are in a stretch around a center, [B]; it may reach over the border.

    Positions are in pixels from the left or upper edge. Returns bool [B, side].
    """
    distance = torch.arange(side, device=center.device) + 0.5 - center[:, None] + length / 2
    return (distance >= 0) & (distance < length)


# Numbers of an image: for each operation the one that decides whether it is applied, then its values.
# flip: 1, which decides and is the value.
# diffaugment: brightness 2, saturation 2, contrast 2, translation 3 (x, y), cutout 3 (x, y).
# ada: flip 2, quarter turns 2, whole-pixel translation 3, scaling 2, first rotation 2, stretching 2, second rotation 2,
# translation 3; then brightness 2, contrast 2, luma flip 2, hue 2, saturation 2. ada-cutout: these, then cutout 3.
AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": Augmentation(1, _plan_flip, _flip),
    "diffaugment": Augmentation(12, _plan_diffaugment, _diffaugment),
    "ada": Augmentation(28, _plan_ada, _ada),
    "ada-cutout": Augmentation(31, _plan_ada_cutout, _ada_cutout),
}
