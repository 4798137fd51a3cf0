"""Randomness as a function: every draw is keyed by (seed, purpose, index), so there is no state to save or to lose.

The generator is SplitMix64 (Steele, Lea and Flood 2014) read at arbitrary indexes: value i of a key is the finaliser
applied to key + i * GOLDEN. Only 64-bit integer arithmetic decides an order or a choice, so those are the same on
every machine and library version; `normal` adds one logarithm and two trigonometric functions in float32.
"""

import hashlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, *words: str | int) -> np.uint64:
    """Return the 64-bit key of a purpose, e.g. `key(seed, "z", "D")`. Different words give unrelated streams."""
    text = "/".join([str(int(seed)), *map(str, words)])
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def bits(keys: np.uint64 | np.ndarray, index: int | np.ndarray) -> np.ndarray:
    """64 random bits for each (key, index), broadcast against each other; uint64."""
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        x = keys + np.asarray(index, np.uint64) * GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def permutation(keys: np.uint64, n: int) -> np.ndarray:
    """Return a permutation of 0..n-1; int64 [n]."""
    return np.argsort(bits(keys, np.arange(n)), kind="stable")


def uniform(keys: np.uint64, index: np.ndarray) -> np.ndarray:
    """Draw one number in [0, 1) for each index, on a grid of 2^-24; float32, the shape of `index`."""
    return (bits(keys, index) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def normal(keys: np.uint64, index: np.ndarray, n: int) -> np.ndarray:
    """Row r holds n standard normal numbers that depend on (key, index[r]) alone; float32 [len(index), n].

    Word w of row i is number i * 2^20 + w of the key, so rows have at most 2^21 numbers. Box-Muller on the two halves
    of each word; the half that makes the radius lies on a grid without zero.
    """
    rows = np.asarray(index, np.uint64)[:, None] << np.uint64(20)
    words = bits(keys, rows + np.arange((n + 1) // 2, dtype=np.uint64))
    halves = words.astype("<u8", copy=False).view("<u4").astype(np.float32).reshape(*words.shape, 2)
    halves *= np.float32(2**-32)
    radius = np.sqrt(np.log(halves[..., 1] + np.float32(2**-33)) * np.float32(-2))
    angle = halves[..., 0] * np.float32(2 * np.pi)
    np.multiply(radius, np.cos(angle), out=halves[..., 0])
    np.multiply(radius, np.sin(angle), out=halves[..., 1])
    return halves.reshape(len(words), -1)[:, :n]
