"""What the runtime that is installed here can do: known by its version, and asked for when it matters."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator

from jaxq.placement.targets.table import Limit, Target


def installed_version(target: Target) -> str | None:
    """The version of the target's runtime in this environment; None where it is not installed."""
    for package in target.packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def limits_of(target: Target, version: str | None) -> Iterator[Limit]:
    """What that version of the runtime does not take as it is written; where none is known, what any version does not."""
    numbers = None if version is None else tuple(map(int, re.findall(r"\d+", version)[:3]))
    for limit in target.limits:
        if numbers is None or (limit.since <= numbers and (limit.before is None or numbers < limit.before)):
            yield limit


def in_words(limit: Limit, version: str | None) -> str:
    """What the limit is, and the way out."""
    here = "" if version is None else f" ({version} is installed)"
    return f"{limit.effect}{here}; {limit.remedy}"
