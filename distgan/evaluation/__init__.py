"""Measure images of any origin on all ranks, in a training or afterwards; `evaluate` is `distgan evaluate`."""
