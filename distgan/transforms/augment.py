"""Differentiable augmentation of the images that D sees, real and fake alike, and the controller of its probability.

No random number is drawn here: each image comes with a row of uniform numbers, so its augmentation does not depend on
rank, batch or micro-batch. An operation is applied to an image where the operation's own number is below p. Sampling
positions and color matrices are computed in float64, because libraries differ in the last bits of a cosine or of a sum,
and rounding to the images' type absorbs that. All arithmetic on pixels is elementwise or a gather: the result for an
image is the same, bit by bit, alone and in a batch, and autocast and TF32 have nothing to round.

`torch.nn.functional.grid_sample` is not used: torch 2.13 has the second derivative that R1 needs but older versions did
not (pytorch issue 34704), and its gradient on CUDA has no deterministic form. A gather has both everywhere.

Sources: Zhao et al. 2020 (DiffAugment), section 4 and appendix; Karras et al. 2020 (ADA), section 3 and appendix B.
"""

import math

import torch
from torch import Tensor

# Uniform numbers per image, by pipe: for each operation the one that decides whether it is applied, then its values.
# flip: 1, which decides and is the value.
# diffaugment: brightness 2, saturation 2, contrast 2, translation 3 (x, y), cutout 3 (x, y).
# ada: flip 2, quarter turns 2, whole-pixel translation 3, scaling 2, first rotation 2, stretching 2, second rotation 2,
# translation 3; then brightness 2, contrast 2, luma flip 2, hue 2, saturation 2. ada-cutout: these, then cutout 3.
NUM_DRAWS: dict[str, int] = {"flip": 1, "diffaugment": 12, "ada": 28, "ada-cutout": 31}


def augment(images: Tensor, draws: Tensor, pipe: str, p: Tensor | float = 1.0, color: float = 1.0) -> Tensor:
    """Return augmented images for D; twice differentiable in `images`, with the same shape and type.

    Args:
        images: In about -1..1; [B, 3, R, R].
        draws: In [0, 1), on a grid of 2^-24 as `device_rng.uniform` makes them; float32 or float64 [B,
            NUM_DRAWS[pipe]].
        pipe: A key of `NUM_DRAWS`. "flip" mirrors half of the images where p = 1, "diffaugment" is all of Zhao et al.,
            "ada" is the pipe that Karras et al. call bgc, "ada-cutout" adds their cutout.
        p: Probability of each operation, 0..1. The host does not wait for the value of a tensor of no dimensions. With
            0 the images are returned unchanged.
        color: Operations on color have `color` times the probability p; 0.5 in R3GAN (Huang et al. 2024).
    """
    assert draws.shape == (len(images), NUM_DRAWS[pipe]), f"{tuple(draws.shape)} draws for {pipe}"
    assert draws.dtype in (torch.float32, torch.float64), f"{draws.dtype} is too coarse to draw in"
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    if pipe == "flip":
        x = torch.where(draws[:, :, None, None] < p / 2, x.flip(3), x)
    elif pipe == "diffaugment":
        x = _jitter(x, draws[:, :6], p * color)
        x = _translate(x, draws[:, 6:9], p)
        x = _cut_out_whole(x, draws[:, 9:], p)
    else:
        x = _move(x, draws[:, :18], p)
        x = _recolor(x, draws[:, 18:28], p * color)
        if pipe == "ada-cutout":
            x = _cut_out(x, draws[:, 28:], p)
    return x.to(images.dtype)


# Distributions. All of these map uniform numbers, [B] in [0, 1), to float64 [B].


def _spread(u: Tensor, limit: float) -> Tensor:
    """Return numbers that are uniform in -limit..limit."""
    return (2 * u.double() - 1) * limit


def _whole(u: Tensor, n: int) -> Tensor:
    """Return numbers that are uniform among 0, 1, ..., n - 1. In float32 the product may round up to n."""
    return (u.double() * n).floor()


def _normal(u: Tensor) -> Tensor:
    """Return standard normal numbers, by the inverse of the distribution function.

    Half a step of the grid is added, so that 0 gives no infinity and the ends are as far from 0: they are +-5.42.
    """
    return torch.erfinv(2 * (u.double() + 2**-25) - 1) * math.sqrt(2)


