"""The JSON schema of jaxq's own configuration, for editors: made of the classes and of what their docstrings say."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import PydanticJsonSchemaWarning

from jaxq.accuracy.options import AccuracySection, AdvancedAccuracyRestorerParameters
from jaxq.jobs.job import Job
from jaxq.numerics.estimators import RangeEstimatorParametersSet

SCHEMA_FILE = Path(__file__).with_name("config.schema.json")


def schema() -> dict[str, Any]:
    """The JSON schema of the format, for editors: they complete keys and show what each of them means."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # functions are left out: no JSON stands for one
        made = Job.model_json_schema(by_alias=True)
    enumerations = {f"#/$defs/{name}" for name, each in made["$defs"].items() if "enum" in each}
    made["properties"]["data"] = {"anyOf": [{"type": "string"}, made["properties"]["data"]]}  # see `job_of`
    inherited = attribute_meanings(inspect.cleandoc(AdvancedAccuracyRestorerParameters.__doc__ or ""))
    for name, definition in {"Job": made, **made["$defs"]}.items():
        _describe(definition, inherited if name == AccuracySection.__name__ else {})
        for each in definition.get("properties", {}).values():
            members = each.get("anyOf", [])
            if enumerations.intersection(member.get("$ref", "") for member in members):
                each["anyOf"] = [member for member in members if member != {"type": "string"}]
    named = made["$defs"]["AdvancedQuantizationParameters"]["properties"]
    for key in ("activations_range_estimator_params", "weights_range_estimator_params"):
        names = {"enum": [name for name, _ in RangeEstimatorParametersSet.items()]}
        named[key]["anyOf"] = [names if each == {"type": "string"} else each for each in named[key]["anyOf"]]
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "jaxq configuration"
    return made


_JSON = {"None": "null", "True": "true", "False": "false"}
_PYTHON = re.compile(r"\b(None|True|False)\b")


def _describe(definition: dict[str, Any], inherited: Mapping[str, str]) -> None:
    """Moves the meaning of each key from the docstring of its class to the key."""
    text = inspect.cleandoc(definition.get("description", ""))
    own = attribute_meanings(text)
    meanings = {**inherited, **own}
    if own:
        definition["description"] = text.split("\n\nAttributes:")[0]
    for key, each in definition.get("properties", {}).items():
        each.pop("title", None)
        if meaning := meanings.get(key.replace("$schema", "schema_")):
            each["description"] = _PYTHON.sub(lambda word: _JSON[word[0]], meaning)


def attribute_meanings(text: str) -> Mapping[str, str]:
    """The entries of a docstring's `Attributes:` section, each on one line; `a, b: ...` counts for both."""
    _, _, section = text.partition("Attributes:\n")
    section = section.split("\n\n")[0]
    found: dict[str, str] = {}
    for names, meaning in re.findall(r"^  (\w[\w, ]*): (.*(?:\n   .*)*)", section, re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(meaning.split())
    return found
