"""The page to look at."""

import html.parser

import numpy as np
import pytest

from jaxq.analysis import html as report
from jaxq.engine.model import Model
from jaxq.errors import RuntimeMissingError
from jaxq.graph.ir import FrozenDict, Graph
from jaxq.numerics.quantizer import IntType, QuantParams

UINT8, INT8, INT32 = IntType(8, signed=False), IntType(8), IntType(32)

QUANTIZED = Model(
    Graph(nodes=(), inputs=(), outputs=()),
    params={"weight": np.zeros((2, 3)), "bias": np.zeros(2)},
    encodings={
        "x": QuantParams.of(np.full((1, 1), 0.5), np.full((1, 1), 10), UINT8),
        "weight": QuantParams.of(np.array([[0.25], [0.125]]), 0, INT8),
        "bias": QuantParams.of(np.array([0.125, 0.0625]), 0, INT32),
        "off": QuantParams(np.ones((1, 1)), np.zeros((1, 1)), np.int32(0), np.int32(255), np.bool_(False)),
    },
    metadata=FrozenDict({"jaxq.preset": "mixed"}),
)


class Reader(html.parser.HTMLParser):
    """Collects what is on a page, and what it would load."""

    def __init__(self, text: str):
        super().__init__()
        self.words, self.tags, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]

    def handle_data(self, data):
        self.words += data.split()


def test_quantizers_are_listed_with_their_integers_scales_and_values():
    activation, weight, bias = report.quantizers(QUANTIZED)
    assert activation == ("x", "activation", "0..255", 1, 0.5, 0.5, -5.0, 122.5)
    assert weight == ("weight", "weight", "-128..127", 2, 0.125, 0.25, -32.0, 31.75)
    assert (bias.tensor, bias.kind, bias.scales) == ("bias", "bias", 2)


@pytest.fixture(scope="module")
def page() -> str:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    return report.quantized_page(QUANTIZED, "model <1>", {"seconds": 1.5})


def test_the_page_loads_nothing_and_runs_nothing(page):
    read = Reader(page)
    assert read.loads == []
    assert "script" not in read.tags
    assert "svg" in read.tags


def test_the_page_says_what_was_done_and_shows_every_quantizer(page):
    words = Reader(page).words
    assert {"seconds", "1.5", "weight", "bias", "0..255", "mixed"} <= set(words)


def test_names_from_a_model_are_escaped(page):
    assert "model &lt;1&gt;" in page
    assert "model <1>" not in page


def test_the_same_model_gives_the_same_page(page):
    assert report.quantized_page(QUANTIZED, "model <1>", {"seconds": 1.5}) == page


def test_many_activations_are_drawn_down_to_the_widest():
    pytest.importorskip("matplotlib")
    rows = [report.QuantizerRow(f"t{n}", "activation", "0..255", 1, 1.0, 1.0, 0.0, float(n)) for n in range(100)]
    figure = report.range_figure(rows, most=3)
    assert "The 3 widest of 100" in figure.caption
    assert all(f"t{n}" in figure.svg for n in (97, 98, 99))
    assert "t96" not in figure.svg


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(RuntimeMissingError, match=r"jinja2: pip install 'jaxq\[report\]'"):
        report.require_extra()
