"""Degrade clean images on the device, as a function of each image's seed.

All arithmetic on pixels is elementwise or a gather, in one order: the result for an image is the same, bit by bit,
alone and in any batch, so ranks, passes and a resume do not change what G has to restore. Nothing has a gradient here.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distgan.image_spec import LEVELS, ImageSpec, square
from distgan.rng import device_rng
from distgan.transforms.degrade_spec import Step

RGB = square(1)  # 8-bit colors, of any size
GREY = 128.0  # level of masked pixels
STROKES, SEGMENTS = 4, 6  # brush strokes of an image at most, and straight pieces of each
# The quantization tables of quality 50: ITU-T T.81 (1992), annex K, tables K.1 and K.2.
LUMINANCE = """
16 11 10 16  24  40  51  61
12 12 14 19  26  58  60  55
14 13 16 24  40  57  69  56
14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77
24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103  99"""
CHROMINANCE = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99"""


@torch.no_grad()
def degrade(images: Tensor, seeds: Tensor, steps: Sequence[Step], image: ImageSpec = RGB) -> Tensor:
    """Apply steps of degradation in turn; [B, C, H, W] in -1..1 of the same type, rounded to values that can be stored.

    Args:
        images: In -1..1, with values that can be stored; [B, C, H, W]. Steps see them in levels, where -1 is 0 and 1 is
            255, whatever the depth and range.
        seeds: int64 [B]; see `device_rng`.
        steps: As `degrade_spec.parse` returns them.
        image: Type and range of the images on the host; its size and channels do not matter. Floats are not rounded.

    Raises:
        ValueError: A step is not defined for this number of channels.
    """
    x = _rounded((images + 1) * 127.5, image).float().contiguous()  # levels, 0..255
    for number, step in enumerate(steps):
        purpose = f"degrade {number} {step.kind}"
        at, u = device_rng.uniform(seeds, purpose, 2).unbind(1)
        changed = KINDS[step.kind](x, _strength(u, step), seeds, f"{purpose} more", step)
        x = torch.where(_each(at < step.p), changed, x)
    return (_rounded(x, image).clamp(0, 255).to(images.dtype) / 127.5) - 1


def _rounded(levels: Tensor, image: ImageSpec) -> Tensor:
    """Round levels, of which 0 is `image.low` and 255 is `image.high`, to those of whole numbers between."""
    if image.dtype not in LEVELS:
        return levels
    parts = (image.high - image.low) / 255  # whole numbers from one 8-bit level to the next
    return levels.round() if parts == 1 else (levels * parts).round() / parts


def _strength(u: Tensor, step: Step) -> Tensor:
    """Map numbers in [0, 1) to strengths, float32 [B]; factors of downsampling are powers of two, equally likely."""
    if step.kind == "downsample":
        num = math.log2(step.high / step.low) + 1
        return step.low * torch.exp2((u.double() * num).floor()).float()
    return (step.low + (step.high - step.low) * u.double()).float()


def _each(values: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, 1, 1], which broadcasts to images."""
    return values[:, None, None, None]


# The kinds of degradation map levels [B, C, H, W] to levels, which may be outside of 0..255 until the end.


def _noise(x: Tensor, sigma: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Add Gaussian noise."""
    return x + _each(sigma) * device_rng.normal(seeds, purpose, x[0].numel()).view_as(x)


def _shot(x: Tensor, peak: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Replace each value by a Poisson number of photons; white has `peak` of them on average."""
    scale = _each(peak) / 255
    return poisson(x.clamp(0, 255) * scale, device_rng.uniform(seeds, purpose, x[0].numel()).view_as(x)) / scale


def poisson(rate: Tensor, u: Tensor) -> Tensor:
    """Map uniform numbers on a grid of 2^-24 to Poisson numbers of any rates, their quantiles at `u`; float32.

    Rates up to 8 add up probabilities. Higher rates use Cornish and Fisher's expansion (1938) of the quantile in normal
    ones, to the order 1 / sqrt(rate), where at most one number in 300 differs from the exact quantile, by one.
    """
    low = rate.clamp(max=8.0)
    probability = torch.exp(-low)
    below, count = probability.clone(), torch.zeros_like(low)
    for i in range(1, 32):  # at a rate of 8, more than 31 has a probability of 1e-10
        count += u >= below
        probability = probability * low / i
        below += probability
    z = torch.erfinv(2 * (u.double() + 2**-25) - 1) * math.sqrt(2)
    mean = rate.double().clamp(min=8.0)
    root = (mean - 1 / 12).sqrt()  # rounding adds a twelfth to the variance (Sheppard 1898)
    many = (mean + root * z + (z.square() - 1) / 6 + (z - z * z * z) / (72 * root)).round().clamp(min=0)
    return torch.where(rate <= 8, count, many.float())


def _blur(x: Tensor, sigma: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Blur by a Gaussian cut at three deviations, with the image mirrored at its borders."""
    radius = math.ceil(3 * step.high)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float64)
    weights = torch.exp(-(offsets.square()) / (2 * sigma.double().square()[:, None]))
    weights = (weights / _total(weights)[:, None]).float()
    for _ in range(2):
        size, padded = x.shape[-1], F.pad(x, (radius, radius, 0, 0), mode="reflect")
        x = _total([_each(weights[:, i]) * padded[..., i : i + size] for i in range(2 * radius + 1)]).mT
    return x.contiguous()


