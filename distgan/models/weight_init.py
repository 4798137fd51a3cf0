"""Initial weights: normal distributions whose width keeps the second moment of a signal from layer to layer."""

import math
from typing import TypeVar

from torch import nn

from distgan.models.label_embedding import VectorEmbedding

Layer = TypeVar("Layer", bound=nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding | VectorEmbedding)


def init_normal(layer: Layer, std: float) -> Layer:
    """Draw the weights of a layer from N(0, std^2), set its bias to zero if it has one, and return the layer."""
    nn.init.normal_(layer.weight, std=std)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)
    return layer


def init_fan_in(layer: Layer, gain: float = 1.0) -> Layer:
    """Draw weights from N(0, gain^2 / fan_in): outputs have `gain`^2 times the second moment of the inputs.

    The bias is set to zero. Returns the layer.
    """
    return init_normal(layer, gain / math.sqrt(layer.weight[0].numel()))
