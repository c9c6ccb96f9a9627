"""Valid models, and many ways to break them: what the tests of bad input are made of. Everything follows from a seed.

`python tests/mutations.py FIRST LAST` tries the seeds of that range and prints each failure, for longer runs by hand.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import random
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx
from models import branching_network, old_network, residual_network, shuffle_network, transformer_block, written
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from jaxq.engine.execute import execute, traced_params
from jaxq.engine.model import Model
from jaxq.engine.traced import signed
from jaxq.errors import JaxqError
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import to_proto

LOOP = """(float[2, 3] x, int64 steps) => (float[2, 3] y, float[rows, 2, 3] all) {
    y, all = Loop (steps, yes, x) <body = body (int64 i, bool go, float[2, 3] s) => (bool on, float[2, 3] t, float[2, 3] row) {
        on = Identity (go)  t = Mul (s, factor)  row = Neg (t) }> }"""
COUNTED = """(float[2, 3] x) => (float[2, 3] y) {
    y = Loop (steps, , x) <body = body (int64 i, bool go, float[2, 3] s) => (bool on, float[2, 3] t) {
        on = Identity (go)  f = Cast <to = 1> (i)  t = Add (s, f) }> }"""
SCAN = """(float[4, 3] x) => (float[3] total, float[4, 3] sums) {
    total, sums = Scan <num_scan_inputs = 1, body = body (float[3] before, float[3] row) => (float[3] after, float[3] copy) {
        after = Add (before, row)  copy = Identity (after) }> (zero, x) }"""
SHAPES = """(float[N, 3, 4] x) => (float[N, M, K] y, int64[3, count] ids, float[2, 3] hot) {
    s = Shape (x)  n = Gather <axis = 0> (s, first)  target = Concat <axis = 0> (n, rest)
    r = Reshape (x, target)  e = Expand (r, wide)  t = Tile (e, repeats)  p = Pad <mode = "constant"> (t, pads)
    c = ConstantOfShape (target)  l = Range (start, limit, delta)  d = Cast <to = 1> (l)
    sum = ReduceSum <keepdims = 0> (d)  q = Slice (p, start1, end1, axis1)  m = Mul (q, sum)  y = Add (m, one)
    ids = NonZero (c)  hot = OneHot <axis = -1> (ones, depth, values) }"""
RESIZE = """(float[1, 2, 4, 4] x) => (float[1, 2, H, W] y) {
    big = Resize <mode = "linear"> (x, , scales)  small = Resize <mode = "nearest"> (big, , , sizes)
    a = AveragePool <kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1]> (small)
    b = MaxPool <kernel_shape = [2, 2], dilations = [1, 1], ceil_mode = 1> (a)
    c = ConvTranspose <strides = [2, 2], output_padding = [1, 1]> (b, w)
    d = DepthToSpace <blocksize = 1> (c)  e = LRN <size = 3> (d)  y = Softmax <axis = 1> (e) }"""
TEXTS = """(float[2, 6] x) => (float[2, 6] y, int64[2, 2] which) {
    h, g = Split <axis = 1> (x, parts)  t = Transpose <perm = [1, 0]> (h)  m = Gemm <transA = 1> (t, w)
    v, which = TopK <axis = 1> (m, k)  u = GatherElements <axis = 1> (m, which)  z = Concat <axis = 1> (u, v)
    j = Concat <axis = 1> (z, zeros)  i = Einsum <equation = "ij,kj->ik"> (j, x)  o = Where (mask, i, i)
    y = MatMul (o, back) }"""
RECURRENT = """(float[3, 1, 4] x) => (float[3, 1, 1, 2] y) {
    a = LSTM <hidden_size = 2> (x, w, r, b, , h)  s = Squeeze (a, axes)  y0, last = GRU <hidden_size = 2> (s, w2, r2)
    y = CumSum (y0, axis) }"""
INTEGERS = """(float[2, 4] x) => (float[2, 3] y) {
    q = QuantizeLinear (x, scale, zero)  d = DequantizeLinear (q, scale, zero)
    wd = DequantizeLinear <axis = 1> (w, wscale, wzero)  m = MatMul (d, wd)
    i = MatMulInteger (q, w, zero, z8)  f = Cast <to = 1> (i)  y = Add (m, f) }"""


def function_model() -> onnx.ModelProto:
    """A model with two local functions, one inside of the other, with an attribute and an optional input."""
    model = written("(float[N, 2] x) => (float[N, 2] y) { y = local.Outer <slope = 0.5> (x) }")
    standard = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
    inner = [leaky, helper.make_node("Clip", ["b", "low"], ["c"])]
    outer = [helper.make_node("Inner", ["a", ""], ["b"], domain="local"), helper.make_node("Add", ["a", "b"], ["c"])]
    outer[0].attribute.append(AttributeProto(name="slope", ref_attr_name="slope", type=AttributeProto.FLOAT))
    model.functions.append(helper.make_function("local", "Inner", ["a", "low"], ["c"], inner, standard, ["slope"]))
    model.functions.append(helper.make_function("local", "Outer", ["a"], ["c"], outer, standard, ["slope"]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def longs(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def seeds() -> dict[str, onnx.ModelProto]:
    """The valid models."""
    half = np.float32(0.5)
    demo = importlib.resources.files("jaxq") / "demo" / "digits.onnx"
    random_numbers = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return random_numbers.normal(size=shape).astype(np.float32)

    return {
        "residual": residual_network(1),
        "shuffle": shuffle_network(),
        "transformer": transformer_block(),
        "branching": branching_network(),
        "opset 7": old_network(7),
        "opset 9": old_network(9),
        "opset 11": old_network(11),
        "demo": onnx.load_model_from_string(demo.read_bytes()),
        "function": function_model(),
        "loop": written(LOOP, yes=np.array(True), factor=half),
        "counted": written(COUNTED, steps=np.int64(4)),
        "scan": written(SCAN, zero=np.zeros(3, np.float32)),
        "shapes": written(
            SHAPES, first=longs(0), rest=longs(6, 2), wide=longs(1, 6, 2), repeats=longs(1, 2, 1), start=np.int64(0),
            limit=np.int64(5), delta=np.int64(2), pads=longs(0, 1, 0, 0, 0, 1), start1=longs(0), end1=longs(9),
            axis1=longs(1), one=half, ones=longs(0, 2), depth=longs(3), values=np.float32([0, 1]),
        ),
        "resize": written(
            RESIZE, opset=18, scales=np.float32([1, 1, 1.5, 2]), sizes=longs(1, 2, 5, 5), w=floats(2, 2, 2, 2)
        ),
        "choices": written(
            TEXTS, parts=longs(2, 4), w=floats(2, 4), k=longs(2), zeros=np.zeros((2, 2), np.float32),
            mask=np.array([True, False]), back=floats(2, 6),
        ),
        "recurrent": written(
            RECURRENT, w=floats(1, 8, 4), r=floats(1, 8, 2), b=floats(1, 16), h=floats(1, 1, 2), axes=longs(1),
            w2=floats(1, 6, 2), r2=floats(1, 6, 2), axis=np.int64(0),
        ),
        "integers": written(
            INTEGERS, scale=np.float32(0.1), zero=np.uint8(128), w=random_numbers.integers(-9, 9, (4, 3), dtype=np.int8),
            wscale=np.float32([0.1, 0.2, 0.3]), wzero=np.zeros(3, np.int8), z8=np.int8(0),
        ),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ mutations

EXTREMES = (0, 1, -1, 2, 3, -2, 7, 99, 1 << 16, 1 << 31, -(1 << 31), 1 << 40, -(1 << 62), (1 << 63) - 1)
DTYPES = [number for name, number in TensorProto.DataType.items() if name != "UNDEFINED"]
OPERATORS = sorted({(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
SPECIAL = (0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-40)


def graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graph and its subgraphs."""
    found, pending = [], [model.graph]
    while pending:
        graph = pending.pop()
        found.append(graph)
        pending += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return found


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [
        *(node for graph in graphs(model) for node in graph.node),
        *(node for each in model.functions for node in each.node),
    ]


