"""Windows that slide over the spatial axes of [N, C, D1, ..., Dn]: what convolutions and poolings have in common."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import refuse_huge


@dataclass(frozen=True)
class Window:
    """Where a kernel is laid over an input, with one entry for each spatial axis.

    Always true:
      * window j of axis i covers the padded cells j * strides[i] + dilations[i] * (0, ..., size[i] - 1)
      * `padding` is what the windows reach: less than the declared `pads` where the last cells are read by no window,
        more where ceil_mode lets the last window hang over
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]  # as declared: before and after
    output: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def rank(self) -> int:
        return len(self.size)

    def along(self, axis: int) -> Window:
        """The same window over one spatial axis alone."""
        here = slice(axis, axis + 1)
        return Window(
            self.size[here],
            self.strides[here],
            self.dilations[here],
            self.pads[here],
            self.output[here],
            self.padding[here],
        )

    @property
    def extents(self) -> tuple[int, ...]:
        """Distance from the first to the last cell of a window, plus one."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilations, strict=True))


def sliding_window(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    *,
    strides: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Window:
    """The window that ONNX's attributes describe over an input with spatial `shape`.

    Source: ONNX MaxPool-22 and Conv-22 (output shape, auto_pad, "windows that would start in the right padded region
    are ignored").
    """
    rank = len(shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    check_axes(rank, kernel_shape=size, strides=strides, dilations=dilations)
    extents = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
    paired = resolve_pads(shape, extents, strides, pads, auto_pad)
    output, padding = [], []
    for length, extent, stride, (before, after) in zip(shape, extents, strides, paired, strict=True):
        room = before + length + after - extent
        count = (-(-room // stride) if ceil_mode and auto_pad in ("NOTSET", "") else room // stride) + 1
        if ceil_mode and (count - 1) * stride >= before + length:
            count -= 1
        if room < 0 or count < 1:
            raise ModelError(
                f"a window of {list(size)} (dilations {list(dilations)}) does not fit into the padded input: "
                f"spatial shape {list(shape)}, pads {[list(pair) for pair in paired]}"
            )
        output.append(count)
        padding.append((before, max((count - 1) * stride + extent - length - before, 0)))
    refuse_huge(output, np.int64)
    return Window(tuple(size), tuple(strides), tuple(dilations), paired, tuple(output), tuple(padding))


def check_axes(rank: int, **attributes: tuple[int, ...]) -> None:
    """Raises ModelError unless each attribute has one positive number for each of `rank` spatial axes."""
    for name, value in attributes.items():
        if len(value) != rank or min(value, default=1) < 1:
            raise ModelError(
                f"{name} = {list(value)} does not fit {rank} spatial axes; it needs {rank} positive numbers"
            )


def resolve_pads(
    shape: tuple[int, ...], extents: list[int], strides: tuple[int, ...], pads: tuple[int, ...], auto_pad: str
) -> tuple[tuple[int, int], ...]:
    """Padding as one (before, after) pair for each spatial axis."""
    rank = len(shape)
    if auto_pad in ("NOTSET", ""):
        pads = pads or (0,) * (2 * rank)
        if len(pads) != 2 * rank:
            raise ModelError(f"pads = {list(pads)} does not fit {rank} spatial axes; it needs {2 * rank} numbers")
        return tuple(zip(pads[:rank], pads[rank:], strict=True))
    if auto_pad == "VALID":
        return ((0, 0),) * rank
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedOpError(f"auto_pad = {auto_pad!r}; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    totals = [
        max((-(-length // stride) - 1) * stride + extent - length, 0)
        for length, extent, stride in zip(shape, extents, strides, strict=True)
    ]
    small_first = auto_pad == "SAME_UPPER"
    return tuple((t // 2, t - t // 2) if small_first else (t - t // 2, t // 2) for t in totals)


def per_channel(values, rank: int):
    """[C] as [C, 1, ..., 1], to broadcast against an array of that rank with channels on axis 1."""
    return jnp.reshape(values, (-1,) + (1,) * (rank - 2))
