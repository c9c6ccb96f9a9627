"""A model as a flax module computes the same, trains, and comes back as a model."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
import pytest
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

import jaxq
from jaxq.engine.model import Model
from jaxq.errors import InputError, ModelError
from jaxq.graph.ir import FrozenDict
from jaxq.numerics.quantizer import IntType, QuantParams
from jaxq.onnx_io.flax import Constant, Encoding, OnnxModule, from_flax, to_flax
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save

DIGITS = Path(jaxq.__file__).parent / "demo" / "digits.onnx"

# Names as they stand in files; one is a method of the mapping that holds the variables.
KERNEL, BIAS, TABLE, INDEX, WIDE = "net/dense:0/kernel.1", "items", "table", "index table", "__wide__"


def proto(nodes, inputs, outputs, params) -> onnx.ModelProto:
    """A model of float32 tensors with the given shapes, other dtypes by name."""

    def declared(shapes):
        return [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in ("place", "shape") else TensorProto.FLOAT, shape
            )
            for name, shape in shapes.items()
        ]

    initializers = [numpy_helper.from_array(value, name) for name, value in params.items()]
    graph = helper.make_graph(nodes, "small", declared(inputs), declared(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def table_proto() -> onnx.ModelProto:
    """y = (relu(x @ kernel + bias) + table[index[place]]) * wide, in three widths of floats and with integers."""
    generator = np.random.default_rng(3)
    params = {
        KERNEL: generator.normal(size=(4, 3)).astype(np.float32),
        BIAS: np.zeros(3, np.float32),
        TABLE: generator.normal(size=(5, 3)).astype(np.float16),
        INDEX: np.arange(70_000) % 5,
        WIDE: np.array([[0.5, 1.0, 2.0]]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", KERNEL], ["product"]),
        helper.make_node("Add", ["product", BIAS], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["hidden"]),
        helper.make_node("Gather", [INDEX, "place"], ["row"]),
        helper.make_node("Gather", [TABLE, "row"], ["half"]),
        helper.make_node("Cast", ["half"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["hidden", "single"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["double", WIDE], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["y"], to=TensorProto.FLOAT),
    ]
    return proto(nodes, {"x": ["N", 4], "place": ["N"]}, {"y": ["N", 3]}, params)


def image_proto() -> onnx.ModelProto:
    """Convolution, BatchNormalization, ReLU, mean and a linear classifier: [N, 1, 6, 6] -> 3 logits."""
    generator = np.random.default_rng(4)
    params = {
        "conv/weight": generator.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "norm/scale": np.ones(4, np.float32),
        "norm/bias": np.zeros(4, np.float32),
        "norm/mean": np.full(4, 0.1, np.float32),
        "norm/variance": np.full(4, 2, np.float32),
        "classifier/weight": generator.normal(size=(4, 3)).astype(np.float32),
        "classifier/bias": np.zeros(3, np.float32),
    }
    norm = ["norm/scale", "norm/bias", "norm/mean", "norm/variance"]
    nodes = [
        helper.make_node("Conv", ["image", "conv/weight"], ["conv"]),
        helper.make_node("BatchNormalization", ["conv", *norm], ["norm"]),
        helper.make_node("Relu", ["norm"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "classifier/weight", "classifier/bias"], ["logits"]),
    ]
    return proto(nodes, {"image": ["N", 1, 6, 6]}, {"logits": ["N", 3]}, params)


def with_encodings(model: Model) -> Model:
    """The model with coarse grids for its input and its first kernel."""
    kernel = next(name for name, value in model.params.items() if value.ndim == 4)
    largest = np.abs(model.params[kernel]).max(axis=(1, 2, 3), keepdims=True)
    encodings = {
        kernel: QuantParams.of(largest / 7, 0, IntType(8)),
        "image": QuantParams.of(np.full((1, 1, 1, 1), 1 / 7), 0, IntType(8)),
    }
    return model.replace(encodings=encodings)


TABLES = load(table_proto())
FLOAT = load(image_proto())
QUANTIZED = with_encodings(FLOAT)
BOTH = pytest.mark.parametrize("model", [FLOAT, QUANTIZED], ids=["float", "quantized"])

IMAGES = np.random.default_rng(5).normal(size=(16, 1, 6, 6)).astype(np.float32)
LABELS = np.arange(16, dtype=np.int32) % 3


def feed(count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(count)
    return {"x": generator.normal(size=(count, 4)).astype(np.float32), "place": generator.integers(0, 70_000, count)}


def loss(module: OnnxModule, image=IMAGES, label=LABELS) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(module(image)["logits"], label).mean()


# ----------------------------------------------------------------------------------------------------------- the module


@pytest.mark.parametrize("count", [1, 3])
def test_a_module_computes_what_the_model_computes(count):
    inputs, module = feed(count), to_flax(TABLES)
    expected = TABLES(inputs)
    assert expected.keys() == {"y"}
    np.testing.assert_array_equal(module(inputs)["y"], expected["y"])
    np.testing.assert_array_equal(module(*inputs.values())["y"], expected["y"])


SOURCES = {"a path": DIGITS, "a proto": image_proto(), "bytes": image_proto().SerializeToString(), "a model": FLOAT}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_module_is_made_from_all_that_load_takes(source):
    assert isinstance(to_flax(source), OnnxModule)


def test_a_file_that_is_not_there_is_a_model_error():
    with pytest.raises(ModelError, match="no such file"):
        to_flax("nowhere.onnx")


def test_what_is_no_module_of_ours_is_refused():
    with pytest.raises(jaxq.ConfigError, match=r"module = 3; expected an OnnxModule, as jaxq\.to_flax makes it"):
        from_flax(3)


def test_variables_are_named_as_in_the_file_and_typed_by_what_they_are():
    kinds = {name: type(variable) for name, variable in to_flax(TABLES).params.items()}
    assert kinds == {KERNEL: nnx.Param, f"{BIAS}#": nnx.Param, TABLE: nnx.Param, WIDE: nnx.Param, INDEX: Constant}
    params = to_flax(FLOAT).params
    statistics = {name for name in params if isinstance(params[name], nnx.BatchStat)}
    assert statistics == {"norm/mean", "norm/variance"}


def test_an_assigned_array_is_the_one_computed_with():
    module, inputs = to_flax(TABLES), feed(2)
    module.params[TABLE][...] = jnp.zeros((5, 3), jnp.float16)
    module.params[KERNEL][...] = jnp.zeros((4, 3), jnp.float32)
    np.testing.assert_array_equal(module(inputs)["y"], np.zeros((2, 3)))


def test_a_module_is_printed_without_its_graph():
    text = repr(to_flax(TABLES))
    assert "<small: 10 nodes>" in text
    assert "Relu" not in text


def test_inputs_are_checked_as_those_of_the_model():
    module = to_flax(TABLES)
    with pytest.raises(InputError, match="axis 1 must be 4, not 5"):
        module(np.zeros((1, 5), np.float32), np.zeros(1, np.int64))
    with pytest.raises(InputError, match="has 2 inputs"):
        module(np.zeros((1, 4), np.float32))


def test_an_input_that_decides_shapes_is_used_inside_of_a_compiled_function_but_is_no_argument_of_it():
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    module = to_flax(proto([node], {"x": [4], "shape": [2]}, {"y": ["A", "B"]}, {}))
    x, shape = np.arange(4, dtype=np.float32), np.array([2, 2])
    assert jax.jit(lambda x: module(x, shape)["y"])(x).shape == (2, 2)
    with pytest.raises(InputError, match="'shape' decides shapes"):
        jax.jit(lambda x, shape: module(x, shape)["y"])(x, shape)


# ----------------------------------------------------------------------------------------------- transformations of JAX


@BOTH
@pytest.mark.parametrize("jit", [jax.jit, nnx.jit])
def test_a_module_is_an_argument_of_a_compiled_function(model, jit):
    module, expected, traces = to_flax(model), model(IMAGES)["logits"], 0

    @jit
    def logits(module, image):
        nonlocal traces
        traces += 1
        return module(image)["logits"]

    for _ in range(2):
        np.testing.assert_allclose(logits(module, IMAGES), expected, rtol=1e-5, atol=1e-5)
    module.params["classifier/bias"][...] += 1
    np.testing.assert_allclose(logits(module, IMAGES), expected + 1, rtol=1e-5, atol=1e-5)
    assert traces == 1, "new weights must not compile again"
    np.testing.assert_allclose(logits(to_flax(model), IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert traces == 1, "nor must another module of the same model"


@BOTH
def test_vmap_over_samples_is_the_batch(model):
    module = to_flax(model)
    one_by_one = jax.vmap(lambda image: module(image[None])["logits"][0])(IMAGES)
    np.testing.assert_allclose(one_by_one, model(IMAGES)["logits"], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_loss():
    module = to_flax(FLOAT)
    probabilities = jax.nn.softmax(FLOAT(IMAGES)["logits"])
    expected = (probabilities - jax.nn.one_hot(LABELS, 3)).mean(axis=0)
    gradients = nnx.grad(loss)(module)["params"]
    assert set(gradients) == set(FLOAT.params) - {"norm/mean", "norm/variance"}
    np.testing.assert_allclose(gradients["classifier/bias"][...], expected, rtol=1e-4, atol=1e-6)
    whole = jax.grad(loss)(module)  # a module is a pytree of its variables
    np.testing.assert_allclose(whole.params["classifier/bias"][...], expected, rtol=1e-4, atol=1e-6)


def test_integers_get_no_gradient():
    module = to_flax(TABLES)
    gradient = jax.grad(lambda module: module(feed(3))["y"].sum(), allow_int=True)(module)
    assert gradient.params[INDEX].get_value().dtype == jax.dtypes.float0
    assert np.abs(gradient.params[KERNEL][...]).max() > 0


@BOTH
def test_training_reduces_the_loss_and_leaves_the_rest_alone(model, standard_promotion):
    module = to_flax(model)
    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)
    fixed = jax.tree.map(np.asarray, nnx.state(module, nnx.Not(nnx.Param)))

    @nnx.jit
    def step(module, optimizer):
        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    losses = [float(step(module, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, fixed, nnx.state(module, nnx.Not(nnx.Param)))


def test_a_function_of_the_params_alone_trains_too(standard_promotion):
    graphdef, params, rest = nnx.split(to_flax(FLOAT), nnx.Param, ...)
    adam = optax.adam(3e-2)

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params, rest)))(params)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = adam.init(params), []
    for _ in range(5):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------------------------------------ encodings


def test_encodings_are_simulated_and_can_be_changed_without_compiling_again():
    module, traces = to_flax(QUANTIZED), 0

    @nnx.jit
    def logits(module):
        nonlocal traces
        traces += 1
        return module(IMAGES)["logits"]

    np.testing.assert_allclose(logits(module), QUANTIZED(IMAGES)["logits"], rtol=1e-5, atol=1e-5)
    assert np.abs(logits(module) - FLOAT(IMAGES)["logits"]).max() > 1e-2
    for encoding in module.encodings.values():
        assert isinstance(encoding, Encoding)
        encoding.set_value(replace(encoding.get_value(), enabled=jnp.bool_(False)))
    np.testing.assert_allclose(logits(module), FLOAT(IMAGES)["logits"], rtol=1e-5, atol=1e-5)
    assert traces == 1


def test_gradients_pass_straight_through_the_rounding():
    gradients = nnx.grad(loss)(to_flax(QUANTIZED))
    assert "encodings" not in gradients
    assert np.abs(gradients["params"]["conv/weight"][...]).max() > 0


# ------------------------------------------------------------------------------------------------------- and back again


@pytest.mark.parametrize("model", [TABLES, QUANTIZED], ids=["tables", "quantized"])
def test_a_module_that_was_not_trained_comes_back_as_the_same_model(model):
    model = model.replace(metadata=FrozenDict({"author": "somebody"}))
    back = from_flax(to_flax(model))
    assert back.graph is model.graph
    assert back.metadata == model.metadata
    assert list(back.params) == list(model.params), "the order decides the bytes of the file"
    for name, value in model.params.items():
        assert back.params[name].dtype == value.dtype
        np.testing.assert_array_equal(back.params[name], value)
    assert list(back.encodings) == list(model.encodings)
    for name, encoding in model.encodings.items():
        jax.tree.map(np.testing.assert_array_equal, back.encodings[name], encoding)
        assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(back.encodings[name]))


def test_a_clone_and_a_merged_module_come_back_too():
    module = to_flax(FLOAT)
    for other in (nnx.clone(module), nnx.merge(*nnx.split(module))):
        assert list(from_flax(other).params) == list(FLOAT.params)


def in_onnx_runtime(model: Model, path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of the saved model."""
    runtime = pytest.importorskip("onnxruntime")
    save(model, path)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def check_trained(model: Model, image: np.ndarray, label: np.ndarray, path: Path) -> None:
    """One step of training changes the outputs, and ONNX Runtime computes the changed ones."""
    module, before = to_flax(model), model(image)["logits"]
    optimizer = nnx.Optimizer(module, optax.sgd(1e-2), wrt=nnx.Param)
    optimizer.update(module, nnx.grad(loss)(module, image, label))
    logits = in_onnx_runtime(from_flax(module), path, {"image": image})
    np.testing.assert_allclose(logits, module(image)["logits"], rtol=1e-4, atol=1e-4)
    assert np.abs(logits - before).max() > 1e-3