def lists(model: onnx.ModelProto) -> list[Any]:
    """Every repeated field that names or makes something."""
    found: list[Any] = [model.opset_import, model.functions]
    for graph in graphs(model):
        found += [graph.node, graph.input, graph.output, graph.initializer, graph.value_info]
    for each in model.functions:
        found += [each.node, each.input, each.output, each.attribute, each.opset_import]
    for node in nodes(model):
        found += [node.input, node.output, node.attribute]
    return [each for each in found if len(each)]


def drop(model: onnx.ModelProto, choice: random.Random) -> None:
    field = choice.choice(lists(model))
    del field[choice.randrange(len(field))]


def double(model: onnx.ModelProto, choice: random.Random) -> None:
    field = choice.choice(lists(model))
    field.append(field[choice.randrange(len(field))])


def rename(model: onnx.ModelProto, choice: random.Random) -> None:
    """One reference goes to another tensor, or to none."""
    field = choice.choice([each for node in nodes(model) for each in (node.input, node.output) if len(each)])
    names = [name for node in nodes(model) for name in (*node.input, *node.output)]
    field[choice.randrange(len(field))] = choice.choice([*names, "", "nobody"])


def rename_entry(model: onnx.ModelProto, choice: random.Random) -> None:
    fields = [each for graph in graphs(model) for each in (graph.input, graph.output, graph.initializer) if len(each)]
    names = [name for node in nodes(model) for name in (*node.input, *node.output)]
    choice.choice(choice.choice(fields)).name = choice.choice([*names, "", "nobody"])