# Color.


def _jitter(images: Tensor, draws: Tensor, p: Tensor | float) -> Tensor:
    """Change brightness, then saturation, then contrast, as DiffAugment does.

    Brightness adds -0.5..0.5. Saturation scales a pixel's distance from its gray, which is the mean of its channels, by
    0..2; contrast scales the distance from the mean of the image by 0.5..1.5. Both are computed with the factor minus
    one, which leaves an image whose factor is 1 unchanged, bit by bit.
    """
    brightness_at, brightness, saturation_at, saturation, contrast_at, contrast = draws.unbind(1)
    shift = torch.where(brightness_at < p, _spread(brightness, 0.5), 0.0)
    saturate = torch.where(saturation_at < p, _spread(saturation, 1), 0.0)
    contrast = torch.where(contrast_at < p, _spread(contrast, 0.5), 0.0)
    shift, saturate, contrast = torch.stack([shift, saturate, contrast]).to(images.dtype)[..., None, None, None]
    x = images + shift
    r, g, b = x.split(1, 1)
    x = x + (x - (r + g + b) / 3) * saturate
    mean = x.mean((1, 2, 3), keepdim=True, dtype=torch.float64).to(x.dtype)  # the order of a sum depends on the batch
    return x + (x - mean) * contrast


def _recolor(images: Tensor, draws: Tensor, p: Tensor | float) -> Tensor:
    """Apply ADA's brightness, contrast, luma flip, hue rotation and saturation, as one matrix for each image."""
    matrix = _colour_matrix(draws, p).to(images.dtype)[..., None, None]  # [B, 3, 4, 1, 1]
    r, g, b = images.split(1, 1)  # a matrix product would round in bf16 under autocast, and in TF32 where that is on
    return r * matrix[:, :, 0] + g * matrix[:, :, 1] + b * matrix[:, :, 2] + matrix[:, :, 3]


def _colour_matrix(draws: Tensor, p: Tensor | float) -> Tensor:
    """Return the color matrices [linear | offset], [B, 3, 4] float64 (Karras et al. 2020, appendix B, in its order).

    Brightness adds N(0, 0.2^2) and contrast multiplies by 2^N(0, 0.5^2). The rest is about the axis of greys, v =
    (1, 1, 1) / sqrt(3): the luma flip mirrors the component along v in half of the images, hue turns the others about v
    by any angle, saturation scales them by 2^N(0, 1). These commute, so that with P the projection on v and K the cross
    product with v the product of all is  contrast * (flip * P + saturation * (cos * (1 - P) + sin * K)).
    """
    brightness_at, brightness, contrast_at, contrast, flip_at, flip, hue_at, hue, saturation_at, saturation = (
        draws.unbind(1)
    )
    brightness = torch.where(brightness_at < p, 0.2 * _normal(brightness), 0.0)
    contrast = torch.where(contrast_at < p, torch.exp2(0.5 * _normal(contrast)), 1.0)
    flip = torch.where((flip_at < p) & (flip >= 0.5), -torch.ones_like(contrast), 1.0)
    angle = torch.where(hue_at < p, _spread(hue, math.pi), 0.0)
    saturation = torch.where(saturation_at < p, torch.exp2(_normal(saturation)), 1.0)

    along, across = saturation * torch.cos(angle), saturation * torch.sin(angle) / math.sqrt(3)
    rest = (flip - along) / 3  # each entry of P is 1/3; this order makes the matrix exactly 1 where nothing is applied
    rows = [
        torch.stack([along + rest, rest - across, rest + across, flip * brightness], 1),
        torch.stack([rest + across, along + rest, rest - across, flip * brightness], 1),
        torch.stack([rest - across, rest + across, along + rest, flip * brightness], 1),
    ]
    return contrast[:, None, None] * torch.stack(rows, 1)


# Geometry. A position is (column, row) in pixels from the middle of the image, the row growing downwards.


