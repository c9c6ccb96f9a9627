"""What each runtime computes in integers, as data: one table a target, no conditions elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from jaxq.errors import ConfigError, Option, did_you_mean
from jaxq.placement.targets.ascend import ASCEND
from jaxq.placement.targets.onnxruntime import ONNXRUNTIME, ONNXRUNTIME_AVX2
from jaxq.placement.targets.openvino import OPENVINO
from jaxq.placement.targets.portable import PORTABLE
from jaxq.placement.targets.qnn import QNN
from jaxq.placement.targets.table import OPSET_OF, Rule, Target
from jaxq.placement.targets.tensorrt import TENSORRT

TARGETS: dict[str, Target] = {
    target.name: target for target in (ONNXRUNTIME, ONNXRUNTIME_AVX2, TENSORRT, OPENVINO, QNN, ASCEND, PORTABLE)
}


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
      ConfigError: there is none; the message gives the nearest one.
    """
    if not isinstance(name, str) or name not in TARGETS:
        known = f"known: {', '.join(sorted(TARGETS))}{did_you_mean(str(name), TARGETS)}"
        raise ConfigError(Option(("target",), name), f"; {known}")
    return TARGETS[name]


def named_target(metadata: Mapping[str, str]) -> str:
    """The name of the target that a file was made for, as its metadata say; that of ONNX Runtime where they do not."""
    name = metadata.get("jaxq.target", "")
    return name if name in TARGETS else ONNXRUNTIME.name


__all__ = [
    "ASCEND",
    "ONNXRUNTIME",
    "ONNXRUNTIME_AVX2",
    "OPENVINO",
    "OPSET_OF",
    "PORTABLE",
    "QNN",
    "TARGETS",
    "TENSORRT",
    "Rule",
    "Target",
    "find_target",
    "named_target",
]
