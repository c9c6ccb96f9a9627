"""Small networks that hold, each, what made real ones hard to import, place, quantize or write."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]
FLOAT = TensorProto.FLOAT


def written(text: str, opset: int = 17, **initializers: Any) -> onnx.ModelProto:
    """A model in ONNX's own text form, e.g. `(float[N, 4] x) => (float[N, 2] y) { [product] y = MatMul (x, w) }`."""
    graph = onnx.parser.parse_graph(f"network {text}")
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8  # helper's own default is newer than ONNX Runtime reads
    return model


class Network:
    """An ONNX model that grows node by node; tensors are named as they are told, weights are drawn from a seed."""

    def __init__(self, opset: int = 17, seed: int = 0):
        self.opset, self.random = opset, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, np.ndarray] = {}

    def input(self, name: str, shape: Shape, dtype: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Shape, dtype: int = FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.initializers[name] = np.asarray(value, dtype)
        return name

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        fan_in = max(int(np.prod(shape[1:])) if len(shape) != 2 else shape[0], 1)
        return self.constant(name, self.random.normal(size=shape) * scale / np.sqrt(fan_in))

    def node(self, op: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> str:
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"{op}_{outputs[0]}", **attributes))
        return outputs[0]

    def convolution(
        self, x: str, output: str, channels: tuple[int, int], kernel: int = 3, *, bias: bool = True, **attributes: Any
    ) -> str:
        """Conv with a kernel of `kernel` x `kernel` that keeps height and width at stride 1."""
        shape = (channels[1], channels[0] // attributes.get("group", 1), kernel, kernel)
        inputs = [x, self.weight(f"{output}.weight", *shape, scale=1.4)]
        if bias:
            inputs.append(self.constant(f"{output}.bias", self.random.normal(size=channels[1]) * 0.1))
        return self.node("Conv", inputs, output, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2, **attributes)

    def normalization(self, x: str, output: str, channels: int) -> str:
        values = {
            "gamma": self.random.uniform(0.5, 1.5, channels),
            "beta": self.random.normal(size=channels) * 0.2,
            "mean": self.random.normal(size=channels) * 0.2,
            "variance": self.random.uniform(0.5, 2.0, channels),
        }
        operands = [self.constant(f"{output}.{key}", value) for key, value in values.items()]
        return self.node("BatchNormalization", [x, *operands], output)

    def dense(self, x: str, output: str, sizes: tuple[int, int]) -> str:
        weight = self.weight(f"{output}.weight", *sizes)
        bias = self.constant(f"{output}.bias", self.random.normal(size=sizes[1]) * 0.1)
        return self.node("Gemm", [x, weight, bias], output)

    def proto(self) -> onnx.ModelProto:
        initializers = [numpy_helper.from_array(value, name) for name, value in self.initializers.items()]
        graph = helper.make_graph(self.nodes, "network", self.inputs, self.outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8  # helper's own default is newer than ONNX Runtime reads
        return model


def residual_network(batch: int | str = "N", opset: int = 17) -> onnx.ModelProto:
    """image [N, 3, 8, 8] -> scores [N, 5]: BatchNormalization, depthwise convolution, a residual Add, pooling."""
    net = Network(opset)
    x = net.input("image", [batch, 3, 8, 8])
    x = net.convolution(x, "stem", (3, 8), bias=False)
    stem = net.node("Relu", [net.normalization(x, "stem.norm", 8)], "stem.relu")
    x = net.convolution(stem, "depthwise", (8, 8), bias=False, group=8)
    x = net.node("Relu", [net.normalization(x, "depthwise.norm", 8)], "depthwise.relu")
    x = net.convolution(x, "pointwise", (8, 8), 1, bias=False)
    x = net.node("Add", [net.normalization(x, "pointwise.norm", 8), stem], "sum")
    x = net.node("Relu", [x], "sum.relu")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pooled")], "features")
    net.dense(x, "scores", (8, 5))
    net.output("scores", [batch, 5])
    return net.proto()


def shuffle_network() -> onnx.ModelProto:
    """image [N, 3, 8, 8] -> scores [N, 4]: two branches, Concat, a channel shuffle, MaxPool."""
    net = Network()
    image = net.input("image", ["N", 3, 8, 8])
    left = net.node("Relu", [net.convolution(image, "left", (3, 4), 1)], "left.relu")
    right = net.node("Relu", [net.convolution(image, "right", (3, 4))], "right.relu")
    x = net.node("Concat", [left, right], "both", axis=1)
    x = net.node("Reshape", [x, net.constant("split", [0, 2, 4, 8, 8], np.int64)], "groups")
    x = net.node("Transpose", [x], "swapped", perm=[0, 2, 1, 3, 4])
    x = net.node("Reshape", [x, net.constant("join", [0, 8, 8, 8], np.int64)], "shuffled")
    x = net.node("Relu", [net.convolution(x, "mixed", (8, 8))], "mixed.relu")
    x = net.node("MaxPool", [x], "small", kernel_shape=[4, 4], strides=[4, 4])
    x = net.node("Reshape", [x, net.constant("flat", [0, -1], np.int64)], "features")
    net.dense(x, "scores", (32, 4))
    net.output("scores", ["N", 4])
    return net.proto()


def transformer_block(batch: int | str = "N", length: int = 6) -> onnx.ModelProto:
    """tokens [N, 6, 16] -> mixed [N, 6, 16]: normalization, attention with two heads, and a feed-forward part."""
    net = Network()
    tokens = net.input("tokens", [batch, length, 16])

    def linear(x: str, output: str, sizes: tuple[int, int]) -> str:
        product = net.node("MatMul", [x, net.weight(f"{output}.weight", *sizes)], f"{output}.product")
        return net.node(
            "Add", [product, net.constant(f"{output}.bias", net.random.normal(size=sizes[1]) * 0.1)], output
        )

    def heads(x: str, name: str, perm: list[int]) -> str:
        x = net.node("Reshape", [linear(x, name, (16, 16)), "heads"], f"{name}.heads")
        return net.node("Transpose", [x], f"{name}.split", perm=perm)

    def normalized(x: str, output: str) -> str:
        scale, bias = net.constant(f"{output}.scale", np.full(16, 1.2)), net.constant(f"{output}.shift", np.zeros(16))
        return net.node("LayerNormalization", [x, scale, bias], output)

    net.constant("heads", [0, 0, 2, 8], np.int64)
    x = normalized(tokens, "norm")
    query, key = heads(x, "query", [0, 2, 1, 3]), heads(x, "key", [0, 2, 3, 1])
    value = heads(x, "value", [0, 2, 1, 3])
    x = net.node("Mul", [net.node("MatMul", [query, key], "products"), net.constant("root", 8**-0.5)], "logits")
    x = net.node("MatMul", [net.node("Softmax", [x], "attention", axis=-1), value], "context")
    x = net.node("Transpose", [x], "context.joined", perm=[0, 2, 1, 3])
    x = net.node("Reshape", [x, net.constant("joined", [0, 0, 16], np.int64)], "context.flat")
    after = net.node("Add", [linear(x, "projection", (16, 16)), tokens], "after")
    x = linear(normalized(after, "after.norm"), "wide", (16, 32))
    x = net.node("Mul", [x, net.node("Sigmoid", [x], "gate")], "swish")
    net.node("Add", [linear(x, "narrow", (32, 16)), after], "mixed")
    net.output("mixed", [batch, length, 16])
    return net.proto()


def free_size_network() -> onnx.ModelProto:
    """image [N, 1, height, width] -> clean of the same size: down by a strided convolution, up by a transposed one."""
    net = Network()
    image = net.input("image", ["N", 1, "height", "width"])
    x = net.node("Relu", [net.convolution(image, "down", (1, 4), strides=[2, 2])], "down.relu")
    x = net.node("Relu", [net.convolution(x, "middle", (4, 4))], "middle.relu")
    weight = net.weight("up.weight", 4, 1, 2, 2)
    x = net.node("ConvTranspose", [x, weight, net.constant("up.bias", [0.1])], "up", strides=[2, 2])
    net.node("Add", [x, image], "clean")
    net.output("clean", ["N", 1, "height", "width"])
    return net.proto()


def branching_network() -> onnx.ModelProto:
    """sound [N, 1, 16], rate [] int64 -> score [N, 1]: an If on the rate, with a convolution in each branch."""
    net = Network()
    sound, rate = net.input("sound", ["N", 1, 16]), net.input("rate", [], TensorProto.INT64)
    slow, fast = Network(seed=1), Network(seed=2)
    for name, branch, stride in (("slow", slow, 1), ("fast", fast, 2)):
        x = branch.node("Conv", [sound, branch.weight(f"{name}.weight", 4, 1, 3)], f"{name}.conv", strides=[stride])
        x = branch.node("Relu", [x], f"{name}.relu")
        x = branch.node("Conv", [x, branch.weight(f"{name}.weight2", 4, 4, 3)], f"{name}.conv2")
        branch.node("ReduceMean", [x], f"{name}.mean", axes=[2], keepdims=0)
        branch.output(f"{name}.mean", ["N", 4])

    def body(branch: Network, name: str) -> onnx.GraphProto:
        initializers = [numpy_helper.from_array(value, key) for key, value in branch.initializers.items()]
        return helper.make_graph(branch.nodes, name, [], branch.outputs, initializers)

    chosen = net.node("Equal", [rate, net.constant("slow.rate", 8000, np.int64)], "is_slow")
    x = net.node("If", [chosen], "features", then_branch=body(slow, "slow"), else_branch=body(fast, "fast"))
    net.node("Sigmoid", [net.dense(x, "score.raw", (4, 1))], "score")
    net.output("score", ["N", 1])
    return net.proto()


def old_network(opset: int) -> onnx.ModelProto:
    """image [1, 3, 8, 8] -> probabilities [1, 4], at opset 7 or 11: what both wrote in ways that changed later."""
    net = Network(opset)
    x = net.convolution(net.input("image", [1, 3, 8, 8]), "first", (3, 8))
    if opset < 11:
        x = net.node("Clip", [x], "clipped", min=0.0, max=6.0)
        x = net.node("Pad", [x], "padded", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant")
        x = net.node("Upsample", [x, net.constant("factors", [1, 1, 2, 2])] if opset >= 9 else [x], "large", mode="nearest",
                     **({} if opset >= 9 else {"scales": [1.0, 1.0, 2.0, 2.0]}))  # fmt: skip
    else:
        x = net.node("Clip", [x, net.constant("zero", 0.0), net.constant("six", 6.0)], "clipped")
        x = net.node("Pad", [x, net.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)], "padded")
        roi = net.constant("roi", [])
        x = net.node("Resize", [x, roi, net.constant("factors", [1, 1, 2, 2])], "large", mode="nearest",
                     coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    x = net.node("Relu", [net.convolution(x, "second", (8, 8), strides=[2, 2])], "second.relu")
    x = net.node("Dropout", [x], "kept", ratio=0.5)
    x = net.node("ReduceMean", [x], "pooled", axes=[2, 3], keepdims=1)
    x = net.node("Squeeze", [x], "features", axes=[2, 3])
    x = net.dense(x, "scores", (8, 4))
    net.node("Softmax", [net.node("Unsqueeze", [x], "scores.wide", axes=[2])], "probabilities.wide", axis=1)
    net.node("Squeeze", ["probabilities.wide"], "probabilities", axes=[2])
    net.output("probabilities", [1, 4])
    return net.proto()


def integer_network() -> onnx.ModelProto:
    """tokens [N, 4] int64 -> lengths [N, 4] int64: nothing in it can be quantized."""
    net = Network()
    net.node("Add", [net.input("tokens", ["N", 4], TensorProto.INT64), net.constant("one", 1, np.int64)], "lengths")
    net.output("lengths", ["N", 4], TensorProto.INT64)
    return net.proto()


def smooth(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 values whose neighbours are alike, as in images and sounds: sums of noise along the last axes."""
    noise = np.random.default_rng(seed).normal(size=shape)
    for axis in range(2 if len(shape) > 3 else len(shape) - 1, len(shape)):
        noise = np.cumsum(noise, axis=axis) / np.sqrt(shape[axis])
    return noise.astype(np.float32)


def run_onnx(
    model: onnx.ModelProto | bytes | str, feed: Mapping[str, np.ndarray], *, optimized: bool = False
) -> dict[str, Any]:
    """The outputs by name in ONNX Runtime, without its rewriting unless `optimized`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def run_at(
    path: Any, level: str, feeds: Sequence[Mapping[str, np.ndarray]], config: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The outputs of a file by name for each of the samples, in ONNX Runtime at a level such as "ENABLE_BASIC"."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds]


# name -> (model, one sample's inputs as a function of a seed)
NETWORKS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[int], dict[str, np.ndarray]]]] = {
    "residual": (residual_network, lambda seed: {"image": smooth(1, 3, 8, 8, seed=seed)}),
    "shuffle": (shuffle_network, lambda seed: {"image": smooth(1, 3, 8, 8, seed=seed)}),
    "transformer": (transformer_block, lambda seed: {"tokens": smooth(1, 6, 16, seed=seed)}),
    "free size": (free_size_network, lambda seed: {"image": smooth(1, 1, 8, 12, seed=seed)}),
    "branching": (
        branching_network,
        lambda seed: {"sound": smooth(1, 1, 16, seed=seed), "rate": np.array(8000 if seed % 2 else 16000)},
    ),
    "fixed batch": (lambda: residual_network(1), lambda seed: {"image": smooth(1, 3, 8, 8, seed=seed)}),
    "opset 7": (lambda: old_network(7), lambda seed: {"image": smooth(1, 3, 8, 8, seed=seed)}),
    "opset 11": (lambda: old_network(11), lambda seed: {"image": smooth(1, 3, 8, 8, seed=seed)}),
}


def samples(name: str, count: int, first: int = 0) -> list[dict[str, np.ndarray]]:
    """Samples for the network of that name; others for other `first`."""
    return [NETWORKS[name][1](seed) for seed in range(first, first + count)]


@functools.cache
def quantized(name: str) -> Any:
    """The network of that name, quantized as by default on twelve samples; once for all tests of a process."""
    import jaxq

    return jaxq.quantize(NETWORKS[name][0](), samples(name, 12))