def shuffle(model: onnx.ModelProto, choice: random.Random) -> None:
    field = choice.choice([each for each in lists(model) if len(each) > 1])
    order = list(field)
    choice.shuffle(order)
    del field[:]
    field.extend(order)


def set_dims(model: onnx.ModelProto, choice: random.Random) -> None:
    tensors = [tensor for graph in graphs(model) for tensor in graph.initializer]
    if tensors:
        tensor = choice.choice(tensors)
        if tensor.dims and choice.random() < 0.7:
            tensor.dims[choice.randrange(len(tensor.dims))] = choice.choice(EXTREMES)
        else:
            tensor.dims.append(choice.choice(EXTREMES))


def set_declared_dims(model: onnx.ModelProto, choice: random.Random) -> None:
    values = [each for graph in graphs(model) for each in (*graph.input, *graph.output)]
    shape = choice.choice(values).type.tensor_type.shape
    if shape.dim and choice.random() < 0.7:
        shape.dim[choice.randrange(len(shape.dim))].dim_value = choice.choice(EXTREMES)
    else:
        shape.dim.add().dim_value = choice.choice(EXTREMES)


def set_dtype(model: onnx.ModelProto, choice: random.Random) -> None:
    tensors = [tensor for graph in graphs(model) for tensor in graph.initializer]
    declared = [each.type.tensor_type for graph in graphs(model) for each in (*graph.input, *graph.output)]
    target = choice.choice([*tensors, *declared])
    if isinstance(target, TensorProto):
        target.data_type = choice.choice([*DTYPES, 0, 77])
    else:
        target.elem_type = choice.choice([*DTYPES, 0, 77])


def convert(model: onnx.ModelProto, choice: random.Random) -> None:
    """An initializer becomes one of another type and, often, of another shape, with data that fit."""
    tensors = [tensor for graph in graphs(model) for tensor in graph.initializer]
    if tensors:
        tensor = choice.choice(tensors)
        value = numpy_helper.to_array(tensor)
        kinds = (np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.int8, bool, object)
        with np.errstate(all="ignore"):
            value = value.astype(choice.choice(kinds)) if choice.random() < 0.6 else value
        shape = choice.choice([value.shape, (1, *value.shape), (*value.shape, 1), (-1,), value.shape[::-1], (0,), ()])
        value = value.reshape(-1)[: int(np.prod(shape))] if shape in ((0,), ()) else value
        if shape != () or value.size:
            tensor.CopyFrom(numpy_helper.from_array(value.reshape(shape), tensor.name))


def set_values(model: onnx.ModelProto, choice: random.Random) -> None:
    """Numbers that decide shapes, axes or turns go to their ends."""
    tensors = [t for graph in graphs(model) for t in graph.initializer if t.data_type in (TensorProto.INT64, 1)]
    if tensors:
        integers = [tensor for tensor in tensors if tensor.data_type == TensorProto.INT64]
        tensor = choice.choice(integers if integers and choice.random() < 0.8 else tensors)
        value = numpy_helper.to_array(tensor).copy()
        if value.size:
            position = choice.randrange(value.size)
            value.reshape(-1)[position] = choice.choice(EXTREMES if value.dtype.kind == "i" else SPECIAL)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def set_data(model: onnx.ModelProto, choice: random.Random) -> None:
    tensors = [tensor for graph in graphs(model) for tensor in graph.initializer if tensor.raw_data]
    if tensors:
        tensor = choice.choice(tensors)
        kind = choice.randrange(4)
        if kind == 0:
            tensor.raw_data = tensor.raw_data[: choice.randrange(len(tensor.raw_data))]
        elif kind == 1:
            tensor.raw_data += bytes(choice.randrange(1, 9))
        elif kind == 2:
            tensor.ClearField("raw_data")
        else:
            tensor.data_location = TensorProto.EXTERNAL
            place = choice.choice(["", "..", "/etc/passwd", "nowhere.bin", "a\0b", "x" * 5000])
            tensor.external_data.add(key="location", value=place)
            tensor.external_data.add(key="offset", value=choice.choice(["0", "-1", "x", "99999999999"]))


