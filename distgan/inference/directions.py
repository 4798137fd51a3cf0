"""Directions of latents in which images change most: `distgan directions`.

Of a generator with styles they are directions of w, of others of z. SeFa (Shen and Zhou 2021) has them in closed form:
with A the weights of the layers that take latents, the eigenvectors of A^T A with the largest eigenvalues. GANSpace
(Haerkoenen et al. 2020) takes the principal components of many w. No image is looked at, and nothing is trained.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distgan.data import image_grid
from distgan.errors import ConfigError, MachineError
from distgan.inference import sampling
from distgan.inference.loading import load_generator
from distgan.inference.picture_grid import bands_of
from distgan.inference.trained_generator import TrainedGenerator
from distgan.models.networks import num_weights
from distgan.storage.atomic import replace_file, replacing
from distgan.storage.home import user_path
from distgan.transforms.image_values import to_display

METHODS = ("sefa", "pca")
NUM_W = 10_000  # latents whose w PCA looks at
SEED = 0  # of these


@dataclass(frozen=True)
class DirectionOptions:
    """The options of `distgan directions`.

    Attributes:
        num: Number of directions.
        method: "sefa", or "pca" of a generator with styles.
        strength: How far walks go to both sides, in deviations of the latents along a direction.
        rows, columns: Latents of a grid, and steps of each walk.
        seed: Of the latents that are moved.
    """

    num: int = 8
    method: str = "sefa"
    strength: float = 3.0
    rows: int = 4
    columns: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"--method {self.method}: choose one of {', '.join(METHODS)}")
        for name in ("num", "rows", "columns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least 1")
        if not 0 < self.strength <= 100:
            raise ConfigError(f"--strength {self.strength:g}: above 0 and up to 100")


@dataclass(frozen=True)
class Directions:
    """Directions of one latent space.

    Attributes:
        space: "w" or "z".
        vectors: Unit vectors [N, dim], the strongest first; the largest entry of each is positive.
        values: What they are ordered by: eigenvalues, [N].
        deviations: Standard deviation of latents along each, [N].
    """

    space: str
    vectors: Tensor
    values: Tensor
    deviations: Tensor


@torch.no_grad()
def find(G: TrainedGenerator, num: int = 8, method: str = "sefa") -> Directions:
    """Find directions of a generator.

    Raises:
        ConfigError: It has none of that kind, or not so many.
    """
    if G.restores:
        raise ConfigError("directions are of images made of noise, and this generator restores images")
    has_styles = hasattr(G.net, "styles")
    if method == "pca" and not has_styles:
        raise ConfigError(f"--method pca: of generators with styles, and {G.spec.family} has none: sefa")
    if has_styles:
        w = _many_w(G)
        covariance = torch.cov(w.T)
        matrix = covariance if method == "pca" else _gram(_affine_weights(G.net))
    else:
        matrix = _gram([_first_weight(G)])
        covariance = torch.eye(len(matrix), dtype=matrix.dtype)
    if num > len(matrix):
        raise ConfigError(f"--num {num}: the latents of this generator have {len(matrix)} directions")
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:num], vectors.T.flip(0)[:num]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * largest.sign()  # an eigenvector's sign is a library's choice
    deviations = (vectors @ covariance * vectors).sum(1).clamp(min=0).sqrt()
    return Directions("w" if has_styles else "z", vectors.float(), values.float(), deviations.float())


@torch.no_grad()
def walk(G: TrainedGenerator, found: Directions, number: int, options: DirectionOptions) -> Iterator[Tensor]:
    """Yield the images of a walk along one direction: for each step from the one side to the other, [rows, C, H, W]."""
    z = sampling.latents(options.seed, np.arange(options.rows), G.z_dim).to(G.device)
    given = G.labels_of(None, range(options.rows), options.seed)
    labels = None if given is None else torch.from_numpy(given).to(G.device)
    direction = (found.vectors[number] * found.deviations[number]).to(G.device)
    reach = options.strength if options.columns > 1 else 0.0
    for step in torch.linspace(-reach, reach, options.columns).tolist():
        if found.space == "w":
            styles = G.net.styles(z, labels)  # type: ignore[operator]  # as `find` found
            yield G.net.synthesize(styles + step * direction)  # type: ignore[operator]
        else:
            yield G.net(z + step * direction, labels)


def directions(path: str, out: str, options: DirectionOptions) -> str:
    """Write directions of a generator, and a grid of walks along each, into a folder; returns a line that says so.

    A grid has a latent to a row and a step to a column. `directions.npy` has the vectors, float32 [N, dim].

    Raises:
        ConfigError: The generator has none such, or the folder is not empty.
    """
    folder = user_path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{out} is not an empty folder: name another")
    G = load_generator(path)
    found = find(G, options.num, options.method)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(G, found, folder, options)
    except OSError as error:
        raise MachineError(f"{out}: {error.strerror}") from None
    return f"{options.num} directions of {found.space}, {num_weights(G.net) / 1e6:.2f}M weights: {folder}"


def _write(G: TrainedGenerator, found: Directions, folder: Path, options: DirectionOptions) -> None:
    with replacing(folder / "directions.npy") as part, open(part, "wb") as file:
        np.save(file, found.vectors.numpy())
    about = {
        "space": found.space,
        "method": options.method,
        "values": found.values.tolist(),
        "deviations": found.deviations.tolist(),
        "strength": options.strength,
        "seed": options.seed,
        "origin": {key: value for key, value in G.origin.items() if key != "config"},
    }
    replace_file(folder / "directions.json", json.dumps(about, indent=1) + "\n")
    for number in range(options.num):
        steps = [to_display(part, G.image, bands_of(G)).cpu() for part in walk(G, found, number, options)]
        tiles = torch.stack(steps, 1).flatten(0, 1).permute(0, 2, 3, 1).numpy()  # row by row
        image_grid.save_png(folder / f"direction-{number:02d}.png", image_grid.grid(list(tiles), options.columns))


def _many_w(G: TrainedGenerator) -> Tensor:
    """Return w of many latents, with classes or conditions as real images have them; float64 [n, w_dim]."""
    numbers = np.arange(NUM_W)
    given = G.labels_of(None, numbers.tolist(), SEED)
    labels = None if given is None else torch.from_numpy(given).to(G.device)
    z = sampling.latents(SEED, numbers, G.z_dim).to(G.device)
    w: Tensor = G.net.mapping(z, labels)  # type: ignore[operator]
    return w.double().cpu()


def _affine_weights(net: nn.Module) -> list[Tensor]:
    """Return the weights that map w to the scales of each layer, [inputs, w_dim] each."""
    layers = [module.affine for module in net.modules() if hasattr(module, "affine")]
    return [weight for layer in layers for name, weight in layer.named_parameters() if name == "weight"]  # type: ignore[union-attr]


def _first_weight(G: TrainedGenerator) -> Tensor:
    """Return the weight of the layer that takes z, [outputs, z_dim]. Raises ConfigError where there is none."""
    for module in G.net.modules():
        if isinstance(module, nn.Linear) and module.in_features >= G.z_dim:
            return module.weight[:, : G.z_dim]
        if isinstance(module, nn.ConvTranspose2d) and module.in_channels >= G.z_dim:
            return module.weight[: G.z_dim].flatten(1).T
    raise ConfigError(f"the networks of {G.spec.family} have no linear layer that takes latents")


def _gram(weights: list[Tensor]) -> Tensor:
    """Return A^T A of all weights, one above the other; float64 [dim, dim]."""
    stacked = torch.cat([weight.detach().double().cpu() for weight in weights])
    return stacked.T @ stacked
