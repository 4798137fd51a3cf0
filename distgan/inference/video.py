"""Write a video of images along a closed path through a generator's latents."""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distgan.data import image_grid
from distgan.errors import ConfigError, MachineError
from distgan.inference import sampling
from distgan.inference.picture_grid import bands_of
from distgan.inference.request import FPS, Request
from distgan.inference.trained_generator import TrainedGenerator
from distgan.storage.atomic import replacing
from distgan.transforms.image_values import to_display

LOSSLESS_PIXELS = 256 * 256  # images up to this size lose more to WebP than they save
MAX_TILES = 64  # classes that a video shows side by side
SUFFIXES = (".webp", ".mp4")


def slerp_path(keyframes: Tensor, num: int) -> Tensor:
    """Return `num` latents on a closed path through the keyframes, equally many between any two of them.

    Float32 [keyframes, z_dim] -> [num, z_dim]; the point after the last is the first. Between two keyframes, the path
    is the great circle (White 2016, "Sampling generative networks"), so that latents are as long as those that the
    generator was trained on; a straight line would come nearer to zero.
    """
    position = torch.arange(num, dtype=torch.float64) * len(keyframes) / num
    before = position.long()
    a, b = keyframes[before].double(), keyframes[(before + 1) % len(keyframes)].double()
    t = (position - before)[:, None]
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)[:, None].clamp(-1, 1)
    angle = torch.arccos(cosine)
    on_circle = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    has_circle = torch.sin(angle).abs() > 1e-4  # no single circle through latents of the same or opposite directions
    return torch.where(has_circle, on_circle, torch.lerp(a, b, t)).float()


def frames(
    G: TrainedGenerator,
    seed: int,
    num: int,
    keyframes: int,
    classes: Sequence[int] | np.ndarray,
    columns: int,
    bands: Sequence[int] = (),
) -> Iterator[np.ndarray]:
    """Yield the frames of a path through images 0 ... keyframes - 1 of `seed`; uint8 [rows * H, columns * W, 3].

    A frame has a tile for each class or vector of conditions, all of the same latent. Of images that are no
    colors, `bands` are shown.
    """
    z = slerp_path(sampling.latents(seed, range(keyframes), G.z_dim), num)
    tiles_per_frame = max(1, len(classes))
    num_tiles = num * tiles_per_frame
    labels = np.concatenate([np.asarray(classes)] * num)  # of the tiles, frame by frame
    tiles: list[np.ndarray] = []  # of frames that are not complete
    for start in range(0, num_tiles, G.chunk):
        part = range(start, min(start + G.chunk, num_tiles))
        images = G(z[[i // tiles_per_frame for i in part]], labels[part.start : part.stop] if len(classes) else None)
        tiles += list(to_display(images, G.image, bands).permute(0, 2, 3, 1).cpu().numpy())
        while len(tiles) >= tiles_per_frame:
            yield image_grid.grid(tiles[:tiles_per_frame], columns)
            del tiles[:tiles_per_frame]


def write(G: TrainedGenerator, target: Path, request: Request) -> str:
    """Write a video with a tile for each class or condition; returns a line that says where. Raises ConfigError."""
    options, classes, given = request.options, request.classes, request.conditions
    num, fps = options.num, FPS if options.fps is None else options.fps
    if request.image != G.image:
        raise ConfigError("--aspect: a video keeps the generator's own size; png, npy, shards and grid take --aspect")
    shown: list[int] | np.ndarray = classes
    if G.conditions is not None:  # one of a real image, where none is named
        shown = G.conditions.conditions.encode(G.conditions.drawn(options.seed, [0]) if given is None else given)
    if len(shown) > MAX_TILES:
        what, option = ("classes", "--labels") if classes else ("conditions", "--condition")
        raise ConfigError(
            f"a video shows {MAX_TILES} {what} at most, and there are {len(shown)}: name some by {option}"
        )
    if num < 2:
        raise ConfigError(f"--num {num}: a video has 2 frames or more")
    keyframes = options.keyframes or max(2, round(num / fps))
    if not 2 <= keyframes <= num:
        raise ConfigError(f"--keyframes {keyframes}: 2 to {num}, the number of frames (--num)")
    columns = options.columns or math.ceil(math.sqrt(len(shown) or 1))
    save(target, frames(G, options.seed, num, keyframes, shown, columns, bands_of(G)), fps)
    return f"{num} frames, {num / fps:.1f} s, by {keyframes} latents and back to the first: {target}"


def save(target: Path, images: Iterator[np.ndarray], fps: float) -> None:
    """Write a video completely or not at all: an endless WebP, or an MP4, by the file's suffix."""
    with replacing(target) as part:
        (_save_mp4 if target.suffix.lower() == ".mp4" else _save_webp)(part, images, fps)


def require_writer(target: Path) -> None:
    """Refuse a file that could not be written. Raises ConfigError for its suffix, MachineError without PyAV."""
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {target}: a video is a file that ends in {' or '.join(SUFFIXES)}")
    if target.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError:
            raise MachineError(
                f"--out {target}: .mp4 needs PyAV: pip install 'distgan[video]', or name the file .webp"
            ) from None


def _save_webp(part: Path, images: Iterator[np.ndarray], fps: float) -> None:
    first, *others = [Image.fromarray(frame) for frame in images]
    ends = [round(1000 * (i + 1) / fps) for i in range(len(others) + 1)]  # in whole milliseconds, without drift
    duration = [end - start for start, end in zip([0, *ends], ends)]
    small = first.width * first.height <= LOSSLESS_PIXELS
    settings = {"lossless": True} if small else {"quality": 90}
    first.save(part, format="WEBP", save_all=True, append_images=others, duration=duration, loop=0, **settings)


def _save_mp4(part: Path, images: Iterator[np.ndarray], fps: float) -> None:
    import av

    with av.open(str(part), "w", format="mp4") as file:
        first = next(images)
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "16"}
        for frame in itertools.chain([first], images):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
