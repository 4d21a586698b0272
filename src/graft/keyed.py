"""Random numbers that are a function of what they are for, not of when they are drawn.

Every draw is a hash of (seed, purpose, epoch, sample index, …). So the order of samples and each
sample's augmentation are the same on 1 and 4 processes, with any number of workers, on CPU and GPU,
and after a resume, without any generator state to save.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, OOPSLA).
"""

import functools

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=4096)  # an epoch's draws ask for the same few keys at every batch
def key(*parts: int | str) -> int:
    """One 63-bit key from integers and names, e.g. `key(seed, "order", epoch)`."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        words = part.encode() if isinstance(part, str) else [part % 2**64]
        for word in words:
            state = _mix(state + _GOLDEN + np.uint64(word))
    return int(state[0] >> np.uint64(1))


def uniform(base: int, index_B: np.ndarray, columns: int) -> np.ndarray:
    """Uniform draws in [0, 1), float64 `(B, columns)`; row b depends on `base` and `index_B[b]` alone."""
    index = np.asarray(index_B).astype(np.uint64)[:, None]
    column = np.arange(columns, dtype=np.uint64)[None, :]
    bits = _mix(_mix(np.uint64(base) + _GOLDEN * (index + np.uint64(1))) + _GOLDEN * (column + np.uint64(1)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(base: int, n: int) -> torch.Tensor:
    """A random order of `range(n)`, int64 `(n,)`, on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(base))


class Draw:
    """The random numbers of one batch of samples for one purpose.

    `Draw(seed, epoch, index_B)(name, columns)` gives uniforms `(B, columns)`, float64, on the CPU:
    parameters are chosen there, so that grouping samples by operation never waits for the device.
    """

    def __init__(self, seed: int, epoch: int, index_B: torch.Tensor):
        self.seed, self.epoch = seed, epoch
        self.index_B = np.asarray(index_B)

    def __call__(self, name: str, columns: int = 1) -> np.ndarray:
        return uniform(key(self.seed, name, self.epoch), self.index_B, columns)
