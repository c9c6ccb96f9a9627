"""A method is a list of algorithms; a tuple of them shares one pass, on the model as it was before the first."""

from dataclasses import dataclass

from compilations import compilations
from models import Network, smooth

from jaxq.algorithms import run_pipeline
from jaxq.engine import programs
from jaxq.engine.programs import Programs
from jaxq.numerics.observers import extremes
from jaxq.onnx_io.load import load

FEEDS = [{"x": row[None]} for row in smooth(5, 4)]


@dataclass(frozen=True)
class Watch:
    """Remembers what it was given."""

    found: list
    samples: int | None = None
    name: str = "x"

    def needs(self, model):
        return {self.name: extremes(5)}

    def apply(self, model, stats, samples):
        self.found.append(stats[self.name])
        return model


class Counted:
    def __init__(self):
        self.passes: list[int] = []

    def __iter__(self):
        self.passes.append(0)
        for feed in FEEDS:
            self.passes[-1] += 1
            yield feed


def model():
    net = Network()
    net.output(net.node("Relu", [net.input("x", ["N", 4])], "y"), ["N", 4])
    return load(net.proto())


def test_algorithms_in_a_tuple_share_one_pass():
    first, second, data = [], [], Counted()
    run_pipeline([(Watch(first), Watch(second))], model(), data)
    assert data.passes == [5]
    assert (first[0].low == second[0].low).all()
    run_pipeline([Watch(first), Watch(second)], model(), data)
    assert data.passes == [5, 5, 5]


def test_an_algorithm_that_wants_few_samples_gets_no_more():
    data = Counted()
    run_pipeline([Watch([], samples=2), (Watch([], samples=2), Watch([], samples=3))], model(), data)
    assert data.passes == [2, 3]
    run_pipeline([(Watch([], samples=2), Watch([]))], model(), data)
    assert data.passes[-1] == 5


def test_passes_over_the_same_graph_share_one_program(monkeypatch):
    def passes(one_program):
        steps = [Watch(found := []), Watch([], name="y")]
        with compilations() as compiled:
            run_pipeline(steps, model(), FEEDS, one_program=one_program)
        return len(compiled), found[0]

    monkeypatch.setattr(programs, "PROGRAMS", Programs())
    (apart, first), (together, again) = passes(False), passes(True)
    assert (apart, together) == (2, 1)
    assert (first.low == again.low).all()
