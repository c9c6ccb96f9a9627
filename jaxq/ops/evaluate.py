"""One operator on values: now, in numpy, where all of them are known; else in the trace that is being made.

64-bit integers that a program computes with are held in 32 bits, after a range check: JAX would cut them silently.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jaxq.errors import JaxqError, ModelError
from jaxq.ops import Op
from jaxq.ops.budget import Budget

UNKNOWN_TO_XLA = ("float6_e2m3fn", "float6_e3m2fn")
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "DeformConv", "Einsum")
INT32 = np.iinfo(np.int32)


def run_static(entry: Op, arguments: list[Any], attributes: dict[str, Any], budget: Budget) -> Any:
    """Runs an operator on numpy arrays, now, in 64 bit; functions without a numpy body go through JAX, concretely.

    Raises:
      TooLarge: the result would be larger than what is left of the budget.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), np.errstate(all="ignore"):
        budget.check(entry, arguments, attributes)
        results = jax.tree.map(np.asarray, entry.function(*arguments, **attributes))
    budget.spend(arguments, results)
    return results


def run_traced(entry: Op, arguments: list[Any], attributes: dict[str, Any]) -> Any:
    """Runs an operator in the current trace; static operands that are computed with must fit into 32 bit."""
    for index, value in enumerate(arguments):
        if isinstance(value, np.ndarray) and value.dtype == object:
            raise ModelError(f"{entry.input_name(index)} consists of strings, which JAX does not know")
    if runs_in_32_bit():
        for index, value in enumerate(arguments):
            if not entry.needs_static(index):
                arguments[index] = jax.tree.map(functools.partial(narrowed, what=entry.input_name(index)), value)
    refuse_uncomputed(entry, arguments)
    results = entry.function(*arguments, **attributes)
    for value in jax.tree.leaves(results):
        refuse_unknown(value, "its output")
    return results


def refuse_unknown(value: Any, what: str) -> None:
    """Raises ModelError for an array of a type that numpy knows and XLA does not compute with."""
    if not isinstance(value, np.ndarray) and getattr(getattr(value, "dtype", None), "name", "") in UNKNOWN_TO_XLA:
        raise ModelError(
            f"{what} is of type {value.dtype.name}, with which XLA does not compute; convert it to float32"
        )


def refuse_uncomputed(entry: Op, arguments: list[Any]) -> None:
    """Raises ModelError for products of numbers of 2 bits, which the standard does not have, and XLA neither."""
    if entry.name in PRODUCTS:
        for index, value in enumerate(arguments):
            if getattr(getattr(value, "dtype", None), "name", "") in ("int2", "uint2"):
                raise ModelError(
                    f"{entry.input_name(index)} is of type {value.dtype.name}, of which there are no products"
                )


def runs_in_32_bit() -> bool:
    """Whether JAX would cut 64-bit numbers to 32 bit; that depends on `jax_enable_x64` here and now."""
    return jax.dtypes.canonicalize_dtype(np.int64) != np.int64


def as_int32(value: np.ndarray, what: str, error: type[JaxqError] = ModelError) -> np.ndarray:
    """A 64-bit integer array as int32.

    Raises:
      error: a value does not fit (JAX would silently wrap it).
    """
    if value.size and (value.max() > INT32.max or value.min() < INT32.min):
        raise error(
            f"{what} holds the 64-bit value {value.flat[np.abs(value.astype(np.float64)).argmax()]}, which does not fit "
            "into 32 bit. Run inside `with jax.enable_x64(True):` for true 64-bit integers."
        )
    return value.astype(np.int32)


def narrowed(value: Any, what: str, error: type[JaxqError] = ModelError) -> Any:
    """A numpy array of 64-bit integers as int32, after a range check; anything else as it is."""
    wide = isinstance(value, np.ndarray) and value.dtype in (np.int64, np.uint64)
    return as_int32(value, what, error) if wide else value


def fit_for_jax(value: Any, what: str) -> Any:
    """A value that is to leave a compiled program, 64-bit integers as int32.

    Raises:
      ModelError: JAX has no such values (strings), or they do not fit.
    """
    if isinstance(value, np.ndarray) and value.dtype == object:
        raise ModelError(f"{what} consists of strings, which JAX does not know; cut the graph before it")
    return narrowed(value, what) if runs_in_32_bit() else value


def describe(value: Any) -> str:
    """dtype and shape of a value, for messages."""
    return (
        "absent"
        if value is None
        else f"{value.dtype}{list(np.shape(value))}"
        if hasattr(value, "dtype")
        else repr(value)
    )
