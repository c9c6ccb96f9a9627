"""ONNX Runtime on the CPU: sessions with and without optimizations, what is inside of them, and the kernels they use."""

from __future__ import annotations

import collections
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxq.errors import InputError, ModelError, RuntimeMissingError
from jaxq.graph.linear import LINEAR

LINEAR_OPS = LINEAR | {"FusedConv", "FusedGemm", "FusedMatMul"}
INTEGER_OPS = frozenset(
    [
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulIntegerToFloat",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "QAttention",
    ]
)
LARGE_INITIALIZER = (
    1 << 20
)  # bytes, from which on the optimized graph keeps them in a second file: protobuf ends at 2 GiB
FOREIGN = re.compile(r"bfloat16|float[48]|int[24]\b")  # types that it gives to Python not at all, or as bits
LAYOUTS = ("NchwcTransformer", "NhwcTransformer")  # optimizers that order axes anew, and give tensors other names
Runner = Callable[[Mapping[str, Any]], dict[str, Any]]


def session(path: Path, *, optimized: Path | None, layouts: bool = True) -> Runner:
    """Runs the file in ONNX Runtime on the CPU: with all graph optimizations, the result written to `optimized`, or with none.

    Without `layouts` it keeps the order of axes, and with it the names of the tensors that are left; the arithmetic is the same.

    Raises:
      RuntimeMissingError: onnxruntime is not installed.
      ModelError: it refuses the file.
    """
    onnxruntime = imported()
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if optimized is None else level.ORT_ENABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        key = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{key}_file_name", f"{optimized.name}.data")
        options.add_session_config_entry(f"{key}_min_size_in_bytes", str(LARGE_INITIALIZER))
    return runner(str(path), options, str(path), () if layouts else LAYOUTS)


class Inner:
    """A file in ONNX Runtime, without optimizations, that gives out tensors inside of its graph.

    Attributes:
      shown: the names of those it can give out.
    """

    def __init__(self, path: Path):
        import onnx

        self.path = path
        self.proto = onnx.load(str(path), load_external_data=False)
        self.shown = frozenset(name for node in self.proto.graph.node for name in node.output if name)

    def open(self, names: Sequence[str]) -> Runner:
        """What runs it and gives the tensors of these names.

        Raises:
          ModelError: ONNX Runtime refuses the file with these as outputs.
        """
        import onnx

        onnxruntime = imported()
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        declared = {output.name: output for output in proto.graph.output}
        del proto.graph.output[:]
        proto.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in names)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.path.parent.resolve())
        )
        return runner(proto.SerializeToString(), options, str(self.path))


def runner(source: str | bytes, options: Any, where: str, without: Sequence[str] = ()) -> Runner:
    """A function that runs the model on a sample and gives its outputs by name."""
    onnxruntime = imported()
    options.log_severity_level = 3
    try:
        made = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"ONNX Runtime {onnxruntime.__version__} refuses {where!r}: {error}") from error
    names = [output.name for output in made.get_outputs()]
    foreign = [output for output in made.get_outputs() if FOREIGN.search(output.type)]
    if foreign:
        raise ModelError(
            f"output {foreign[0].name!r} of {where!r} is a {foreign[0].type}, a type that numpy does not have: ONNX Runtime "
            "cannot give its values to Python, so that they cannot be compared; add a Cast to float32 behind it"
        )
    wanted = {given.name for given in made.get_inputs()}

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        try:
            values = made.run(names, {name: np.asarray(value) for name, value in feed.items() if name in wanted})
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run the file on the given sample: {error}") from error
        return dict(zip(names, values, strict=True))

    return run


def imported() -> Any:
    """The module `onnxruntime`.

    Raises:
      RuntimeMissingError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise RuntimeMissingError(
            "verification runs the file in ONNX Runtime, which is not installed; pip install 'jaxq[runtime]'"
        ) from None
    return onnxruntime


def kernels(optimized: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(integer kernels, convolutions and products left in float) in the graph that ONNX Runtime made: operator -> count."""
    counts = operators(optimized)
    integer = {op: count for op, count in counts.items() if op in INTEGER_OPS or op.startswith("QLinear")}
    return integer, {op: count for op, count in counts.items() if op in LINEAR_OPS}


def operators(path: Path) -> collections.Counter[str]:
    """Operator -> how many nodes of it the file has, those of subgraphs too."""
    return collections.Counter(node.op_type for node in nodes_of(path))


def results(path: Path, op: str) -> frozenset[str]:
    """The names of what nodes of an operator make in the file, those of subgraphs too."""
    return frozenset(name for node in nodes_of(path) if node.op_type == op for name in node.output)


def nodes_of(path: Path) -> Iterator[Any]:
    """The nodes of a file as ONNX has them, those of subgraphs too."""
    import onnx

    pending = [onnx.load(str(path), load_external_data=False).graph]
    while pending:
        nodes = pending.pop().node
        yield from nodes
        pending.extend(each.g for node in nodes for each in node.attribute if each.HasField("g"))


def saturation() -> str:
    """Why products of uint8 and int8 can saturate on this machine, or "" if they cannot."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return ""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "the processor's features are unknown; without VNNI, sums of two u8*s8 products saturate at 16 bits"
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return ""
    return (
        "this processor has no VNNI: ONNX Runtime's u8*s8 kernels add two products in 16 bits and can saturate, so that the "
        "optimized runtime differs from other machines; see session.x64quantprecision of ONNX Runtime"
    )
