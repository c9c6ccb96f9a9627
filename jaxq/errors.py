"""Every error that jaxq raises on purpose.

* JaxqError
  + ModelError                the ONNX file is not one that jaxq can run
    - UnsupportedOpError      operators (or versions of them) without a meaning here
    - DynamicShapeError       a shape depends on the data where it must be known while tracing
  + InputError                the arrays given to a model do not fit its inputs
  + ConfigError               an option is wrong
  + CalibrationError          the calibration data cannot give the numbers asked for
  + DeviceError               the device asked for is not there
  + AccuracyError             no model within the drop allowed was found; it carries the best one and the report
  + RuntimeMissingError       an optional package is needed for what was asked

Messages have three parts: what is wrong (with the value), where (tensor, node, file), and what to do.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class JaxqError(Exception):
    """Base class: `except JaxqError` catches everything that jaxq raises on purpose."""

    located = False  # whether the message already begins with the node that is meant


class ModelError(JaxqError):
    """The model is not one that jaxq can read or run."""


class UnsupportedOpError(ModelError):
    """Operators of the model, or their versions, have no implementation."""


class DynamicShapeError(ModelError):
    """A shape or another structural value depends on the data, so the graph cannot be compiled."""


class InputError(JaxqError):
    """Arrays given to a model do not match its inputs in name, rank, shape or dtype."""


class ConfigError(JaxqError, ValueError):
    """An option or a combination of options is wrong."""


class CalibrationError(JaxqError):
    """The calibration data is empty, not finite, or otherwise cannot give the ranges."""


class DeviceError(JaxqError):
    """The requested device is not available to JAX."""


class AccuracyError(JaxqError):
    """No model within the drop of accuracy that is allowed was found, or the search was broken off by an error.

    Attributes:
      best: the best `Model` so far, or None.
      report: what was tried, `jaxq.accuracy.report.AccuracyReport`, or None.
    """

    def __init__(self, message: str, best: Any = None, report: Any = None):
        super().__init__(message)
        self.best, self.report = best, report


class RuntimeMissingError(JaxqError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The hint that ends a message about an unknown name, e.g. `; did you mean 'Relu_3'?`, or ''.

    `cutoff` is the least likeness, from 0 to 1: high where another name is seldom a slip of the pen.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


class JaxqWarning(UserWarning):
    """Something that the user should know of, though the work goes on."""
