"""Every function against ONNX's own description of the operator, at every version that it serves.

A new onnx release with versions that nobody has reviewed fails here: read what changed, write a function with its own
`since` where the meaning did, and raise `onnx_check.NEWEST_OPSET`.
"""

import inspect

import numpy as np
import onnx.defs
import pytest

from jaxq.onnx_io.check import NEWEST_OPSET
from jaxq.ops import find, table

OLDEST_OPSET = 6
REQUIRED = inspect.Parameter.empty

NOT_IMPLEMENTED = {
    "strings": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "files": "ImageDecoder",
}

# (operator, attribute) whose default reads differently here and means the same.
SAME_MEANING = {
    ("Clip", "min"): "None: no bound, as is the lowest float",
    ("Clip", "max"): "None: no bound, as is the highest float",
    ("GridSample", "mode"): "opset 20 renamed bilinear to linear",
    ("GRU", "output_sequence"): "None: the output is made when it is asked for",
    ("LSTM", "output_sequence"): "None: the output is made when it is asked for",
    ("RNN", "output_sequence"): "None: the output is made when it is asked for",
    ("RNN", "activations"): "none given: Tanh in every direction",
    ("LpPool", "kernel_shape"): "required from opset 2 on, checked with the pads",
    ("Constant", "value"): "one of several ways to give the value from opset 12 on",
}


def served_schemas():
    """The schemas of the standard domain that models of the supported opsets use, by name and version."""
    versions = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, []).append(schema)
    missing = {name for names in NOT_IMPLEMENTED.values() for name in names.split()}
    for name, schemas in sorted(versions.items()):
        schemas.sort(key=lambda schema: schema.since_version)
        first = max(i for i, schema in enumerate(schemas) if i == 0 or schema.since_version <= OLDEST_OPSET)
        for schema in schemas[first:]:
            if name not in missing and not schema.deprecated:
                yield pytest.param(schema, id=f"{name}-{schema.since_version}")


def test_every_version_has_been_reviewed():
    newer = [
        f"{schema.name}-{schema.since_version}"
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and schema.since_version > NEWEST_OPSET
    ]
    assert not newer


def test_nothing_is_listed_as_missing_that_is_there():
    assert not [name for names in NOT_IMPLEMENTED.values() for name in names.split() if ("", name) in table()]


@pytest.mark.parametrize("schema", list(served_schemas()))
def test_the_signature_reads_like_the_schema(schema):
    entry = find(schema.name, "", max(schema.since_version, OLDEST_OPSET))
    positional = [p for p in entry.parameters if p.kind is not p.KEYWORD_ONLY]
    variadic = [p for p in positional if p.kind is p.VAR_POSITIONAL]
    required = [p for p in positional if p.default is p.empty and p not in variadic]
    assert variadic or len(positional) >= len(schema.inputs)
    # Scan-8 begins with an optional input: the walk gives None for one that is left out.
    assert len(required) <= max(schema.min_input, 1 if schema.name == "Scan" else 0)

    defaults = {p.name: p.default for p in entry.parameters if p.kind is p.KEYWORD_ONLY}
    assert set(schema.attributes) <= set(defaults)
    for name, attribute in schema.attributes.items():
        if (schema.name, name) not in SAME_MEANING:
            assert default_of(attribute) == plain(defaults[name]), name


def default_of(attribute):
    """The schema's default as a Python value; None where there is none, REQUIRED where there cannot be one."""
    if attribute.required:
        return REQUIRED
    if attribute.default_value.type == onnx.AttributeProto.UNDEFINED:
        return None
    return plain(onnx.helper.get_attribute_value(attribute.default_value))


def plain(default):
    """Values that mean the same made equal: text is decoded, floats have 32 bits, and what is empty is None."""
    if isinstance(default, bytes):
        return default.decode()
    if isinstance(default, float):
        return float(np.float32(default))
    if isinstance(default, (list, tuple)):
        return tuple(plain(each) for each in default) or None
    return default
