"""The standard ONNX backend interface, for ONNX's own test suite, the public scoreboard, and programs that use it.

    import jaxq.backend
    outputs = jaxq.backend.prepare(model).run([array, ...])

Runs with true 64-bit types, and with float32 as precise as the device can. Inputs that decide shapes are part of the
compilation key; a model whose inputs meet operators with data-dependent shapes is run operator by operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from jaxq.errors import DeviceError, InputError, JaxqError
from jaxq.execute import execute
from jaxq.graph import FrozenDict, Literal
from jaxq.model import Model, run
from jaxq.onnx_check import NEWEST_OPSET
from jaxq.onnx_import import load
from jaxq.passes import static_sources

PLATFORMS = {"CPU": "cpu", "CUDA": "gpu", "ROCM": "gpu", "TPU": "tpu"}


class JaxqRep(BackendRep):
    """A model that is ready to run, on one device."""

    def __init__(self, model: Model, device: jax.Device):
        self.model, self.device = model, device
        needed = static_sources(model.graph)
        self.known = frozenset(name for name in model.graph.inputs if name in needed)
        self.compiled = self.known <= set(model.graph.static_inputs)
        with jax.enable_x64(True):
            self.params = jax.device_put({name: np.asarray(value) for name, value in model.params.items()}, device)

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], **_: Any) -> tuple[np.ndarray, ...]:
        """The outputs, in the order of the graph, of inputs given in the order of the graph or by name."""
        feed = self._feed(inputs)
        static = {name: value for name, value in feed.items() if name in self.known or not is_numeric(value)}
        with jax.enable_x64(True), jax.default_device(self.device), jax.default_matmul_precision("float32"):
            traced = {name: value for name, value in feed.items() if name not in static}
            if self.compiled and traced:
                key = FrozenDict({name: Literal.of(value) for name, value in static.items()})
                outputs = run(self.model.graph, key, self.params, {}, traced)
            else:
                outputs = execute(self.model.graph, self.params, {**jax.device_put(traced), **static})[0]
            return tuple(np.asarray(outputs[name]) for name in self.model.graph.outputs)

    def _feed(self, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, np.ndarray]:
        names = self.model.graph.inputs
        if not isinstance(inputs, Mapping):
            values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(values) != len(names):
                raise InputError(
                    f"the model has {len(names)} inputs ({', '.join(names)}), but {len(values)} were given"
                )
            inputs = dict(zip(names, values, strict=True))
        return {name: np.asarray(value) for name, value in inputs.items()}


def is_numeric(value: np.ndarray) -> bool:
    """Whether JAX has the element type: not strings, not the 6-bit floats."""
    return value.dtype.kind not in "OSU" and not value.dtype.name.startswith("float6_")


class JaxqBackend(Backend):
    """Runs ONNX models with jaxq."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> bool:
        """Whether jaxq knows all that the model uses."""
        try:
            load(model)
        except JaxqError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> JaxqRep:
        return JaxqRep(load(model), _device(device))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[np.ndarray, ...]:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[np.ndarray, ...]:
        """The outputs of one node; `opset_version` chooses its meaning (default: the newest that jaxq knows)."""
        arrays = [np.asarray(value) for value in inputs]
        names = [name for name in node.input if name]
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", values, outputs)
        opset = onnx.helper.make_opsetid(node.domain, kwargs.get("opset_version", 1 if node.domain else NEWEST_OPSET))
        return cls.run_model(onnx.helper.make_model(graph, opset_imports=[opset]), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether JAX has a device of that kind: "CPU", "CUDA", "CUDA:1", "ROCM", "TPU"."""
        try:
            _device(device)
        except DeviceError:
            return False
        return True


def _device(name: str) -> jax.Device:
    """JAX's device for ONNX's name of it."""
    kind, _, index = name.partition(":")
    try:
        return jax.devices(PLATFORMS[kind.upper()])[int(index or 0)]
    except (KeyError, ValueError, IndexError, RuntimeError):
        there = sorted({device.platform for device in jax.devices()})
        raise DeviceError(f"device {name!r} is not there; JAX sees {', '.join(there)}") from None


is_compatible = JaxqBackend.is_compatible
prepare = JaxqBackend.prepare
run_model = JaxqBackend.run_model
run_node = JaxqBackend.run_node
supports_device = JaxqBackend.supports_device
