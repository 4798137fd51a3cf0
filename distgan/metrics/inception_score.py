"""Inception Score (Salimans et al. 2016): exp of the mean divergence of p(class | image) from p(class)."""

import itertools

import numpy as np
import torch
from torch import Tensor

SEED = 2020  # of torch-fidelity's shuffle, which is repeated so that values agree


def score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return the mean score of `splits` parts of the shuffled images, and its standard deviation; logits [n, classes].

    The value falls with the number of images in a split, so the number of splits belongs to it. Images in the order of
    their classes would lower it too, hence the shuffle.
    """
    order = torch.from_numpy(np.random.RandomState(SEED).permutation(len(logits))).to(logits.device)
    log_p = logits[order].double().log_softmax(dim=1)
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    scores = []
    for start, end in itertools.pairwise(bounds):
        part = log_p[start:end]
        p = part.exp()
        scores.append((p * (part - p.mean(dim=0).log())).sum(dim=1).mean().exp())
    values = torch.stack(scores).cpu().numpy()
    return float(np.mean(values)), float(np.std(values))
