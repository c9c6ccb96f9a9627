"""What each ONNX operator means: a table of functions, looked up by domain, name and opset.

A function's positional parameters are the operator's inputs in ONNX's order (None where an optional one is absent), its
keyword-only parameters are the attributes with ONNX's defaults. It returns one array, or a tuple for several outputs.
It knows nothing of nodes, graphs or files.

**Static values.** Values that are known while tracing (shapes, axes, folded constants) arrive as numpy arrays, everything
else as JAX arrays. A node whose inputs are all numpy is run in numpy, in true 64 bit: functions that do shape
arithmetic take their namespace from `array_namespace(...)`. A function that cannot work without a static operand names it
in `static=` and reads it with `static_ints` or `static_array`.

**Versions.** The newest `since` at or below the model's opset serves, per domain.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import DynamicShapeError, ModelError, UnsupportedOpError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])

# The domain of operators that read their weight in another order (`jaxq.engine.layout`): no file has it, no message says it.
LAID_OUT = "jaxq"

MODULES = (
    "cast", "elementwise", "activations", "tensor", "indexing", "reduction", "convolution", "pooling", "normalization",
    "neural", "losses", "recurrent", "attention", "image", "sampling", "signal", "contrib", "contrib_attention",
    "quantized", "control", "data_dependent", "sequence", "random", "contrib_quantized",
)  # fmt: skip


@dataclass(frozen=True)
class Op:
    """One registered meaning: `function` serves `name` from opset `since` on, until a newer entry."""

    name: str
    domain: str
    since: int
    function: Callable[..., Any]
    static: tuple[str, ...]  # parameters that must be known while tracing
    # Whether the static parameters are data: to take them from a graph input as known makes no sense.
    data_dependent: bool = False

    @cached_property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self.function).parameters.values())

    @cached_property
    def attributes(self) -> frozenset[str]:
        """Names of the attributes that the function takes."""
        return frozenset(p.name for p in self.parameters if p.kind is p.KEYWORD_ONLY)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Names of the positional inputs; a variadic one comes last, as `*name`."""
        return tuple(
            f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name
            for p in self.parameters
            if p.kind is not p.KEYWORD_ONLY
        )

    def input_name(self, index: int) -> str:
        names = self.input_names
        return names[index] if index < len(names) else names[-1] if names else f"input {index}"

    def needs_static(self, index: int) -> bool:
        """Whether the input at that position must be known while tracing."""
        return self.input_name(index).lstrip("*") in self.static


_TABLE: dict[tuple[str, str], dict[int, Op]] = {}


def op(
    name: str, *, since: int, domain: str = "", static: tuple[str, ...] = (), data_dependent: bool = False
) -> Callable[[F], F]:
    """Registers a function as the meaning of operator `name` from opset `since` of its domain on."""

    def register(function: F) -> F:
        entry = Op(name, domain, since, function, static, data_dependent)
        versions = _TABLE.setdefault((domain, name), {})
        if since in versions:
            raise ValueError(f"{name} since {since} is already served by {versions[since].function.__name__}")
        unknown = set(static) - {parameter.lstrip("*") for parameter in entry.input_names}
        if unknown:
            raise ValueError(f"{name}: static={sorted(unknown)} are no inputs of {function.__name__}")
        versions[since] = entry
        return function

    return register


@cache
def table() -> Mapping[tuple[str, str], Mapping[int, Op]]:
    """(domain, name) -> {since: Op}, with every module of this package loaded."""
    for module in MODULES:
        importlib.import_module(f"jaxq.ops.{module}")
    return _TABLE


@cache
def find(name: str, domain: str, version: int) -> Op:
    """The meaning of operator `name` in a model that imports opset `version` of `domain`.

    Raises:
      UnsupportedOpError: the operator is unknown, or only in newer opsets.
    """
    versions = table().get((domain, name), {})
    usable = [since for since in versions if since <= version]
    if not usable:
        full = f"{domain}.{name}" if domain else name
        if versions:
            raise UnsupportedOpError(
                f"operator {full} at opset {version} is not implemented (from {min(versions)} on it is)"
            )
        known = [other for other_domain, other in table() if other_domain == domain]
        hint = did_you_mean(name, known, cutoff=0.75)
        raise UnsupportedOpError(f"operator {full} (opset {version}) is not implemented{hint}")
    return versions[max(usable)]


# ---------------------------------------------------------------------------------------------- static and traced values


def is_static(value: Any) -> bool:
    """Whether a value is known while tracing; a sequence is when all of its elements are."""
    if isinstance(value, list):
        return all(map(is_static, value))
    return isinstance(value, (np.ndarray, np.generic, int, float, bool))


def array_namespace(*values: Any) -> ModuleType:
    """`numpy` when all given values (None is ignored) are static, else `jax.numpy`."""
    return np if all(value is None or is_static(value) for value in values) else jnp


def static_array(value: Any, what: str) -> np.ndarray:
    """The numpy value of an operand that has to be known while tracing.

    Raises:
      DynamicShapeError: it is traced; `what` names the operand, e.g. "Reshape.shape".
    """
    if not is_static(value):
        raise DynamicShapeError(
            f"{what} must be known before the data is, but it depends on the data. "
            "Export the model with a fixed shape here, or cut the graph before this node."
        )
    return np.asarray(value)


def static_ints(value: Any, what: str) -> tuple[int, ...]:
    """Like `static_array`, as a flat tuple of Python integers."""
    return tuple(int(item) for item in static_array(value, what).reshape(-1))


def wider(first: Any, second: Any) -> np.dtype:
    """The dtype that holds the values of both, whatever promotion JAX is set to allow without being asked."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def platform() -> str:
    """The platform that code being traced now will run on: "cpu", "gpu" or "tpu"."""
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]  # made at run time
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


class TooLarge(ModelError):
    """A tensor is larger than what is allowed while compiling, or than the memory of the device."""


MOST_BYTES = 1 << 31  # of all values that are computed while tracing; see `jaxq.ops.budget`


def refuse_huge(shape: Sequence[Any], dtype: Any) -> None:
    """Refuses an array that an operator's function is about to make from numbers alone.

    Raises:
      TooLarge: it would have more than `MOST_BYTES`.
    """
    size = math.prod(map(int, shape)) * np.dtype(dtype).itemsize
    if size > MOST_BYTES:
        raise TooLarge(
            f"{np.dtype(dtype)}{list(map(int, shape))} would have {as_size(size)}; what is computed before the data are "
            f"there may have {as_size(MOST_BYTES)}. Is the size right?"
        )


def as_size(count: int) -> str:
    """A number of bytes, for messages: `3.2 GiB`."""
    return f"{count / (1 << 30):.3g} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.3g} MiB"


# The number that ONNX gives to each element type (TensorProto.DataType), and the name that numpy or ml_dtypes gives it.
ELEMENT_TYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
    27: "float6_e2m3fn", 28: "float6_e3m2fn",
}  # fmt: skip
ELEMENT_NUMBERS: Mapping[str, int] = {name: number for number, name in ELEMENT_TYPES.items()}
