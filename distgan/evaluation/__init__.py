"""How good images are: of any origin, on all ranks, in training or afterwards; `scorecard` is `distgan evaluate`."""
