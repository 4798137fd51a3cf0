"""distgan: distributed GAN training on streamed image shards, with exact resume."""

__version__ = "0.1.0"