def set_attribute(model: onnx.ModelProto, choice: random.Random) -> None:
    attributes = [attribute for node in nodes(model) for attribute in node.attribute]
    if not attributes:
        return
    attribute = choice.choice(attributes)
    if attribute.ints and choice.random() < 0.8:
        attribute.ints[choice.randrange(len(attribute.ints))] = choice.choice(EXTREMES)
    elif attribute.type == AttributeProto.INT and choice.random() < 0.7:
        attribute.i = choice.choice(EXTREMES)
    elif attribute.type == AttributeProto.STRING and choice.random() < 0.7:
        attribute.s = choice.choice([b"", b"linear", b"nobody", b"\xff\xfe", attribute.s[:-1]])
    else:
        values: tuple[Any, ...] = (1, 0.5, "text", [1, 2], [0.5], ["a"], helper.make_tensor("t", 1, [2], [1.0, 2.0]))
        name = attribute.name
        attribute.CopyFrom(helper.make_attribute(name, choice.choice(values)))


def set_attribute_kind(model: onnx.ModelProto, choice: random.Random) -> None:
    attributes = [attribute for node in nodes(model) for attribute in node.attribute]
    if attributes:
        attribute = choice.choice(attributes)
        if choice.random() < 0.5:
            attribute.type = choice.choice(list(AttributeProto.AttributeType.values()))
        else:
            attribute.name = choice.choice([each.name for each in attributes] + ["axis", "nobody", ""])


def add_attribute(model: onnx.ModelProto, choice: random.Random) -> None:
    node = choice.choice(nodes(model))
    schema = onnx.defs.get_schema(node.op_type, node.domain) if onnx.defs.has(node.op_type, node.domain) else None
    names = [*(schema.attributes if schema else ()), "nobody"]
    node.attribute.append(helper.make_attribute(choice.choice(names), choice.choice([*EXTREMES, [1, 1], 0.5, "text"])))


def set_operator(model: onnx.ModelProto, choice: random.Random) -> None:
    node = choice.choice(nodes(model))
    if choice.random() < 0.85:
        node.op_type = choice.choice(OPERATORS)[1]
        if choice.random() < 0.5:
            del node.attribute[:]
    else:
        node.domain = choice.choice(["nobody", "com.microsoft", "ai.onnx.ml", "local", "ai.onnx"])


def set_opset(model: onnx.ModelProto, choice: random.Random) -> None:
    if model.opset_import:
        entry = choice.choice(model.opset_import)
        if choice.random() < 0.9:
            entry.version = choice.choice([0, -1, 1, 5, 6, 8, 9, 10, 11, 12, 13, 18, 21, 23, 24, 28, 29, 999, 1 << 40])
        else:
            entry.domain = choice.choice(["nobody", "com.microsoft", "ai.onnx.ml"])


def change_inputs(model: onnx.ModelProto, choice: random.Random) -> None:
    node = choice.choice(nodes(model))
    inputs = list(node.input)
    kind = choice.randrange(3)
    if kind == 0:
        choice.shuffle(inputs)
    elif kind == 1:
        inputs.append(choice.choice([*inputs, ""]))
    else:
        inputs = inputs[: choice.randrange(len(inputs) + 1)]
    del node.input[:]
    node.input.extend(inputs)


def set_type_kind(model: onnx.ModelProto, choice: random.Random) -> None:
    graph = choice.choice(graphs(model))
    value = choice.choice([*graph.input, *graph.output, *graph.output])
    kind = choice.randrange(4)
    if kind == 0:
        value.ClearField("type")
    elif kind == 1:
        value.type.tensor_type.ClearField("shape")
    elif kind == 2:
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    else:
        value.type.map_type.key_type = TensorProto.INT64


