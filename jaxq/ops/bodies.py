"""The body of an operator (a branch, a turn of a loop) as a function that the operator calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxq.numerics.turns import Seen


class Declared(Protocol):
    """What a file declares of a tensor: dtype name, and per axis a size, a symbol, or None; shape None: unknown rank."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int | str | None, ...] | None: ...


class Body(NamedTuple):
    """What an operator with a body (If, Loop, Scan) gets: `body(*values)` runs it and returns the outputs as a tuple.

    A loop runs it by `turn(*values)`, which returns the outputs and what a tap has seen, and gives what was seen in all turns to
    `leave`. `concrete` says that all it reads is there, in numpy, so that each turn of a loop may run as it comes; `tapped`, that
    somebody looks at tensors, which in a branch that is inlined can be seen.
    """

    run: Callable[..., tuple[Any, ...]]
    turn: Callable[..., tuple[tuple[Any, ...], Seen]]
    leave: Callable[[Seen], None]
    refuse: Callable[[set[str]], None]  # the names of what was seen, and cannot be made one tensor
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[Declared | None, ...]  # what the file declares of the outputs
    concrete: bool = False
    tapped: bool = False

    def __call__(self, *values: Any, inlined: bool = False, condition: Any = None) -> tuple[Any, ...]:
        """Runs the body on positional values; `inlined=True` when it is run exactly once, in the outer trace.

        A `condition`, a boolean that depends on the data, says whether what is inlined is taken at all.
        """
        return self.run(values, inlined, condition)

    def unwatched(self) -> Body:
        """The same body, whose turns no tap sees."""
        return self._replace(turn=lambda *values: (self.run(values, False, None), Seen({}, {})), tapped=False)
