"""DINOv2 (Oquab et al. 2023): a vision transformer (Dosovitskiy et al. 2021) that was trained without labels.

FD-DINOv2 compares its class token after the last norm (Stein et al. 2023). Modules are named as in the published file
of weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class DinoV2(nn.Module):
    """Map float32 [B, 3, H, W], sides multiples of `patch`, to the class token [B, dim]; there are no logits.

    Args:
        grid: Side of the stored grid of position embeddings; for another number of patches, they are interpolated.
    """

    def __init__(self, dim: int = 1024, depth: int = 24, heads: int = 16, patch: int = 14, grid: int = 37) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # of training only, but in the file
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, EPS)
        self.grid = grid

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        patches = self.patch_embed["proj"](x)
        tokens = patches.flatten(2).transpose(1, 2) + self.positions(*patches.shape[2:])
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0]), None

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the position embeddings of a grid of patches, [1, rows * columns, dim]."""
        stored = self.pos_embed[:, 1:]
        if rows == columns == self.grid:
            return stored
        stored = stored.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        # The published network scales by a tenth of a patch more than it needs, which shifts every position a little.
        # Features of these weights were always computed so.
        scales = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        return F.interpolate(stored, scale_factor=scales, mode="bicubic").flatten(2).transpose(1, 2)


class Block(nn.Module):
    """A transformer block of tokens [B, N, dim]: attention, then two layers for each token, each scaled and added."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, heads)
        self.ls1, self.ls2 = Scale(dim), Scale(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class Attention(nn.Module):
    """Attention over all tokens, by matrix products, so that settings of their precision hold here too."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        # Each [B, heads, N, dim / heads]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    """A factor for each number of a token (LayerScale, Touvron et al. 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
