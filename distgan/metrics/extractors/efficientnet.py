"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation, with ReLU6.

Trained on ImageNet at 224 pixels, on (pixel - 127) / 128. Modules are named as in the published file of weights.

Distances in its features grow with every kind of damage to real images, but do not compare with published FID. Like
Inception, it hardly sees what ImageNet's classes do not need; and a D that starts from ImageNet's weights favors it.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from distgan.metrics.extractors.frozen_batch_norm import FrozenNorm

# repeats, kernel size, stride of the first, expansion, output channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Map float32 [B, 3, H, W] to pooled features [B, 1280] and the logits [B, 1000] of ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, stride=2)
        self._bn0 = FrozenNorm(32)
        self._blocks = nn.ModuleList()
        before = 32
        for repeats, kernel, stride, expansion, after in STAGES:
            for i in range(repeats):
                self._blocks.append(Block(before, after, kernel, stride if i == 0 else 1, expansion))
                before = after
        self._conv_head = SameConv2d(before, 1280, 1)
        self._bn1 = FrozenNorm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        features = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return features, self._fc(features)


class Block(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018): expand, filter each channel, project; plus x if shapes allow."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self._expand_conv = SameConv2d(before, inner, 1) if expansion > 1 else None
        self._bn0 = FrozenNorm(inner) if expansion > 1 else None
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = FrozenNorm(inner)
        self._project_conv = SameConv2d(inner, after, 1)
        self._bn2 = FrozenNorm(after)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        if self._expand_conv is not None and self._bn0 is not None:
            inner = F.relu6(self._bn0(self._expand_conv(x)))
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        out = self._bn2(self._project_conv(inner))
        return x + out if self.residual else out


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: ceil(H / stride) rows; an odd zero is below, or to the right."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        lacking = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in lacking)
        return super().forward(F.pad(x, (left, right, top, bottom)))
