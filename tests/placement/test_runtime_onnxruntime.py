"""ONNX Runtime's optimized graph has an integer kernel for the layers of which its table says so, else one in float."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from models import written

import jaxq
from jaxq.onnx_io.save import save
from jaxq.placement.targets import ONNXRUNTIME

ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs the files of target 'onnxruntime'")

PAD = "pads = [1, 1, 1, 1]"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Conv": (f"u = Conv <{PAD}> (t, w)", {"w": (8, 8, 3, 3)}),
    "ConvTranspose": ("u = ConvTranspose (t, w)", {"w": (8, 8, 1, 1)}),
    "Add": (f"a = Conv <{PAD}> (t, w)  u = Add (a, t)", {"w": (8, 8, 3, 3)}),
    "Mul": (f"a = Conv <{PAD}> (t, w)  u = Mul (a, t)", {"w": (8, 8, 3, 3)}),
    "AveragePool": ("u = AveragePool <kernel_shape = [2, 2]> (t)", {}),
    "GlobalAveragePool": ("u = GlobalAveragePool (t)", {}),
    "LeakyRelu": (f"a = Conv <{PAD}> (t, w)  u = LeakyRelu (a)", {"w": (8, 8, 3, 3)}),
    "Sigmoid": (f"a = Conv <{PAD}> (t, w)  u = Sigmoid (a)", {"w": (8, 8, 3, 3)}),
    "MatMul": ("a = Transpose <perm = [0, 2, 3, 1]> (t)  b = MatMul (a, w)  u = Transpose <perm = [0, 3, 1, 2]> (b)",
               {"w": (8, 8)}),
}  # fmt: skip
GEMM = "(float[4, 8] x) => (float[4, 8] y) { a = Gemm (x, w, b)  c = Relu (a)  y = Gemm (c, w2) }"
FLOAT = {name for name, rule in ONNXRUNTIME.rules.items() if rule.stored}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operators(proto: onnx.ModelProto, shape: tuple[int, ...], folder: Any) -> Counter[str]:
    """The operators of the graph that the runtime makes of the quantized model."""
    samples = [{"x": random(*shape, seed=seed)} for seed in range(4)]
    save(jaxq.quantize(proto, jaxq.Dataset(samples)), folder / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", CASES)
def test_layers_on_images_have_the_kernels_of_the_table(name, tmp_path):
    body, shapes = CASES[name]
    text = f"(float[1, 4, 8, 8] x) => (float[A, B, D, E] y) {{ c = Conv <{PAD}> (x, first)  t = Relu (c)" \
           f"  {body}  y = Conv <{PAD}> (u, last) }}"  # fmt: skip
    values = {key: random(*shape) for key, shape in {"first": (8, 4, 3, 3), "last": (4, 8, 3, 3), **shapes}.items()}
    found = operators(written(text, **values), (1, 4, 8, 8), tmp_path)
    ends = name == "Conv"  # the last one, whose result is not quantized
    assert found[name] == (name in FLOAT) + ends, found


def test_a_dense_layer_has_a_kernel_in_integers(tmp_path):
    values = {"w": random(8, 8), "b": random(8), "w2": random(8, 8, seed=1)}
    found = operators(written(GEMM, **values), (4, 8), tmp_path)
    assert "QGemm" in found
    assert not {"Gemm", "MatMul"} & found.keys()


def test_every_row_of_the_table_is_tried():
    assert ONNXRUNTIME.rules.keys() <= {*CASES, "Gemm"}
