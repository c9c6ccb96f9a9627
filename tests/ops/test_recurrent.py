"""Recurrent layers: every direction and option against ONNX Runtime, gradients, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import find

STEPS, BATCH, SIZE, HIDDEN = 4, 3, 2, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
lengths = np.array([2, 4, 1], np.int32)


def case(op, opset, *options, directions=1, peepholes=False, **attributes):
    """`options` may name: bias, lengths, initial."""
    gates = GATES[op]
    initial = [normal(directions, BATCH, HIDDEN, seed=seed) if "initial" in options else None for seed in (4, 5)]
    inputs = [
        normal(STEPS, BATCH, SIZE),
        normal(directions, gates * HIDDEN, SIZE, seed=1),
        normal(directions, gates * HIDDEN, HIDDEN, seed=2) * 0.5,
        normal(directions, 2 * gates * HIDDEN, seed=3) if "bias" in options else None,
        lengths if "lengths" in options else None,
        *(initial if op == "LSTM" else initial[:1]),
    ]
    if peepholes:
        inputs.append(normal(directions, 3 * HIDDEN, seed=6))
    while inputs[-1] is None:
        inputs.pop()
    outputs = 3 if op == "LSTM" else 2
    return Case(
        op=op, inputs=tuple(inputs), opset=opset, outputs=outputs, attributes={"hidden_size": HIDDEN, **attributes}
    )


both = {"directions": 2, "direction": "bidirectional"}
CASES = {
    "LSTM 7": case("LSTM", 7),
    "LSTM 7 with all": case("LSTM", 7, "bias", "lengths", "initial", peepholes=True, **both),
    "LSTM 7 reverse": case("LSTM", 7, "bias", "lengths", direction="reverse"),
    "LSTM 7 coupled": case("LSTM", 7, "bias", input_forget=1),
    "LSTM 7 clipped": case("LSTM", 7, "bias", "initial", clip=0.4),
    "LSTM 14": case("LSTM", 14, "bias", "initial", activations=["HardSigmoid", "Softsign", "Relu"]),
    "LSTM 14 with parameters": case(
        "LSTM", 14, "bias",
        activations=["HardSigmoid", "ScaledTanh", "Affine"],
        activation_alpha=[0.3, 0.8, 0.9],
        activation_beta=[0.4, 1.2, 0.1],
    ),
    "GRU 7": case("GRU", 7),
    "GRU 7 linear before reset": case("GRU", 7, "bias", "initial", linear_before_reset=1),
    "GRU 7 linear without bias": case("GRU", 7, "lengths", linear_before_reset=1, direction="reverse"),
    "GRU 14 with all": case("GRU", 14, "bias", "lengths", "initial", **both),
    "GRU 14 with all, linear": case("GRU", 14, "bias", "lengths", "initial", linear_before_reset=1, **both),
    "GRU 14 clipped": case("GRU", 14, "bias", clip=0.5),
    "RNN 7": case("RNN", 7),
    "RNN 14 with all": case("RNN", 14, "bias", "lengths", "initial", **both),
    "RNN 14 activations": case(
        "RNN", 14, "bias", activations=["LeakyRelu", "Elu"], activation_alpha=[0.1, 0.7], **both
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case)


@pytest.mark.parametrize("op", GATES)
def test_layout_1_has_the_batch_first(op):
    """ONNX Runtime's CPU takes layout 0 only."""
    plain = case(op, 14, "bias", "lengths", "initial", **both)
    swapped = [value.swapaxes(0, 1) if index in (0, 5, 6) else value for index, value in enumerate(plain.inputs)]
    first = Case(
        op=op, inputs=tuple(swapped), opset=14, outputs=plain.outputs, attributes={**plain.attributes, "layout": 1}
    )
    (wanted_y, *wanted), (y, *states) = run_runtime(plain), run_jaxq(first)
    np.testing.assert_allclose(y, wanted_y.transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    for got, other in zip(states, wanted, strict=True):
        np.testing.assert_allclose(got, other.swapaxes(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", GATES)
def test_half_floats_stay_half_floats(op):
    single = case(op, 14, "bias", "lengths", "initial")
    half = [value.astype(np.float16) if value.dtype == np.float32 else value for value in single.inputs]
    got = run_jaxq(Case(op=op, inputs=tuple(half), opset=14, outputs=single.outputs, attributes=single.attributes))
    for mine, wanted in zip(got, run_runtime(single), strict=True):
        assert mine.dtype == np.float16
        np.testing.assert_allclose(mine, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("op", GATES)
def test_constants_of_the_graph_may_be_numpy(op):
    """As a state or bias of zeros made by ConstantOfShape is."""
    full = case(op, 14, "bias", "initial")
    data, *weights = (None if value is None else jnp.asarray(value) for value in full.inputs)
    function = find(op, "", 14).function
    bias, initial = np.asarray(weights[2]), [np.asarray(value) for value in weights[4:]]
    got = jax.jit(lambda x: function(x, *weights[:2], bias, None, *initial))(data)
    for mine, wanted in zip(got, run_runtime(full), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6)


def test_cells_beyond_a_sequence_get_no_gradient():
    x, *rest = (None if value is None else jnp.asarray(value) for value in case("GRU", 14, "bias", "lengths").inputs)
    gru = find("GRU", "", 14).function
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(gru(x, *rest)[1])))(x)
    beyond = np.arange(STEPS)[:, None] >= lengths
    assert np.all(np.asarray(gradient)[beyond] == 0)
    assert np.all(np.any(np.asarray(gradient)[~beyond] != 0, axis=-1))


@pytest.mark.parametrize("op", GATES)
def test_what_is_not_known_is_refused(op):
    defaults = {"LSTM": 3, "GRU": 2, "RNN": 1}[op]
    with pytest.raises(UnsupportedOpError, match="activation 'Sine'; known are relu, tanh"):
        run_jaxq(case(op, 14, activations=["Sine"] * defaults))
    with pytest.raises(ModelError, match=f"expected {defaults} for each of 2 directions"):
        run_jaxq(case(op, 14, activations=["Tanh"] * defaults, **both))
    with pytest.raises(UnsupportedOpError, match="direction = 'sideways'; expected forward, reverse or bidirectional"):
        run_jaxq(case(op, 14, direction="sideways"))
    with pytest.raises(ModelError, match="weights for 1 directions do not fit direction 'bidirectional'"):
        run_jaxq(case(op, 14, direction="bidirectional"))
