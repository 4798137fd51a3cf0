"""Frozen networks that turn images into features, each with an identity that becomes part of every metric's name.

Values of two extractors never compare. Only the Inception network of 2015 with TensorFlow 1's resizing gives FID;
everything else is a Fréchet distance in other features, and has another name.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distgan.errors import ConfigError
from distgan.metrics.extractors.dinov2 import DinoV2
from distgan.metrics.extractors.efficientnet import EfficientNetLite0
from distgan.metrics.extractors.inception import Inception
from distgan.metrics.extractors.resize import RESIZERS
from distgan.metrics.weights import WEIGHTS, find_weights
from distgan.rng import host_rng

IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_STD = (255 * 0.229, 255 * 0.224, 255 * 0.225)
PART_PIXELS = 256 * 256**2  # pixels of the images of a part at most
VERSION = 1  # of the steps from pixels to features; another number changes every identity


class Kind(NamedTuple):
    """An extractor apart from its weights.

    The network maps float32 [B, 3, size, size], (pixel - mean) / std, to features [B, dim] and logits or None. With
    `channels_last`, a CPU computes it in that memory format, which was measured to be faster; a GPU never does.
    """

    build: Callable[[], nn.Module]
    layer: str
    size: int
    resizer: str  # the default one
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int
    num_logits: int = 0
    channels_last: bool = False


class Toy(nn.Module):
    """A fixed random layer and a fixed random head, cheap and without meaning, for tests."""

    layer: Tensor
    head: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("layer", _random_weights("layer", 3 * 16 * 16, 32))
        self.register_buffer("head", _random_weights("head", 32, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = (x.flatten(1) @ self.layer).tanh()
        return features, features @ self.head


class Extractor:
    """Maps images to features, by a frozen network.

    Images are processed in parts, of fewer images above 256 pixels, the last part filled up, in float32 even inside
    autocast or with TF32: so among images of one size, the features of an image have the same bits wherever it has the
    same place in a part, as image i of a call always has. At another place they may differ in the last bits, since
    kernels treat the rows at the end of a matrix differently.

    Attributes:
        name: A key of `EXTRACTORS`.
        identity: Name, first digits of the weights' sha256, layer, input size, resizer and version, for cache keys.
        key_prefix: Name of the Fréchet distance: "fid" of colors with the pinned weights of Inception and TensorFlow
            1's resizing, else "fd_<name>", followed by the resizer if it is not the default one, and by what is shown
            in place of images that are no colors.
        dim: Length of a feature vector.
        part: Images of a forward, at most. Who never passes as many at a time may lower it.
        num_logits: Classes that the network was trained for, 0 if it has no logits.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        net: nn.Module,
        digest: str,
        resizer: str,
        device: torch.device,
        shown: str = "",
    ) -> None:
        self.name, self.dim, self.num_logits = name, kind.dim, kind.num_logits
        self.identity = f"{name}:{digest[:12]}:{kind.layer}:{kind.size}:{resizer}:v{VERSION}" + f":{shown}" * bool(
            shown
        )
        if not shown and (name, resizer, digest) == ("inception", "tf1_bilinear", WEIGHTS["inception"].sha256):
            self.key_prefix = "fid"
        else:
            self.key_prefix = (
                f"fd_{name}" + (f"_{resizer}" if resizer != kind.resizer else "") + f"_{shown}" * bool(shown)
            )
        channels_last = kind.channels_last and device.type == "cpu"
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._net = net.eval().requires_grad_(False).to(device)
        self._net.to(memory_format=self._layout)  # type: ignore[call-overload]  # which torch's own hints lack
        self._resize, self._size = RESIZERS[resizer], kind.size
        self._mean, self._std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (kind.mean, kind.std))
        self._device = device
        self.part = 256 if device.type == "cuda" else 16

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map uint8 [B, 3, H, W] to features float32 [B, dim], and logits float32 [B, num_logits] or None.

        Grayscale, [B, 1, H, W], is taken as three equal channels. The results are on the extractor's device.

        Raises:
            ValueError: The images have another shape or type.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"features of {images.dtype} {list(images.shape)}: needs uint8 [B, 3, H, W], or [B, 1, H, W] for gray"
            )
        features = torch.empty(len(images), self.dim, device=self._device)
        logits = torch.empty(len(images), self.num_logits, device=self._device) if self.num_logits else None
        size = max(1, min(self.part, PART_PIXELS // max(1, images.shape[2:].numel())))
        for start in range(0, len(images), size):
            part = slice(start, min(start + size, len(images)))
            features[part], part_logits = self._features(images[part], size)
            if logits is not None and part_logits is not None:
                logits[part] = part_logits
        return features, logits

    @torch.no_grad()
    def _features(self, images: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
        """Return features and logits of one part: uint8 [P, C, H, W], filled up to `size` images."""
        num = len(images)
        images = images.to(self._device)
        if num < size:
            images = images[torch.arange(size, device=self._device) % num]
        with _exact_float32(self._device):
            # One layout in memory, whatever that of the images is: kernels of another one round differently.
            x = self._resize(images.expand(-1, 3, -1, -1).float().contiguous(), self._size)
            x = ((x - self._mean) / self._std).contiguous(memory_format=self._layout)
            features, logits = self._net(x)
        return features[:num], None if logits is None else logits[:num]


EXTRACTORS: dict[str, Kind] = {
    "inception": Kind(
        Inception, "pool3", 299, "tf1_bilinear", (128.0,) * 3, (128.0,) * 3, 2048, num_logits=1008, channels_last=True
    ),
    "dinov2_vitl14": Kind(DinoV2, "cls", 224, "torch_bicubic_aa", IMAGENET_MEAN, IMAGENET_STD, dim=1024),
    "efficientnet_lite0": Kind(
        EfficientNetLite0, "pool", 224, "clean_bicubic", (127.0,) * 3, (128.0,) * 3, 1280, 1000, channels_last=True
    ),
    "toy": Kind(Toy, "tanh", 16, "bilinear", (127.5,) * 3, (64.0,) * 3, dim=32, num_logits=10),
}


def open_extractor(
    name: str,
    weights: str = "",
    resizer: str = "",
    device: torch.device | str = "cpu",
    download: bool = False,
    shown: str = "",
) -> Extractor:
    """Load an extractor.

    Args:
        name: A key of `EXTRACTORS`.
        weights: The file with its weights, or a folder that holds it; empty to look in the usual places.
        resizer: A key of `RESIZERS`; empty for the extractor's default.
        download: Whether to download weights that are not there.
        shown: What the network sees in place of images that are no colors, as `image_values.shown_as` says it.

    Raises:
        ConfigError: There is no such extractor or resizer, or its weights are missing.
        DataError: A file of weights has another sha256 than the published one.
    """
    for what, value, allowed in (("extractor", name, EXTRACTORS), ("resizer", resizer or "bilinear", RESIZERS)):
        if value not in allowed:
            raise ConfigError(f"eval.{what}={value}: there are {', '.join(allowed)}")
    kind = EXTRACTORS[name]
    if name not in WEIGHTS:
        if weights:
            raise ConfigError(f"eval.weights={weights}: the extractor {name} has no file of weights; leave it empty")
        net = kind.build()
        digest = _digest(kind, net)
    else:
        path, digest = find_weights(name, weights, download), WEIGHTS[name].sha256
        with torch.device("meta"):  # no weights are drawn, so the random state of a training stays the same
            net = kind.build()
        state = torch.load(path, map_location="cpu", weights_only=True)
        # The number of batches that a norm saw in training is not used in evaluation.
        net.load_state_dict({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, assign=True)
    return Extractor(name, kind, net, digest, resizer or kind.resizer, torch.device(device), shown)


def _digest(kind: Kind, net: nn.Module) -> str:
    """Return a digest of an extractor without a published file: of its weights, and of the plugin that it is of.

    "none" where it has neither, so that nothing but its other marks tells it apart.
    """
    plugin = getattr(sys.modules.get(kind.build.__module__), "__sha256__", "")
    if not plugin and not any(True for _ in net.parameters()):
        return "none"
    digest = hashlib.sha256(plugin.encode())
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _random_weights(purpose: str, inputs: int, outputs: int) -> Tensor:
    """Return weights from N(0, 1 / inputs), a function of the purpose; float32 [inputs, outputs]."""
    return torch.from_numpy(host_rng.normal(host_rng.key(0, "toy", purpose), np.arange(inputs), outputs)) * inputs**-0.5


@contextlib.contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """Switch off autocast, TF32 and the choice of kernels by speed; restore all of them afterwards."""
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # an object replaces the module on import
    product, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = convolution.fp32_precision, product.fp32_precision, cudnn.benchmark, cudnn.deterministic
    try:
        convolution.fp32_precision, product.fp32_precision = "ieee", "ieee"
        cudnn.benchmark, cudnn.deterministic = False, True
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        convolution.fp32_precision, product.fp32_precision, cudnn.benchmark, cudnn.deterministic = before