def recurse(model: onnx.ModelProto, choice: random.Random) -> None:
    """A function calls itself, or a subgraph stands inside of itself."""
    if model.functions:
        function = choice.choice(model.functions)
        other = choice.choice(model.functions)
        function.node.add(op_type=other.name, domain=other.domain, input=function.input[:1], output=["again"])


CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    drop, drop, double, rename, rename, rename_entry, shuffle, set_dims, set_declared_dims, set_dtype, convert, convert,
    set_values, set_values, set_values, set_data, set_attribute, set_attribute, set_attribute, set_attribute_kind, add_attribute,
    set_operator, set_operator, set_operator, set_opset, change_inputs, change_inputs, set_type_kind, recurse,
)  # fmt: skip


def corrupted(content: bytes, choice: random.Random) -> bytes:
    """Bytes cut off, turned over, moved or taken out."""
    data = bytearray(content)
    for _ in range(choice.randrange(1, 4)):
        place = choice.randrange(len(data))
        kind = choice.randrange(4)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place] = choice.randrange(256)
        elif kind == 2:
            del data[place : place + choice.randrange(1, 9)]
        else:
            data[place:place] = choice.randbytes(choice.randrange(1, 9))
        if not data:
            break
    return bytes(data)


def mutated(models: dict[str, onnx.ModelProto], seed: int) -> tuple[str, bytes]:
    """What was done, and the bytes of a model that is most often broken."""
    choice = random.Random(seed)
    name = choice.choice(sorted(models))
    model = onnx.ModelProto()
    model.CopyFrom(models[name])
    if choice.random() < 0.1:
        return f"{name}: bytes", corrupted(model.SerializeToString(), choice)
    changes = [choice.choice(CHANGES) for _ in range(choice.choice((1, 1, 1, 2, 3)))]
    for change in changes:
        with contextlib.suppress(Exception):  # what one change has broken, the next may not be able to read
            change(model, choice)
    return f"{name}: {', '.join(change.__name__ for change in changes)}", model.SerializeToString()


# -------------------------------------------------------------------------------------------------------------- trying


def feed_for(model: Model) -> dict[str, np.ndarray] | None:
    """An array for each input as it is declared; None where that would be large."""
    feed = {}
    for name, declared in model.inputs.items():
        shape = [size if isinstance(size, int) else 2 for size in declared.shape or ()]
        if not all(0 <= size <= 4096 for size in shape) or np.prod(shape, dtype=float) > 1e6:
            return None
        dtype = jax.numpy.dtype(declared.dtype)
        feed[name] = np.ones(shape, dtype) if dtype.kind in "fiu" else np.zeros(shape, dtype)
    return feed


def attempt(content: bytes, *, run: bool) -> str:
    """Loads, traces (or runs) and writes a model; how far it came, or the error that jaxq raised.

    Any other error goes through.
    """
    try:
        model = load(content)
    except JaxqError as error:
        return f"load: {error}"
    feed = feed_for(model)
    try:
        if feed is not None and run:
            model(feed)
        elif feed is not None:
            signature, traced = signed(model.graph, model.feed(feed))
            fixed = {name: literal.array for name, literal in signature.static.items()}
            params = traced_params(model.params)
            jax.eval_shape(lambda p, x: execute(model.graph, p, {**x, **fixed})[0], params, traced)
        to_proto(model)
    except JaxqError as error:
        return f"run: {error}"
    return "fine"


def main(first: int, last: int, run: bool) -> None:
    def too_long(*_: Any) -> None:
        raise TimeoutError("more than 20 seconds")

    models, fine = seeds(), 0
    signal.signal(signal.SIGALRM, too_long)
    for seed in range(first, last):
        what, content = mutated(models, seed)
        signal.alarm(20)
        try:
            fine += attempt(content, run=run) == "fine"
        except BaseException as error:
            signal.alarm(0)
            print(f"{seed} {what}: {type(error).__name__}: {str(error)[:300]}")  # noqa: T201
            print("   ", "".join(traceback.format_tb(error.__traceback__)[-2:]))  # noqa: T201
            if isinstance(error, KeyboardInterrupt):
                raise
        signal.alarm(0)
        if seed % 300 == 299:
            jax.clear_caches()
    print(f"{fine} of {last - first} were still fine")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), run="run" in sys.argv)
