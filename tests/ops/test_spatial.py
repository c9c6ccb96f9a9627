"""Windows: what they cover, by counting."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops.spatial import per_channel, sliding_window

small = st.integers(1, 4)


@given(st.integers(1, 12), small, small, small, st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_windows_lie_where_the_padding_ends(length, size, stride, dilation, before, after, ceil):
    extent = (size - 1) * dilation + 1
    assume(before + length + after >= extent > after)  # no window lies in the padding alone
    window = sliding_window(
        (length,), (size,), strides=(stride,), dilations=(dilation,), pads=(before, after), ceil_mode=int(ceil)
    )
    # The standard: a last window may hang over the right padding, if it does not start there.
    whole = range(0, before + length + after - extent + 1, stride)
    hangs = ceil and whole[-1] + extent < before + length + after and whole[-1] + stride < before + length
    [count], [(left, right)] = window.output, window.padding
    assert count == len(whole) + hangs
    assert (window.extents, window.rank, window.pads) == ((extent,), 1, ((before, after),))
    reached = (count - 1) * stride + extent
    assert left == before
    assert left + length + right >= reached
    assert right == 0 or left + length + right == reached


@given(st.integers(1, 12), small, small, small, st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
def test_same_padding_depends_on_the_stride_only(length, size, stride, dilation, auto_pad):
    window = sliding_window((length,), (size,), strides=(stride,), dilations=(dilation,), auto_pad=auto_pad)
    [(before, after)] = window.pads
    assert window.output == (-(-length // stride),)
    assert (after - before if auto_pad == "SAME_UPPER" else before - after) in (0, 1)


def test_valid_means_no_padding():
    window = sliding_window((7, 5), (3, 2), strides=(2, 2), pads=(9, 9, 9, 9), auto_pad="VALID")
    assert window.output == (3, 2)
    assert window.pads == ((0, 0), (0, 0))


REFUSED = {
    "kernel": ({"size": (3,)}, r"kernel_shape = \[3\] does not fit 2 spatial axes; it needs 2 positive numbers"),
    "zero": ({"dilations": (1, 0)}, r"dilations = \[1, 0\] does not fit 2 spatial axes"),
    "pads": ({"pads": (1, 1, 1)}, r"pads = \[1, 1, 1\] does not fit 2 spatial axes; it needs 4 numbers"),
    "too large": (
        {"dilations": (1, 3)},
        r"a window of \[3, 3\] \(dilations \[1, 3\]\) does not fit into the padded input: spatial shape \[5, 6\], "
        r"pads \[\[0, 0\], \[0, 0\]\]",
    ),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ModelError, match=message):
        sliding_window((5, 6), **{"size": (3, 3), **change})


def test_an_unknown_padding_is_refused():
    with pytest.raises(UnsupportedOpError, match="auto_pad = 'SAME'; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER"):
        sliding_window((5,), (3,), auto_pad="SAME")


def test_channels_broadcast_against_planes():
    assert per_channel(np.arange(3), 4).shape == (3, 1, 1)
    assert per_channel(np.arange(3), 2).shape == (3,)
