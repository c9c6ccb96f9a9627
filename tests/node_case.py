"""One node, run by jaxq and by ONNX Runtime: the oracle of the tests of operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import helper

from jaxq.engine.execute import execute, traced_params
from jaxq.onnx_io.load import load


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model of one node. Inputs are arrays, None where one is absent; those in `static` are initializers."""

    op: str
    inputs: tuple[Any, ...]
    opset: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    domain: str = ""
    static: tuple[int, ...] = ()

    @property
    def traced(self) -> dict[str, np.ndarray]:
        """Inputs of the graph by name."""
        return {f"in{i}": v for i, v in enumerate(self.inputs) if v is not None and i not in self.static}

    def model(self) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype
        node = helper.make_node(
            self.op,
            ["" if value is None else f"in{index}" for index, value in enumerate(self.inputs)],
            [f"out{index}" for index in range(self.outputs)],
            domain=self.domain,
            **self.attributes,
        )
        graph = helper.make_graph(
            [node],
            "one_node",
            [helper.make_tensor_value_info(name, kind(v.dtype), v.shape) for name, v in self.traced.items()],
            [onnx.ValueInfoProto(name=f"out{index}") for index in range(self.outputs)],
            [onnx.numpy_helper.from_array(np.asarray(self.inputs[index]), f"in{index}") for index in self.static],
        )
        opsets = [helper.make_opsetid("", self.opset if not self.domain else 17)]
        if self.domain:
            opsets.append(helper.make_opsetid(self.domain, self.opset))
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run_jaxq(case: Case) -> list[np.ndarray]:
    """The outputs of jaxq under jit."""
    model = load(case.model())
    run = jax.jit(lambda params, inputs: execute(model.graph, params, inputs)[0])
    outputs = run(traced_params(model.params), {name: jnp.asarray(value) for name, value in case.traced.items()})
    return [np.asarray(outputs[name]) for name in model.graph.outputs]


def run_runtime(case: Case) -> list[np.ndarray]:
    """The outputs of ONNX Runtime, with its graph optimizations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(case.model().SerializeToString(), options)
    return session.run(None, case.traced)


def assert_agrees(case: Case, *, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """jaxq and ONNX Runtime give the same shapes and, within the tolerance, the same values."""
    for index, (got, wanted) in enumerate(zip(run_jaxq(case), run_runtime(case), strict=True)):
        assert got.shape == wanted.shape, f"output {index}"
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol, err_msg=f"output {index}")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