def _move(images: Tensor, draws: Tensor, p: Tensor | float) -> Tensor:
    """Apply all geometric operations of ADA by one resampling. Outside an image is its mirror image.

    The source is read between its pixels by linear interpolation, at twice the density of the result, and reduced by
    the low-pass (-1, 2, 6, 2, -1) / 8 of Le Gall and Tabatabai 1988. Nothing is lost on whole pixels; a shift by half a
    pixel is (-1, 9, 9, -1) / 16, which is cubic interpolation, where linear alone would blur. The doubled density
    weakens the aliasing of images that shrink, but does not remove it: half-way to the fine grid's limit the low-pass
    still passes everything. The wavelet of Karras et al. (sym6, 12 taps each way) is sharper; the loss of either filter
    is the same for real images and fakes.
    """
    size, middle = images.shape[-1], (images.shape[-1] - 1) / 2
    inverse, is_whole = _inverse_map(draws, p, size)
    m = inverse.to(images.dtype)[..., None, None]  # [B, 2, 3, 1, 1]
    # Positions of the fine grid: half a pixel apart, from one pixel before the first to one after the last.
    x = torch.arange(-2, 2 * size + 1, device=images.device, dtype=images.dtype) / 2 - middle
    columns, rows = (m[:, i, 0] * x + m[:, i, 1] * x[:, None] + (m[:, i, 2] + middle) for i in (0, 1))
    fine = _between(images, rows, columns)  # [B, 3, 2R + 3, 2R + 3]
    low = _halved(_halved(fine).mT).mT
    # The low-pass reproduces pixels that lie on pixels up to rounding: use the exact ones.
    return torch.where(is_whole[:, None, None, None], fine[:, :, 2:-2:2, 2:-2:2], low)


def _inverse_map(draws: Tensor, p: Tensor | float, size: int) -> tuple[Tensor, Tensor]:
    """Return the map of positions in the result to positions in the source, and whether it maps pixels to pixels.

    These are [linear | offset], [B, 2, 3] float64, and bool [B]; Karras et al. 2020, appendix B. An image is mirrored
    (in half of the cases), turned by 0 to 3 quarters, shifted by whole pixels up to 1/8 of its side, scaled by 2^N(0,
    0.2^2), rotated by any angle, stretched by 2^N(0, 0.2^2) along x and its inverse along y, rotated by any angle, and
    shifted by N(0, 1/8^2) of its side. The inverses apply from the last to the first. The probability of each rotation
    is such that at least one of the two happens with probability p.
    """
    flip_at, flip, turn_at, turn, shift_at, shift_x, shift_y, scale_at, scale = draws[:, :9].unbind(1)
    first_at, first, stretch_at, stretch, second_at, second, slide_at, slide_x, slide_y = draws[:, 9:].unbind(1)
    p_rotation = 1 - (1 - p) ** 0.5
    one = torch.ones_like(flip, dtype=torch.float64)

    flip = torch.where((flip_at < p) & (flip >= 0.5), -one, one)
    turn = torch.where(turn_at < p, _whole(turn, 4) * (math.pi / 2), 0.0)
    pixels = _diagonal(flip, one) @ _rotation(-turn).round()  # round: cos(pi / 2) is not quite 0
    shift = torch.stack([_spread(shift_x, size / 8), _spread(shift_y, size / 8)], 1).round()
    shift = torch.where((shift_at < p)[:, None], shift, 0.0)

    scale = torch.where(scale_at < p, torch.exp2(-0.2 * _normal(scale)), 1.0)
    first = torch.where(first_at < p_rotation, _spread(first, math.pi), 0.0)
    stretch = torch.where(stretch_at < p, torch.exp2(-0.2 * _normal(stretch)), 1.0)
    second = torch.where(second_at < p_rotation, _spread(second, math.pi), 0.0)
    general = _rotation(-first) @ _diagonal(scale * stretch, scale / stretch) @ _rotation(-second)
    slide = torch.stack([_normal(slide_x), _normal(slide_y)], 1) * (size / 8)
    slide = torch.where((slide_at < p)[:, None], slide, 0.0)

    is_general = (scale_at < p) | (first_at < p_rotation) | (stretch_at < p) | (second_at < p_rotation) | (slide_at < p)
    offset = -pixels @ (general @ slide[..., None] + shift[..., None])
    return torch.cat([pixels @ general, offset], 2), ~is_general


