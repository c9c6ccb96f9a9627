"""Activations: early versions, derivatives where a formula could lose them, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq

from jaxq.errors import UnsupportedOpError
from jaxq.ops import find

x = normal(2, 3, 4) * 3
channels = np.array([0.1, 0.2, 0.3], np.float32)

CASES = {
    "Relu": Case(op="Relu", inputs=(x,), opset=7),
    "Relu of integers": Case(op="Relu", inputs=(np.array([-1, 2], np.int32),), opset=14),
    "LeakyRelu": Case(op="LeakyRelu", inputs=(x,), opset=7, attributes={"alpha": 0.2}),
    "PRelu": Case(op="PRelu", inputs=(x, channels[:, None]), opset=7),
    "Elu": Case(op="Elu", inputs=(x,), opset=7, attributes={"alpha": 0.7}),
    "Selu": Case(op="Selu", inputs=(x,), opset=7),
    "Celu": Case(op="Celu", inputs=(x,), opset=12, attributes={"alpha": 0.5}),
    "HardSigmoid": Case(op="HardSigmoid", inputs=(x,), opset=7, attributes={"alpha": 0.3, "beta": 0.4}),
    "HardSwish": Case(op="HardSwish", inputs=(x,), opset=14),
    "Gelu": Case(op="Gelu", inputs=(x,), opset=20),
    "Gelu tanh": Case(op="Gelu", inputs=(x,), opset=20, attributes={"approximate": "tanh"}),
    "Mish": Case(op="Mish", inputs=(x,), opset=18),
    "Shrink": Case(op="Shrink", inputs=(x,), opset=9, attributes={"lambd": 1.0, "bias": 0.25}),
    "Softplus": Case(op="Softplus", inputs=(x * 30,), opset=7),
    "Softsign": Case(op="Softsign", inputs=(x,), opset=7),
    "ThresholdedRelu": Case(op="ThresholdedRelu", inputs=(x,), opset=10, attributes={"alpha": 0.5}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


@pytest.mark.parametrize("slope", [channels, channels[:1]], ids=["by channel", "shared"])
def test_before_opset_7_slopes_belong_to_channels(slope):
    [got] = run_jaxq(Case(op="PRelu", inputs=(x, slope), opset=6))
    np.testing.assert_allclose(got, np.where(x < 0, slope.reshape(-1, 1) * x, x), rtol=1e-6)


@pytest.mark.parametrize("name, opset", [("Elu", 6), ("Selu", 6), ("Celu", 12), ("Softplus", 1), ("Mish", 18)])
def test_derivatives_are_finite_for_large_values(name, opset):
    derivative = jax.vmap(jax.grad(find(name, "", opset).function))
    assert np.isfinite(derivative(jnp.array([-1e4, -1.0, 0.0, 1.0, 1e4]))).all()


def test_relu_has_no_slope_at_zero():
    assert jax.grad(find("Relu", "", 14).function)(0.0) == 0


@pytest.mark.parametrize("name", ["Elu", "HardSwish", "Swish", "Gelu", "Shrink", "LeakyRelu"])
def test_the_type_is_kept(name):
    for dtype in (jnp.float16, jnp.bfloat16):
        assert find(name, "", 28).function(jnp.ones(3, dtype)).dtype == dtype


def test_an_unknown_approximation_is_refused():
    with pytest.raises(UnsupportedOpError, match="approximate 'sigmoid'; known are"):
        run_jaxq(Case(op="Gelu", inputs=(x,), opset=20, attributes={"approximate": "sigmoid"}))
