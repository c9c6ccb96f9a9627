"""The standard ONNX backend interface, for ONNX's own test suite, the public scoreboard, and programs that use it.

    import jaxq.onnx_io.backend
    outputs = jaxq.onnx_io.backend.prepare(model).run([array, ...])

Runs with true 64-bit types, and with float32 as precise as the device can. Inputs that decide shapes are part of the
compilation key; what follows operators with data-dependent shapes is run operator by operator (`jaxq.engine.partition`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from jaxq.engine.execute import execute
from jaxq.engine.model import Model
from jaxq.engine.partition import run_tail
from jaxq.engine.programs import Held, holding
from jaxq.engine.runner import Batch, outputs, run, whole
from jaxq.engine.traced import Signature, Traced
from jaxq.errors import DeviceError, InputError, JaxqError
from jaxq.graph.ir import FrozenDict, Literal
from jaxq.onnx_io.check import NEWEST_OPSET
from jaxq.onnx_io.load import load

PLATFORMS = {"CPU": "cpu", "CUDA": "gpu", "ROCM": "gpu", "TPU": "tpu"}


class JaxqRep(BackendRep):
    """A model that is ready to run, on one device."""

    def __init__(self, model: Model, device: jax.Device):
        self.model, self.device = model, device
        self.compiled = Held()
        with jax.enable_x64(True):
            self.params = jax.device_put({name: np.asarray(value) for name, value in model.params.items()}, device)

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], **_: Any) -> tuple[np.ndarray, ...]:
        """The outputs, in the order of the graph, of inputs given in the order of the graph or by name."""
        feed = self._feed(inputs)
        graph = self.model.graph
        traced = {name: value for name, value in feed.items() if name not in graph.static_inputs and is_numeric(value)}
        static = {name: value for name, value in feed.items() if name not in traced}
        with jax.enable_x64(True), jax.default_device(self.device), jax.default_matmul_precision("float32"):
            if not traced or not all(isinstance(value, np.ndarray) for value in static.values()):
                found = execute(graph, self.params, {**jax.device_put(traced), **static})[0]
            else:
                known = FrozenDict({name: Literal.of(value) for name, value in static.items()})
                parts = Traced(graph, self.params, Signature.of(traced, known)).parts
                with holding(self.compiled):
                    found = run(outputs, whole, (parts.head,), known, Batch(traced), (self.params, {}))
                if parts.tail is not None:
                    found = run_tail(parts, self.params, {}, feed, found)
            return tuple(jax.tree.map(np.asarray, found[name]) for name in self.model.graph.outputs)

    def _feed(self, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, np.ndarray]:
        named = by_name(inputs, self.model.graph.inputs, "model")
        return {name: jax.tree.map(np.asarray, as_list(value)) for name, value in named.items()}


def by_name(inputs: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """The inputs of a model or node by name, from a mapping, a sequence in order, or the only one.

    Raises:
      InputError: their number or their names do not fit.
    """
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise InputError(f"the {what} has the inputs {sorted(names)}, but {sorted(inputs)} were given")
        return {name: inputs[name] for name in names}
    values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if len(values) != len(names):
        raise InputError(f"the {what} has {len(names)} inputs ({', '.join(names)}), but {len(values)} were given")
    return dict(zip(names, values, strict=True))


def as_list(value: Any) -> Any:
    """A sequence as our operators have it; anything else as it is."""
    return list(value) if isinstance(value, (list, tuple)) else value


def is_numeric(value: Any) -> bool:
    """Whether JAX has the value and its element type: not sequences, strings, the 6-bit floats."""
    if not isinstance(value, np.ndarray):
        return False
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
        named = by_name(inputs, [name for name in node.input if name], "node")
        arrays = {name: np.asarray(value) for name, value in named.items()}
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
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
