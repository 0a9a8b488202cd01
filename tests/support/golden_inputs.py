"""Weights and inputs by the rule under which the figures of tests/golden were recorded.

A tensor depends on a seed, its name and its shape alone, so no weight file is needed to compare two
implementations.
"""

import zlib

import numpy as np
import torch


def generator(seed, name):
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))


def filled_state(state, seed):
    """A state dict of the same names, shapes and types, with recorded values: scales and
    variances from U(0.5, 1.5), biases and means from N(0, 0.1), everything else from N(0, 1)
    over the root of its fan-in, counters 0.
    """

    def value(name, shape):
        draw = generator(seed, name)
        if name.endswith("num_batches_tracked"):
            return np.zeros(shape)
        if name.endswith("running_var") or (
            len(shape) == 1 and name.endswith("weight") and not name.endswith("running_mean")
        ):
            return draw.uniform(0.5, 1.5, shape)
        if len(shape) < 2:
            return 0.1 * draw.standard_normal(shape)
        return draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))

    return {
        name: torch.from_numpy(np.asarray(value(name, tuple(t.shape)))).to(t.dtype).reshape(t.shape)
        for name, t in state.items()
    }


def filled_input(name, shape, seed):
    return torch.from_numpy(generator(seed, f"input/{name}").standard_normal(shape)).float()