@BOTH
def test_a_trained_module_runs_in_onnx_runtime_with_the_same_outputs(model, tmp_path, standard_promotion):
    check_trained(model, IMAGES, LABELS, tmp_path / "trained.onnx")


@pytest.mark.slow
def test_the_demo_model_trains_and_runs_in_onnx_runtime(tmp_path, standard_promotion):
    with np.load(DIGITS.with_suffix(".npz"), allow_pickle=False) as file:
        image, label = file["validation_image"][:32], file["validation_label"][:32]
    noise = np.random.default_rng(0).normal(size=image.shape)
    image = (image / 16 + 0.3 * noise).astype(np.float32)
    check_trained(with_encodings(load(DIGITS)), image, label.astype(np.int32), tmp_path / "digits.onnx")


def test_a_module_with_integers_and_wide_floats_is_written_in_the_dtypes_of_the_file(tmp_path):
    module, path = to_flax(TABLES), tmp_path / "small.onnx"
    y = in_onnx_runtime(from_flax(module), path, feed(5))
    np.testing.assert_allclose(y, module(feed(5))["y"], rtol=1e-5, atol=1e-6)
    written = {each.name: each.data_type for each in onnx.load(path).graph.initializer}
    assert written[INDEX] == TensorProto.INT64
    assert written[TABLE] == TensorProto.FLOAT16
    assert written[WIDE] == TensorProto.DOUBLE
