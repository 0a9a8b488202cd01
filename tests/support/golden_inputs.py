"""Make the weights and inputs for which the figures of tests/golden were recorded.

A tensor depends only on a seed, its name and its shape, so that two implementations can be compared
without a weight file.
"""

import zlib

import numpy as np
import torch


def generator(seed, name):
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))


def filled_state(state, seed):
    """Return a state dict of the same names, shapes and dtypes with generated values.

    Scales and variances are from U(0.5, 1.5), biases and means from N(0, 0.1), counters 0, other
    weights from N(0, 1) divided by the square root of the fan-in.
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
