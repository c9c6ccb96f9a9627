"""The schema says what the code reads, and what each key means."""

import json
from dataclasses import fields

from jaxq.jobs.schema import SCHEMA_FILE, attribute_meanings, schema
from jaxq.options import QuantizeOptions


def test_the_schema_that_is_shipped_is_that_of_the_code():
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == schema(), (
        "write it anew: python -m jaxq.cli run --schema > jaxq/jobs/config.schema.json"
    )


def test_the_schema_explains_every_key():
    made = schema()
    for name, each in {"Job": made, **made["$defs"]}.items():
        for key, value in each.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}: explain it in the docstring of its class, under Attributes"


def test_the_schema_knows_all_options_of_quantize():
    properties = schema()["$defs"]["QuantizeOptions"]["properties"]
    assert set(properties) == {each.name for each in fields(QuantizeOptions)}
    assert {"enum": ["performance", "mixed", "accuracy"]}.items() <= schema()["$defs"]["Preset"].items()
    assert {"type": "string"} not in properties["preset"]["anyOf"]  # or an editor would not complete it


def test_meanings_are_read_from_docstrings():
    text = "What it is.\n\nAttributes:\n  one: the first\n    of all.\n  two, three: both.\n\nRaises:\n  four: no."
    assert attribute_meanings(text) == {"one": "the first of all.", "two": "both.", "three": "both."}
