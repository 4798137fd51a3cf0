"""A walk through a generator's latents, as a moving image that ends where it began."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distgan.data import image_grid
from distgan.errors import ConfigError, MachineError
from distgan.inference import sampling
from distgan.inference.trained_generator import Generator
from distgan.storage.atomic import replacing

LOSSLESS_PIXELS = 256 * 256  # images up to this size lose more to WebP than they save
SUFFIXES = (".webp", ".mp4")


def path(keyframes: Tensor, num: int) -> Tensor:
    """`num` latents on the way along the keyframes and back to the first one, equally many between any two of them.

    Float32 [keyframes, z_dim] -> [num, z_dim]; the point that would follow the last is the first. Between two of them
    the way is that of White 2016 ("Sampling generative networks"): the great circle, so that latents stay as long as
    those that the generator was trained on, where a straight line would come nearer to zero.
    """
    at = torch.arange(num, dtype=torch.float64) * len(keyframes) / num
    before = at.long()
    a, b, t = keyframes[before].double(), keyframes[(before + 1) % len(keyframes)].double(), (at - before)[:, None]
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)[:, None].clamp(-1, 1)
    angle = torch.arccos(cosine)
    on_circle = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    has_circle = torch.sin(angle).abs() > 1e-4  # latents of one direction, or of opposite ones, name none
    return torch.where(has_circle, on_circle, torch.lerp(a, b, t)).float()


def frames(G: Generator, seed: int, num: int, keyframes: int, classes: list[int], columns: int) -> Iterator[np.ndarray]:
    """The images of a walk by images 0 ... keyframes - 1 of `seed`; uint8 [rows * R, columns * R, 3].

    All classes walk the same way side by side, a tile for each.
    """
    way = path(sampling.latents(seed, range(keyframes), G.z_dim), num)
    tiles = [(frame, label) for frame in range(num) for label in classes or [None]]
    each = len(classes) or 1
    held: list[np.ndarray] = []
    for start in range(0, len(tiles), G.chunk):
        part = tiles[start : start + G.chunk]
        z = way[[frame for frame, _ in part]]
        held += list(image_grid.to_uint8(G(z, [label for _, label in part] if classes else None)))
        while len(held) >= each:
            yield image_grid.grid(held[:each], columns)
            del held[:each]


def save(target: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    """Write whole or not at all: an endless WebP, or an MP4, by the file's suffix."""
    with replacing(target) as part:
        (_save_mp4 if target.suffix.lower() == ".mp4" else _save_webp)(part, pictures, fps)


def require_writer(target: Path) -> None:
    """Refuse a file that could not be written in the end."""
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {target}: a video is a file that ends in {' or '.join(SUFFIXES)}")
    if target.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError:
            raise MachineError(
                f"--out {target}: .mp4 needs PyAV: pip install 'distgan[video]', or name the file .webp"
            ) from None


def _save_webp(part: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    first, *others = [Image.fromarray(picture) for picture in pictures]
    ends = [round(1000 * (i + 1) / fps) for i in range(len(others) + 1)]  # of whole milliseconds, without drift
    duration = [end - start for start, end in zip([0, *ends], ends)]
    small = first.width * first.height <= LOSSLESS_PIXELS
    settings = {"lossless": True} if small else {"quality": 90}
    first.save(part, format="WEBP", save_all=True, append_images=others, duration=duration, loop=0, **settings)


def _save_mp4(part: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    import av

    with av.open(str(part), "w", format="mp4") as file:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "16"}
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
