"""Pooling: early versions and ceil_mode against ONNX Runtime, gradients, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import find

x, line, volume = normal(2, 3, 7, 6), normal(1, 2, 9), normal(1, 2, 4, 5, 4)
max_pool, average_pool = find("MaxPool", "", 22).function, find("AveragePool", "", 22).function


def case(op, opset, *inputs, outputs=1, **attributes):
    return Case(op=op, inputs=inputs or (x,), opset=opset, outputs=outputs, attributes=attributes)


CASES = {
    "MaxPool 7": case("MaxPool", 7, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "MaxPool 7 same": case("MaxPool", 7, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    "MaxPool 8 places": case("MaxPool", 8, kernel_shape=[2, 2], strides=[2, 1], outputs=2),
    "MaxPool 8 places by column": case(
        "MaxPool", 8, kernel_shape=[2, 3], strides=[2, 1], pads=[1, 1, 0, 1], storage_order=1, outputs=2
    ),
    "MaxPool 10 ceil": case("MaxPool", 10, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool 10 ceil and pads": case(
        "MaxPool", 10, kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    "MaxPool 10 ceil, places": case(
        "MaxPool", 10, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0], ceil_mode=1, outputs=2
    ),
    "MaxPool 10 dilations": case("MaxPool", 10, kernel_shape=[3, 2], dilations=[2, 3], strides=[1, 2], ceil_mode=1),
    "MaxPool 12 of bytes": case("MaxPool", 12, (x * 40).astype(np.int8), kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool line": case("MaxPool", 7, line, kernel_shape=[3], strides=[2], pads=[1, 1]),
    "MaxPool volume": case("MaxPool", 10, volume, kernel_shape=[2, 3, 2], strides=[2, 2, 2], ceil_mode=1),
    "AveragePool 7": case("AveragePool", 7, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "AveragePool 7 over the padding": case(
        "AveragePool", 7, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], count_include_pad=1
    ),
    "AveragePool 7 same": case("AveragePool", 7, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "AveragePool 10 ceil": case("AveragePool", 10, kernel_shape=[2, 2], strides=[2, 4], ceil_mode=1),
    "AveragePool 19 ceil over the padding": case(
        "AveragePool", 19, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1
    ),
    "AveragePool 19 dilations": case("AveragePool", 19, kernel_shape=[2, 2], dilations=[3, 2], pads=[1, 1, 1, 1]),
    "AveragePool line": case("AveragePool", 7, line, kernel_shape=[4], strides=[3], pads=[2, 1]),
    "AveragePool volume": case("AveragePool", 7, volume, kernel_shape=[2, 3, 2], pads=[0, 1, 1, 0, 1, 0]),
    "LpPool 7": case("LpPool", 7, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], p=3),
    "LpPool 18": case("LpPool", 18, kernel_shape=[2, 2], dilations=[2, 2], p=1),
    "GlobalAveragePool": case("GlobalAveragePool", 7),
    "GlobalMaxPool": case("GlobalMaxPool", 7, volume),
    "GlobalLpPool": case("GlobalLpPool", 7, p=1),
    "MaxUnpool": case(
        "MaxUnpool", 9, x[:1, :1, :2, :2], np.array([[[[1, 6], [8, 15]]]]), kernel_shape=[2, 2], strides=[2, 2]
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


def test_the_gradient_of_a_maximum_goes_to_the_largest_cell():
    weights = jnp.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    data = jnp.asarray(normal(1, 1, 6, 6))

    def total(x):
        return jnp.sum(weights * max_pool(x, kernel_shape=(2, 2), strides=(2, 2)))

    cells = np.asarray(data).reshape(3, 2, 3, 2)
    largest = cells == cells.max((1, 3), keepdims=True)
    wanted = (largest * np.asarray(weights)[0, 0][:, None, :, None]).reshape(1, 1, 6, 6)
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(data), wanted)


def test_the_gradient_of_a_mean_is_shared_by_the_cells_that_count():
    gradient = jax.grad(lambda x: jnp.sum(average_pool(x, kernel_shape=(2,), strides=(2,), pads=(1, 0))))
    np.testing.assert_allclose(gradient(jnp.ones((1, 1, 5))), [[[1, 0.5, 0.5, 0.5, 0.5]]])


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
def test_vmap_over_the_data_is_a_loop(name):
    pool = find(name, "", 22).function
    many = jnp.asarray(normal(3, 1, 2, 5, 5))

    @jax.jit
    def both(many):
        attributes = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
        return jax.vmap(lambda x: pool(x, **attributes))(many), jnp.stack([pool(x, **attributes) for x in many])

    np.testing.assert_allclose(*both(many), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]
)
def test_half_floats_stay_half_floats(name):
    attributes = {} if name.startswith("Global") else {"kernel_shape": [2, 2]}
    half = case(name, 21, x.astype(np.float16), **attributes)
    single = case(name, 21, x.astype(np.float16).astype(np.float32), **attributes)
    [got], [wanted] = run_jaxq(half), run_runtime(single)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wanted, rtol=3e-3, atol=1e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match=r"a window of \[8, 2\] .* does not fit into the padded input"):
        run_jaxq(case("MaxPool", 12, kernel_shape=[8, 2]))
    with pytest.raises(ModelError, match=r"kernel_shape = \[2\] does not fit 2 spatial axes"):
        run_jaxq(case("AveragePool", 12, kernel_shape=[2]))
    with pytest.raises(UnsupportedOpError, match="auto_pad = 'FULL'; expected NOTSET"):
        run_jaxq(case("LpPool", 12, kernel_shape=[2, 2], auto_pad="FULL"))