def _total(terms: Sequence[Tensor] | Tensor) -> Tensor:
    """Add terms, or the columns of a matrix, from the first to the last; torch's order may depend on the batch."""
    terms = terms.unbind(1) if isinstance(terms, Tensor) else terms
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _downsample(x: Tensor, factor: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Average over squares and interpolate linearly back to the size."""
    small, times, out = x, 1, x
    while times < step.high:
        small, times = _halved(small), 2 * times
        if times >= step.low:
            out = torch.where(_each(factor == times), _enlarged(small, times), out)
    return out


def _halved(x: Tensor) -> Tensor:
    x = (x[..., ::2] + x[..., 1::2]) / 2
    return (x[..., ::2, :] + x[..., 1::2, :]) / 2


def _enlarged(x: Tensor, times: int) -> Tensor:
    """Enlarge by linear interpolation between the middles of pixels; beyond the outer ones, their values hold."""
    for _ in range(2):
        size = x.shape[-1]
        position = ((torch.arange(size * times, device=x.device) + 0.5) / times - 0.5).clamp(0, size - 1)
        before = position.floor().long().clamp(max=max(0, size - 2))
        after = (position - before).float()
        x = x[..., before] * (1 - after) + x[..., (before + 1).clamp(max=size - 1)] * after
        x = x.mT
    return x


def _jpeg(x: Tensor, quality: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Lose what JPEG loses (ITU-T T.81): colors have half the resolution, cosines of 8 x 8 squares are quantized.

    One channel is luma alone. Where sides are not whole squares, the last pixels are repeated, as encoders do.

    Tables are scaled by the quality as the Independent JPEG Group's program does it. Its integer arithmetic is not
    repeated: a level may differ by one or two from that of a file.
    """
    quality = quality.round()
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    height, width = x.shape[2:]
    side = 8 if x.shape[1] == 1 else 16
    if height % side or width % side:
        x = F.pad(x, (0, -width % side, 0, -height % side), mode="replicate")
    return _decoded(x.round().clamp(0, 255), scale)[:, :, :height, :width]


def _decoded(x: Tensor, scale: Tensor) -> Tensor:
    """Return what is left of whole levels [B, C, H, W], H and W whole squares, when JPEG scales its tables so."""
    if x.shape[1] == 1:
        return _quantized(x[:, 0], scale, LUMINANCE)[:, None]
    if x.shape[1] != 3:
        raise ValueError(f"JPEG has 1 or 3 channels, not {x.shape[1]}")
    r, g, b = x.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    blue, red = 128 + (b - y) / 1.772, 128 + (r - y) / 1.402
    y = _quantized(y, scale, LUMINANCE)
    blue, red = (_enlarged(_quantized(_halved(c).round(), scale, CHROMINANCE), 2) - 128 for c in (blue, red))
    out = [y + 1.402 * red, y - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587, y + 1.772 * blue]
    return torch.stack(out, 1).round().clamp(0, 255)


def _quantized(plane: Tensor, scale: Tensor, table: str) -> Tensor:
    """Quantize a plane of levels [B, H, W] as JPEG does; the result is whole levels."""
    height, width = plane.shape[1:]
    base = _on_device(table, plane.device)
    steps = ((base * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)[:, None, None]  # [B, 1, 1, 8, 8]
    k = torch.arange(8, device=plane.device, dtype=torch.float64)
    cosines = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    cosines = cosines.float()  # [frequency, position], orthonormal
    rows = (plane.round() - 128).unflatten(1, (height // 8, 8))
    squares = rows.unflatten(3, (width // 8, 8)).transpose(2, 3)  # [B, H/8, W/8, 8, 8]
    levels = (_transformed(squares, cosines) / steps).round() * steps
    squares = _transformed(levels, cosines.T) + 128
    return squares.transpose(2, 3).reshape(plane.shape).round().clamp(0, 255)


@functools.cache
def _on_device(table: str, device: torch.device) -> Tensor:
    """Return a table's numbers, float32 [8, 8]; they are copied once, since the host waits for such a copy."""
    return torch.tensor([int(word) for word in table.split()], dtype=torch.float32, device=device).view(8, 8)


def _transformed(squares: Tensor, matrix: Tensor) -> Tensor:
    """Return matrix @ square @ matrix.T for squares [..., 8, 8]."""
    for _ in range(2):
        squares = _total([squares[..., i, None] * matrix[:, i] for i in range(8)]).mT
    return squares


def _box(x: Tensor, share: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Mask the pixels whose middle is in a square, anywhere inside the image."""
    side = share.double() * min(x.shape[2:])
    rows, columns = (
        _is_after(u * (length - side), side, length)
        for u, length in zip(device_rng.uniform(seeds, purpose, 2).double().unbind(1), x.shape[2:])
    )
    return torch.where((rows[:, :, None] & columns[:, None])[:, None], GREY, x)


def _is_after(first: Tensor, side: Tensor, length: int) -> Tensor:
    """Return which of the pixels along one side have their middle at most `side` after `first`; bool [B, length]."""
    offset = torch.arange(length, device=first.device) + 0.5 - first[:, None]
    return (offset >= 0) & (offset < side[:, None])


def _strokes(x: Tensor, share: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Mask one to four strokes of a round brush, crooked paths that start anywhere (after Yu et al. 2019)."""
    height, width = x.shape[2:]
    size = min(height, width)
    num_draws = 3 + 2 * SEGMENTS  # of a stroke
    draws = device_rng.uniform(seeds, purpose, 1 + STROKES * num_draws).double()
    num_strokes = 1 + (draws[:, 0] * STROKES).floor()
    is_masked = torch.zeros(len(x), height, width, dtype=torch.bool, device=x.device)
    for number, stroke in enumerate(draws[:, 1:].split(num_draws, 1)):
        start = torch.stack([stroke[:, 0] * width, stroke[:, 1] * height], 1)
        angle = stroke[:, 2] * 2 * math.pi
        reach = torch.where(number < num_strokes, share.double() * size / 2, -1.0)
        for turn, length in zip(stroke[:, 3::2].unbind(1), stroke[:, 4::2].unbind(1)):
            angle = angle + (turn - 0.5) * math.pi
            end = start + (length * size / 3)[:, None] * torch.stack([torch.cos(angle), torch.sin(angle)], 1)
            is_masked |= _near(start, end, reach, height, width)
            start = end
    return torch.where(is_masked[:, None], GREY, x)


def _near(start: Tensor, end: Tensor, reach: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels' middles are at most `reach` from the line between two positions; bool [B, H, W].

    Positions are (column, row), [B, 2].
    """
    along = end - start
    middles = torch.arange(max(height, width), device=start.device) + 0.5
    x, y = (middles[:width] - start[:, :1])[:, None, :], (middles[:height] - start[:, 1:])[:, :, None]
    u, v = (along[:, i, None, None] for i in (0, 1))
    share = ((x * u + y * v) / (u * u + v * v).clamp(min=1e-9)).clamp(0, 1)
    distance = (x - share * u).square() + (y - share * v).square()
    return (distance <= reach.square()[:, None, None]) & (reach >= 0)[:, None, None]


def _grey(x: Tensor, share: Tensor, seeds: Tensor, purpose: str, step: Step) -> Tensor:
    """Move colors towards the luma of ITU-R BT.601. A fourth channel is transparency, which stays."""
    if x.shape[1] not in (3, 4):
        raise ValueError(f"{x.shape[1]} channels have no luma: 3, or 4 with transparency")
    colors = x[:, :3]
    r, g, b = colors.split(1, 1)
    gray = colors + _each(share) * (0.299 * r + 0.587 * g + 0.114 * b - colors)
    return gray if x.shape[1] == 3 else torch.cat([gray, x[:, 3:]], 1)


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor, str, Step], Tensor]] = {
    "noise": _noise,
    "shot": _shot,
    "blur": _blur,
    "downsample": _downsample,
    "jpeg": _jpeg,
    "box": _box,
    "strokes": _strokes,
    "grey": _grey,
}
