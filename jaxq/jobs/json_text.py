"""JSON as people write it: with comments (`//`, `/* */`, `#`) and commas before a closing bracket."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxq.errors import ConfigError

STRING = r'"(?:[^"\\\n]|\\.)*"?'  # one that is not closed too: the parser says so, at the right place
NOTES = re.compile(rf"(?P<kept>{STRING})|//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
LAST_COMMAS = re.compile(rf"(?P<kept>{STRING})|,(?=\s*[\]}}])")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file, in which comments and trailing commas may stand.

    Raises:
      ConfigError: there is no such file, or it is not JSON; the message gives line and column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text stands for; `where` names it in messages."""
    # Blanks in their place: line and column stay those of the file.
    plain = LAST_COMMAS.sub(_blank, NOTES.sub(_blank, text))
    try:
        return json.loads(plain, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text.strip() else ""
        raise ConfigError(
            f"{where}, line {error.lineno}, column {error.colno}: {error.msg}{f', in {line!r}' if line else ''}{_hint(line)}"
        ) from None
    except ValueError as error:  # of the two hooks
        raise ConfigError(f"{where}: {error}") from None


def _blank(found: re.Match[str]) -> str:
    return found["kept"] or re.sub(r"[^\n]", " ", found[0])


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"key {key!r} is there twice in one object; keep one of them")
        made[key] = value
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write a finite number, or null for none")


def _hint(line: str) -> str:
    if re.search(r"\b(True|False|None)\b", line):
        return "; JSON writes true, false and null"
    return "; JSON has double quotes only" if "'" in line else ""
