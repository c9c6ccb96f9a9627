"""Times the ways to compute a convolution (`jaxq.ops.convolution`) on this machine, as a table.

    python tools/bench_convolution.py

Milliseconds, the least of 20 runs after compilation, data [N, C, H, W] in float32. `chosen` is the variant that jaxq takes here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.ops import table
from jaxq.ops.convolution import (
    channels_last_convolution,
    cpu_variant,
    depthwise_convolution,
    grouped_convolution,
    plain_convolution,
    pointwise_convolution,
)
from jaxq.ops.spatial import sliding_window

CASES = {  # name -> (data, kernel [O, I / group, ...], stride, group)
    "3x3, 3 to 32, stride 2": ((1, 3, 224, 224), (32, 3, 3, 3), 2, 1),
    "3x3, 64 to 64": ((1, 64, 56, 56), (64, 64, 3, 3), 1, 1),
    "1x1, 96 to 24": ((1, 96, 56, 56), (24, 96, 1, 1), 1, 1),
    "depthwise 3x3, 96": ((1, 96, 56, 56), (96, 1, 3, 3), 1, 96),
    "depthwise 3x3, 96, stride 2": ((1, 96, 112, 112), (96, 1, 3, 3), 2, 96),
    "grouped 3x3, 8 groups of 16": ((1, 128, 28, 28), (128, 16, 3, 3), 1, 8),
}
VARIANTS = {
    "plain": (plain_convolution, lambda kernel, group: True),
    "channels last": (channels_last_convolution, lambda kernel, group: True),
    "pointwise": (pointwise_convolution, lambda kernel, group: group == 1 and kernel[2:] == (1, 1)),
    "depthwise": (depthwise_convolution, lambda kernel, group: kernel[1] == 1 and group > 1),
    "grouped": (grouped_convolution, lambda kernel, group: 1 < group < kernel[0]),
}


def milliseconds(run: Callable[[], jax.Array], repeats: int = 20) -> float:
    """The least time of a compiled call."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def main() -> None:
    table()  # the operators import each other through it
    random = np.random.default_rng(0)
    print(f"| convolution | {' | '.join(VARIANTS)} | chosen |\n|{'---|' * (len(VARIANTS) + 2)}")
    for name, (shape, kernel, stride, group) in CASES.items():
        x, w = (jnp.asarray(random.normal(size=size), jnp.float32) for size in (shape, kernel))
        around = tuple(side // 2 for side in kernel[2:])
        window = sliding_window(shape[2:], kernel[2:], strides=(stride, stride), pads=around + around)
        chosen = cpu_variant(x, window, group) if jax.default_backend() == "cpu" else plain_convolution
        cells = []
        for variant, fits in VARIANTS.values():
            compiled = jax.jit(lambda x, w, variant=variant: variant(x, w, window, group))  # noqa: B023
            cells.append(f"{milliseconds(lambda: compiled(x, w)):.2f}" if fits(kernel, group) else "-")  # noqa: B023
        print(f"| {name} | {' | '.join(cells)} | {chosen.__name__} |", flush=True)


if __name__ == "__main__":
    main()
