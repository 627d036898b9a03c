"""The sources that one command has opened, so that it can say at its end what became of every record of theirs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretask.data.ledger import Ledger

_opened: list[list[tuple[str, "Ledger"]]] = []
"""for each command that goes on"""


@contextmanager
def kept() -> Iterator[list[tuple[str, "Ledger"]]]:
    """Name and books of each source that is opened in here."""
    _opened.append([])
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


def enter(name: str, ledger: "Ledger") -> None:
    if _opened:
        _opened[-1].append((name, ledger))


def lines(opened: list[tuple[str, "Ledger"]]) -> list[str]:
    """One for each source; sources of the same name that came to the same have one together."""
    told = (f"{name}: {ledger.line()}" for name, ledger in opened)
    return list(dict.fromkeys(told))
