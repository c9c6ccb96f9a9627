"""Times the ways to compute a convolution (`jaxq.ops.convolution`) on this machine, as a table.

    python tools/bench_convolution.py [--batch N]

Milliseconds, the least of 20 runs after compilation, data [N, C, H, W] in float32. `chosen` is the variant that jaxq takes
here, `chosen, ONNX` that variant with the kernel as ONNX stores it (the others get it laid out by `jaxq.engine.layout`), and
`gradient` the derivatives by data and kernel, with plain convolutions and with the chosen variant.
"""

from __future__ import annotations

import argparse
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
    patch_convolution,
    plain_convolution,
)
from jaxq.ops.spatial import Window, sliding_window

CASES = {  # name -> (data without the batch, kernel [O, I / group, ...], stride, group)
    "3x3, 3 to 32, stride 2": ((3, 224, 224), (32, 3, 3, 3), 2, 1),
    "7x7, 3 to 64, stride 2": ((3, 224, 224), (64, 3, 7, 7), 2, 1),
    "3x3, 16 to 16": ((16, 32, 32), (16, 16, 3, 3), 1, 1),
    "3x3, 64 to 64": ((64, 56, 56), (64, 64, 3, 3), 1, 1),
    "3x3, 256 to 256": ((256, 14, 14), (256, 256, 3, 3), 1, 1),
    "1x1, 96 to 24": ((96, 56, 56), (24, 96, 1, 1), 1, 1),
    "depthwise 3x3, 96": ((96, 56, 56), (96, 1, 3, 3), 1, 96),
    "depthwise 3x3, 96, stride 2": ((96, 112, 112), (96, 1, 3, 3), 2, 96),
    "depthwise 5x5, 240": ((240, 28, 28), (240, 1, 5, 5), 1, 240),
    "grouped 3x3, 8 groups of 16": ((128, 28, 28), (128, 16, 3, 3), 1, 8),
    "grouped 3x3, 32 groups of 4": ((128, 28, 28), (128, 4, 3, 3), 1, 32),
}
Variant = Callable[[jax.Array, jax.Array, Window, int], jax.Array]


def in_onnx_order(variant: Variant) -> Variant:
    """The variant with a kernel [O, I / group, *size], transposed in the program."""
    return lambda x, w, window, group: variant(x, jnp.transpose(w, (2, 3, 1, 0)), window, group)


def plain(x: jax.Array, w: jax.Array, window: Window, group: int) -> jax.Array:
    """XLA's convolution with a kernel [*size, I / group, O]."""
    return plain_convolution(x, jnp.transpose(w, (3, 2, 0, 1)), window, group)


VARIANTS: dict[str, tuple[Variant, Callable[[tuple[int, ...], int], bool]]] = {
    "plain": (plain, lambda kernel, group: True),
    "channels last": (channels_last_convolution, lambda kernel, group: True),
    "patches": (patch_convolution, lambda kernel, group: group == 1),
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


def gradient(variant: Variant) -> Variant:
    """The derivatives of a sum over the result by data and kernel."""
    return lambda x, w, window, group: jax.grad(lambda x, w: jnp.sum(variant(x, w, window, group) ** 2), (0, 1))(x, w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    batch = parser.parse_args().batch
    table()  # the operators import each other through it
    random = np.random.default_rng(0)
    columns = [*VARIANTS, "chosen", "chosen, ONNX", "gradient, plain", "gradient"]
    print(f"| convolution | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, (shape, kernel, stride, group) in CASES.items():
        x = jnp.asarray(random.normal(size=(batch, *shape)), jnp.float32)
        w = jnp.asarray(random.normal(size=kernel), jnp.float32)
        laid_out = jnp.transpose(w, (2, 3, 1, 0))
        around = tuple(side // 2 for side in kernel[2:])
        window = sliding_window(shape[1:], kernel[2:], strides=(stride, stride), pads=around + around)

        def timed(variant: Variant, w: jax.Array, x=x, window=window, group=group) -> str:
            compiled = jax.jit(lambda x, w: variant(x, w, window, group))
            return f"{milliseconds(lambda: compiled(x, w)):.2f}"

        chosen = cpu_variant(x, kernel[0], window, group) if jax.default_backend() == "cpu" else plain
        cells = [timed(variant, laid_out) if fits(kernel, group) else "-" for variant, fits in VARIANTS.values()]
        cells += [chosen.__name__.removesuffix("_convolution"), timed(in_onnx_order(chosen), w)]
        cells += [timed(gradient(plain), laid_out), timed(gradient(chosen), laid_out)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
