"""Checks that a runtime computes what a quantized file says, and what quantization costs: ONNX Runtime, plainly and optimized."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import tempfile
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxq.analysis.classes import class_scores
from jaxq.analysis.layerwise import Difference, Layers
from jaxq.analysis.outputs import OutputComparison, as_array, compare, compare_rows, cost
from jaxq.analysis.verdict import LayerComparison, VerifyReport
from jaxq.data import Dataset
from jaxq.engine.model import Model
from jaxq.engine.programs import Held
from jaxq.errors import CalibrationError, JaxqError, JaxqWarning, ModelError
from jaxq.graph.ir import Node
from jaxq.onnx_io.load import Source, load
from jaxq.onnx_io.qdq import with_qdq
from jaxq.onnx_io.runtime import Inner, Runner, kernels, results, saturation, session
from jaxq.onnx_io.save import save
from jaxq.ops.carriers import QUANTIZERS
from jaxq.progress import track

__all__ = ["VerifyReport", "verify"]

FLOAT = "float"
ROUNDED = (
    "MatMulNBits"  # which ONNX Runtime makes of DequantizeLinear and MatMul, and which rounds its inputs to 8 bits
)
CLOSER_SAMPLES = 3  # that are kept, to find the node inside of a layer
Values = dict[str, list[np.ndarray]]


def verify(
    model: Source, data: Iterable[Any], *, samples: int = 100, float_model: Source | None = None
) -> VerifyReport:
    """Runs the quantized file in ONNX Runtime and compares it with jaxq's own simulation, layer by layer and at the outputs.

    That tells whether the runtime computes what the file says. Whether the file says what the float model meant (a scale that
    is wrong in the file is wrong on both sides) is seen with `float_model` alone.

    Args:
      model: a quantized `Model` (it is written to a temporary file), or the path of a QDQ file.
      data: batches as for `quantize`.
      samples: at most so many are compared.
      float_model: what the file was quantized from, to measure what that costs.

    Returns:
      A `VerifyReport`; print its `table()`.

    Raises:
      RuntimeMissingError: onnxruntime is not installed.
      ModelError: ONNX Runtime refuses the file, even with its graph optimizations off, or the float model has other outputs.
      InputError: the data does not fit the model.
      CalibrationError: there are no samples.
    """
    simulated = load(model)
    if not simulated.encodings and not any(node.op == "DequantizeLinear" for _, node in simulated.graph.walk()):
        message = "the model is in float: it holds no quantizers, so that this says nothing about a quantized file"
        warnings.warn(message, JaxqWarning, stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="jaxq-verify-") as folder:
        work = _Work(simulated, as_file(model, simulated, Path(folder) / "model.onnx"), Path(folder))
        if float_model is not None:
            work.add_float(float_model)
        items = data if isinstance(data, Dataset) else Dataset(data)
        feeds = items.feeds(simulated)
        for feed in track(itertools.islice(feeds, samples), "verifying", samples):
            work.add(feed)
        if not work.count:
            raise CalibrationError("there are no samples to verify with; at least one is needed")
        return work.report()


def as_file(source: Source, model: Model, path: Path) -> Path:
    """The file of a model: its own, or one that is written to `path`."""
    if isinstance(source, (str, Path)):
        return Path(source)
    save(model, path)
    return path


class _Work:
    """The ways in which a file is run, and what they gave."""

    def __init__(self, model: Model, path: Path, folder: Path):
        self.model, self.folder, self.count = model, folder, 0
        self.explicit = with_qdq(model) if model.encodings else model
        self.classes = class_scores(model.graph, model.params)
        self.expected: Values = collections.defaultdict(list)
        self.found: dict[str, Values] = collections.defaultdict(lambda: collections.defaultdict(list))
        self.on_host: frozenset[str] = frozenset()
        self.inside: dict[str, tuple[Inner, Layers]] = {}
        self.unseen: dict[str, str] = {}
        self.compiled = Held()
        self.feeds: list[Mapping[str, Any]] = []
        self.refused, self.integer, self.left, self.rounded = "", dict[str, int](), dict[str, int](), frozenset[str]()
        self.runners: dict[str, Runner] = {"plain": session(path, optimized=None)}
        self._look_inside("plain", path, frozenset())
        try:
            self.runners["optimized"] = session(path, optimized=folder / "optimized.onnx")
        except ModelError as error:  # of types that its integer kernels do not have (float8)
            self.refused = str(error)
            return
        self.integer, self.left = kernels(folder / "optimized.onnx")
        session(path, optimized=folder / "inner.onnx", layouts=False)
        self.rounded = results(folder / "inner.onnx", ROUNDED) - results(path, ROUNDED)
        self._look_inside("optimized", folder / "inner.onnx", merged(self.explicit))

    def _look_inside(self, way: str, path: Path, without: frozenset[str]) -> None:
        try:
            inner = Inner(path)
            self.runners[f"inside {way}"] = inner.open(self.model.graph.outputs)
            self.inside[way] = inner, Layers(self.explicit, inner.shown - without, inner.open, self.compiled)
        except ModelError as error:
            self.unseen[way] = str(error)

    def add_float(self, source: Source) -> None:
        """Runs the float model, too."""
        model = load(source)
        lost = [name for name in self.model.graph.outputs if name not in model.graph.outputs]
        if lost:
            raise ModelError(
                f"the float model has no output {lost[0]!r}; its outputs: {list(model.graph.outputs)}. Is it the one that the "
                "file was quantized from?"
            )
        path = as_file(source, model, self.folder / "float.onnx")
        self.runners[FLOAT] = session(path, optimized=self.folder / "float-optimized.onnx")

    def add(self, feed: Mapping[str, Any]) -> None:
        """One more sample."""
        self.count += 1
        if len(self.feeds) < CLOSER_SAMPLES:
            self.feeds.append({name: np.array(value) for name, value in feed.items()})
        self.on_host |= self.model.made_on_host(feed)
        for name, value in self.model(feed).items():
            self.expected[name].append(as_array(value))
        for way, run in self.runners.items():
            for name, value in run(feed).items():
                self.found[way][name].append(as_array(value))
        for way, (_, layers) in self.inside.items():
            if way in self.unseen:
                continue
            try:
                layers.add(feed)
            except JaxqError as error:
                self.unseen[way] = str(error)

    def report(self) -> VerifyReport:
        """What all samples together say."""
        outputs = tuple(
            self._compare(name, way, self.expected[name], self.found[way][name])
            for name in self.expected
            for way in ("optimized", "plain")
            if way in self.runners
        )
        layers = [
            layer
            for way, (_, inside) in self.inside.items()
            if way not in self.unseen
            for layer in compared(inside, way, self.rounded if way == "optimized" else ())
        ]
        layers = self._closer(layers)
        layers += [self._session(name, way) for way in self.inside if way not in self.unseen for name in self.expected]
        costs = None
        if FLOAT in self.runners:
            way = "optimized" if "optimized" in self.runners else "plain"
            costs = tuple(
                cost(name, self.found[FLOAT][name], self.found[way][name], classes=name in self.classes)
                for name in self.expected
            )
        return VerifyReport(
            self.count,
            outputs,
            self.integer,
            self.left,
            saturation(),
            self.refused,
            tuple(layers),
            self.unseen,
            costs,
            len(self.rounded),
        )

    def _compare(self, name: str, way: str, expected: list[np.ndarray], found: list[np.ndarray]) -> OutputComparison:
        if name in self.on_host:
            return compare_rows(name, way, expected, found)
        return compare(name, way, expected, found, classes=name in self.classes)

    def _session(self, name: str, way: str) -> LayerComparison:
        """An output of the session against that of the one that was looked into, which keeps the order of axes."""
        found = self._compare(name, way, self.found[f"inside {way}"][name], self.found[way][name])
        return LayerComparison(name, "output", way, name, (), found.steps, found.typical_steps, 0, 1, found.same_rows)

    def _closer(self, layers: list[LayerComparison]) -> list[LayerComparison]:
        """The same with the node named in which the difference arises, where a layer of the plain runtime has several."""
        vague = [each for each in layers if not each.agrees and each.runtime == "plain" and len(each.nodes) > 1]
        if not vague:
            return layers
        inner, inside = self.inside["plain"]
        every = Layers(self.explicit, inner.shown, inner.open, every=True)
        for feed in self.feeds:
            every.add(feed)
        found = {each.tensor: first_apart(every, inside.layers[each.tensor].nodes) for each in vague}
        return [
            dataclasses.replace(each, name=node.name, op=node.op)
            if each.runtime == "plain" and (node := found.get(each.tensor)) is not None
            else each
            for each in layers
        ]


def compared(inside: Layers, way: str, rounded: Collection[str]) -> list[LayerComparison]:
    """What was found of each layer, in the order of the graph.

    `rounded` are results of products that round their inputs in the runtime alone.
    """
    found = []
    for tensor, layer in inside.layers.items():
        if layer.is_random or (tensor not in inside.differences and tensor not in inside.rows):
            continue
        node, nodes = layer.node, tuple(each.name for each in layer.nodes if each.op not in QUANTIZERS)
        steps = inside.differences.get(tensor, Difference(1.0))
        matched, total = inside.rows.get(tensor, (0, 0))
        rows = None if tensor not in inside.rows else matched / total if total else 1.0
        found.append(
            LayerComparison(
                node.name,
                node.op,
                way,
                tensor,
                nodes,
                steps.steps,
                steps.typical_steps,
                0 if steps.unit is None else steps.count,
                layer.roundings + sum(made_in(node, rounded) for node in layer.nodes),
                rows,
            )
        )
    return found


def made_in(node: Node, names: Collection[str]) -> int:
    """How many of the tensors of these names a node makes, itself or inside of its bodies."""
    own = sum(name in names for name in node.outputs)
    return own + sum(made_in(each, names) for sub in node.subgraphs for each in sub.nodes)


def first_apart(every: Layers, nodes: Sequence[Node]) -> Node | None:
    """The first of the nodes whose result differs by more than a step of 8 bits over what it reads and makes."""
    sizes = {name: max(-each.low, each.high) for name, each in every.differences.items()}
    for node in nodes:
        for name in node.outputs:
            size = max((sizes[each] for each in (*node.inputs, name) if each in sizes), default=0.0)
            if name in sizes and node.op not in QUANTIZERS and every.differences[name].largest > size / 255:
                return node
    return None


def merged(model: Model) -> frozenset[str]:
    """The integers of two pairs of quantizers in a row: optimizing merges the pairs, so that they mean something else there."""
    producers = model.graph.producers
    found = set[str]()
    for node in model.graph.nodes:
        before = producers.get(node.inputs[0]) if node.op == "QuantizeLinear" else None
        if before is not None and before.op == "DequantizeLinear":
            found.update((node.outputs[0], before.inputs[0]))
    return frozenset(found)
