"""The ONNX backend interface, as a program that knows only ONNX uses it."""

import jax
import numpy as np
import pytest
from onnx import TensorProto, helper

import jaxq.onnx_io.backend
from jaxq.errors import DeviceError, InputError, UnsupportedOpError

x = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(*nodes, inputs, output="y", opset=17):
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "float64": TensorProto.DOUBLE}
    values = [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in inputs.items()]
    graph = helper.make_graph(list(nodes), "g", values, [helper.make_empty_tensor_value_info(output)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_a_model_is_prepared_once_and_run_often():
    double = helper.make_node("Add", ["x", "x"], ["y"])
    prepared = jaxq.onnx_io.backend.prepare(model(double, inputs={"x": ("float32", [None, 3])}))
    for batch in (x, x[:1]):
        [y] = prepared.run([batch])
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(y, 2 * batch)
    np.testing.assert_array_equal(prepared.run({"x": x})[0], 2 * x)
    np.testing.assert_array_equal(prepared.run(x)[0], 2 * x)


def test_outputs_keep_the_order_of_the_graph():
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["b"]), helper.make_node("Abs", ["b"], ["a"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_empty_tensor_value_info(name) for name in ("b", "a")],
    )
    negative, absolute = jaxq.onnx_io.backend.run_model(helper.make_model(graph), [x])
    np.testing.assert_array_equal(negative, -x)
    np.testing.assert_array_equal(absolute, x)


def test_wide_types_are_wide():
    half = helper.make_node("Div", ["x", "two"], ["y"])
    inputs = {"x": ("float64", [1]), "two": ("float64", [])}
    [y] = jaxq.onnx_io.backend.run_model(model(half, inputs=inputs), [np.array([1 + 2**-40]), np.float64(2)])
    assert y.dtype == np.float64
    assert y[0] == (1 + 2**-40) / 2
    assert not jax.config.jax_enable_x64


def test_inputs_that_decide_shapes_may_change():
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    prepared = jaxq.onnx_io.backend.prepare(
        model(reshape, inputs={"x": ("float32", [2, 3]), "shape": ("int64", [None])})
    )
    for shape in ([3, 2], [-1], [6, 1, 1]):
        assert prepared.run([x, np.array(shape)])[0].shape == x.reshape(shape).shape


def test_shapes_that_depend_on_the_data():
    nonzero = helper.make_node("NonZero", ["x"], ["where"])
    back = helper.make_node("Transpose", ["where"], ["y"])
    prepared = jaxq.onnx_io.backend.prepare(model(nonzero, back, inputs={"x": ("float32", [2, 3])}))
    for each in (x, x % 2):
        np.testing.assert_array_equal(prepared.run([each])[0], np.argwhere(each))


def test_one_node():
    node = helper.make_node("Softmax", ["x"], ["y"])
    [y] = jaxq.onnx_io.backend.run_node(node, [x])
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-6)
    [y] = jaxq.onnx_io.backend.run_node(helper.make_node("Softmax", ["x"], ["y"], axis=0), [x], opset_version=11)
    np.testing.assert_allclose(y.sum(), 1, rtol=1e-6)
    [y] = jaxq.onnx_io.backend.run_node(helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft"), [x])
    assert y.shape == x.shape


def test_what_can_be_run():
    known = model(helper.make_node("Relu", ["x"], ["y"]), inputs={"x": ("float32", [2])})
    unknown = model(helper.make_node("ImageDecoder", ["x"], ["y"]), inputs={"x": ("float32", [2])}, opset=20)
    assert jaxq.onnx_io.backend.is_compatible(known)
    assert not jaxq.onnx_io.backend.is_compatible(unknown)
    with pytest.raises(UnsupportedOpError, match="ImageDecoder"):
        jaxq.onnx_io.backend.prepare(unknown)


def test_devices_have_onnx_s_names():
    assert jaxq.onnx_io.backend.supports_device("CPU")
    assert jaxq.onnx_io.backend.supports_device("CPU:0")
    assert jaxq.onnx_io.backend.supports_device("CUDA") == any(device.platform == "gpu" for device in jax.devices())
    for name in ("CPU:99", "CPU:first", "ABACUS"):
        assert not jaxq.onnx_io.backend.supports_device(name)
    relu = model(helper.make_node("Relu", ["x"], ["y"]), inputs={"x": ("float32", [2])})
    with pytest.raises(DeviceError, match="device 'ABACUS' is not there; JAX sees"):
        jaxq.onnx_io.backend.prepare(relu, "ABACUS")


def test_a_wrong_number_of_inputs_is_refused():
    relu = model(helper.make_node("Relu", ["x"], ["y"]), inputs={"x": ("float32", [2])})
    with pytest.raises(InputError, match=r"the model has 1 inputs \(x\), but 2 were given"):
        jaxq.onnx_io.backend.run_model(relu, [x, x])
    with pytest.raises(InputError, match=r"the model has the inputs \['x'\], but \['X'\] were given"):
        jaxq.onnx_io.backend.run_model(relu, {"X": x})
    with pytest.raises(InputError, match=r"the node has 2 inputs \(a, b\), but 1 were given"):
        jaxq.onnx_io.backend.run_node(helper.make_node("Add", ["a", "b"], ["y"]), [x])


def test_the_inputs_of_a_node_can_be_given_by_name_and_one_tensor_can_be_several():
    node = helper.make_node("Sub", ["a", "b"], ["y"])
    np.testing.assert_array_equal(jaxq.onnx_io.backend.run_node(node, {"b": x, "a": 3 * x})[0], 2 * x)
    np.testing.assert_array_equal(
        jaxq.onnx_io.backend.run_node(helper.make_node("Mul", ["a", "a"], ["y"]), {"a": x})[0], x * x
    )
