"""A page to look at: one HTML file with its style and its pictures inside.

It needs no network and runs no script. Made with the extra `report` (jinja2, matplotlib).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxq.engine.model import Model
from jaxq.errors import RuntimeMissingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

LARGEST_TABLE = 2000  # rows; a page with more is slow to open
WIDTH = 8.0  # of figures, in inches
COLOR = "#2a6f97"

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
  table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
  th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
  td.number { text-align: right; }
  figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
  figcaption, footer { color: #666; font-size: .9rem; }
</style>
<h1>{{ title }}</h1>
{% for paragraph in text %}<p>{{ paragraph }}</p>
{% endfor %}
{% for part in parts %}
<h2>{{ part.title }}</h2>
{% if part.svg %}<figure>{{ part.svg | safe }}<figcaption>{{ part.caption }}</figcaption></figure>
{% else %}{% if part.caption %}<p>{{ part.caption }}</p>
{% endif %}<table>
<tr>{% for name in part.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in part.rows %}<tr>
{%- for cell in row %}<td{% if cell is number %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endif %}{% endfor %}
<footer>{{ footer }}</footer>
</html>
"""


@dataclass(frozen=True)
class Table:
    """Rows under a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture under a title, as SVG (`render`); the caption says what question it answers."""

    title: str
    svg: str
    caption: str = ""


def require_extra() -> None:
    """Raises RuntimeMissingError unless the packages that pages are made with are installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise RuntimeMissingError(f"a page needs {error.name}: pip install 'jaxq[report]'") from None


def page(title: str, text: Sequence[str], parts: Sequence[Table | Figure], footer: str = "") -> str:
    """The HTML of a page: paragraphs, then tables and figures in order. Everything but the figures is escaped."""
    require_extra()
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    # A Table has no svg, a Figure no rows; the template asks.
    shown = [vars(part) | {"svg": getattr(part, "svg", "")} for part in parts]
    return environment.from_string(PAGE).render(title=title, text=text, parts=shown, footer=footer)


def drawing(height: float, rows: int = 1, columns: int = 1) -> tuple[Drawing, Any]:
    """An empty figure of that height in inches, and its axes; without pyplot, which would look for a screen."""
    require_extra()
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def render(figure: Drawing) -> str:
    """The figure as SVG to stand inside of HTML; the same figure gives the same text."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "jaxq", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


# ------------------------------------------------------------------------------------------------ of a quantized model


class QuantizerRow(NamedTuple):
    """One row of the page's table; the numbers are rounded for reading."""

    tensor: str
    kind: str  # activation, weight or bias
    integers: str
    scales: int
    smallest_scale: float
    largest_scale: float
    low: float  # the smallest value that the integers can stand for
    high: float


def quantized_page(model: Model, title: str, facts: Mapping[str, Any]) -> str:
    """The page of a quantized model: the facts given, the range of every activation, and all quantizers."""
    rows = quantizers(model)
    parts: list[Table | Figure] = [Table("What was done", ("", ""), list(facts.items()))]
    activations = [row for row in rows if row.kind == "activation"]
    if activations:
        parts.append(range_figure(activations))
    caption = f"The first {LARGEST_TABLE} of {len(rows)}." if len(rows) > LARGEST_TABLE else ""
    columns = [name.replace("_", " ") for name in QuantizerRow._fields]
    parts.append(Table("Quantizers", columns, rows[:LARGEST_TABLE], caption))
    return page(title, [], parts, footer=" · ".join(f"{key}: {value}" for key, value in model.metadata.items()))


def quantizers(model: Model) -> list[QuantizerRow]:
    """Every quantizer that is on, in the order in which the graph comes to its tensors."""
    met = [*model.graph.inputs, *(name for _, node in model.graph.walk() for name in (*node.inputs, *node.outputs))]
    order = {name: place for place, name in reversed(list(enumerate(met)))}
    rows = []
    for name, encoding in sorted(model.encodings.items(), key=lambda item: order.get(item[0], len(met))):
        if not encoding.enabled:
            continue
        scale, zero_point = np.asarray(encoding.scale, np.float64), np.asarray(encoding.zero_point, np.float64)
        qmin, qmax = int(encoding.qmin), int(encoding.qmax)
        kind = "activation" if name not in model.params else "weight" if qmax < 2**16 else "bias"
        smallest, largest = _readable(scale.min()), _readable(scale.max())
        low, high = _readable(((qmin - zero_point) * scale).min()), _readable(((qmax - zero_point) * scale).max())
        rows.append(QuantizerRow(name, kind, f"{qmin}..{qmax}", scale.size, smallest, largest, low, high))
    return rows


def _readable(value: float) -> float:
    return float(f"{value:.5g}")


def range_figure(rows: Sequence[QuantizerRow], most: int = 60) -> Figure:
    """The ranges of activations as bars; the widest ones, if there are too many to draw."""
    widest = set(sorted(rows, key=lambda row: row.low - row.high)[:most])
    shown = [row for row in rows if row in widest]
    figure, axes = drawing(0.8 + 0.2 * len(shown))
    places = np.arange(len(shown))
    axes.barh(places, [row.high - row.low for row in shown], left=[row.low for row in shown], color=COLOR)
    axes.set_yticks(places, [_shortened(row.tensor) for row in shown], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlabel("value that the integers stand for (linear between -1 and 1, logarithmic beyond)")
    which = "" if len(shown) == len(rows) else f" The {len(shown)} widest of {len(rows)}."
    caption = f"Which activations have wide ranges, and so coarse steps? In the order of the graph.{which}"
    return Figure("Ranges of activations", render(figure), caption)


def _shortened(name: str, width: int = 40) -> str:
    return name if len(name) <= width else f"…{name[1 - width :]}"