def _rotation(angle: Tensor) -> Tensor:
    """Return rotations from the x axis to the y axis, [B, 2, 2]: clockwise, as rows grow downwards."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y], 1))


def _between(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate linearly at any positions, counted in pixels from the first pixel's middle; [B, H, W] each."""
    size = images.shape[-1]
    rows, columns = _reflected(rows, size), _reflected(columns, size)
    top, left = rows.floor().clamp(max=size - 2), columns.floor().clamp(max=size - 2)  # there is a pixel after each
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    index = top.long() * size + left.long()
    above = _pixels(images, index) * (1 - right) + _pixels(images, index + 1) * right
    below = _pixels(images, index + size) * (1 - right) + _pixels(images, index + size + 1) * right
    return above * (1 - down) + below * down


def _reflected(position: Tensor, size: int) -> Tensor:
    """Mirror positions about the middles of the first and the last pixel until they are in 0..size - 1."""
    position = position.remainder(2 * (size - 1))
    return torch.minimum(position, 2 * (size - 1) - position)


def _pixels(images: Tensor, index: Tensor) -> Tensor:
    """Gather pixels by row * R + column: int64 [B, H, W] -> [B, 3, H, W]."""
    index = index[:, None].expand(-1, images.shape[1], -1, -1)
    return images.flatten(2).gather(2, index.flatten(2)).view(index.shape)


def _halved(fine: Tensor) -> Tensor:
    """Apply the low-pass along the last dimension and keep every second number: [..., 2R + 3] -> [..., R]."""
    even, odd = fine[..., ::2], fine[..., 1::2]
    return even[..., 1:-1] * 0.75 + (odd[..., :-1] + odd[..., 1:]) * 0.25 - (even[..., :-2] + even[..., 2:]) * 0.125


def _translate(images: Tensor, draws: Tensor, p: Tensor | float) -> Tensor:
    """Translate as DiffAugment does: by whole pixels up to 1/8 of the side each way, filled with zeros (mid-gray)."""
    size, (at, x, y) = images.shape[-1], draws.unbind(1)
    limit = int(size / 8 + 0.5)
    shift = torch.stack([_whole(x, 2 * limit + 1), _whole(y, 2 * limit + 1)]) - limit
    shift = torch.where(at < p, shift, 0.0).long()
    columns, rows = torch.arange(size, device=images.device) - shift[..., None]  # [B, R] each
    is_inside = _is_within(rows, size)[:, :, None] & _is_within(columns, size)[:, None]
    index = rows.clamp(0, size - 1)[:, :, None] * size + columns.clamp(0, size - 1)[:, None]
    return torch.where(is_inside[:, None], _pixels(images, index), 0.0)


def _is_within(position: Tensor, size: float) -> Tensor:
    return (position >= 0) & (position < size)


# Cutout.


def _cut_out_whole(images: Tensor, draws: Tensor, p: Tensor | float) -> Tensor:
    """Cut out as DiffAugment does: half the side, around any pixel, or a pixel corner if half the side is even."""
    size, (at, x, y) = images.shape[-1], draws.unbind(1)
    side = int(size / 2 + 0.5)
    odd = side % 2
    x, y = (_whole(u, size + 1 - odd) + odd / 2 for u in (x, y))
    return _without_square(images, at < p, x, y, side)


def _cut_out(images: Tensor, draws: Tensor, p: Tensor | float) -> Tensor:
    """Cut out as ADA does: half the side, around any position."""
    size, (at, x, y) = images.shape[-1], draws.unbind(1)
    return _without_square(images, at < p, x.double() * size, y.double() * size, size / 2)


def _without_square(images: Tensor, chosen: Tensor, x: Tensor, y: Tensor, side: float) -> Tensor:
    """Set to zero (mid-gray) the pixels whose middle is in a square, in the chosen images.

    Args:
        x, y: Center of the square, in pixels from the left and upper edge; [B] each. It may reach over the border.
    """
    middles = torch.arange(images.shape[-1], device=images.device) + 0.5
    columns, rows = (_is_within(middles - center[:, None] + side / 2, side) for center in (x, y))
    return torch.where((chosen[:, None, None] & rows[:, :, None] & columns[:, None])[:, None], 0.0, images)
