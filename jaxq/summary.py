"""The path by which scripts import what a model holds; it lives in `jaxq.analysis.inspect`."""

from jaxq.analysis.inspect import Summary as Summary
from jaxq.analysis.inspect import summarize as summarize
