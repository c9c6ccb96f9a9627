"""Small graphs in the idioms of what people export, and the check that jaxq runs them as ONNX Runtime does."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from models import written

import jaxq

LARGEST = np.iinfo(np.int64).max


class Idiom(NamedTuple):
    """A model, and inputs to run it with; what its shapes depend on is free."""

    model: onnx.ModelProto
    feeds: list[dict[str, Any]]


def idiom(text: str, feeds: list[dict[str, Any]], opset: int = 17, **initializers: Any) -> Idiom:
    return Idiom(written(text, opset, **initializers), feeds)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def arrays(value: Any) -> list[np.ndarray]:
    """The arrays of an output, which may be a sequence of them."""
    return [np.asarray(each) for each in value] if isinstance(value, list) else [np.asarray(value)]


def run_runtime(model: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def assert_alike(each: Idiom) -> jaxq.Model:
    """Each output for each feed has the runtime's shape, dtype and values; gives the model."""
    model = jaxq.load(each.model)
    for feed in each.feeds:
        found = model(feed)
        for name, value in run_runtime(each.model, feed).items():
            for mine, theirs in zip(arrays(found[name]), arrays(value), strict=True):
                assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
                tolerance = 2e-3 if theirs.dtype == np.float16 else 1e-4
                np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    return model
