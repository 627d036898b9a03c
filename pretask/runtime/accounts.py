"""Sources opened by the current command, so that it can report at its end what happened to their records."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pretask.data.ledger import Ledger


class Entry(NamedTuple):
    name: str
    ledger: "Ledger"
    spec: str
    """what was opened"""


_opened: list[list[Entry]] = []
"""entries of each command in progress, the innermost last"""
_messages: list[set[str]] = []
"""messages that each of them has printed"""


@contextmanager
def collect() -> Iterator[list[Entry]]:
    """Collect an entry for each source that is opened within the block."""
    _opened.append([])
    _messages.append(set())
    try:
        yield _opened[-1]
    finally:
        _opened.pop()
        _messages.pop()


def add(name: str, ledger: "Ledger", spec: str) -> None:
    if _opened:
        _opened[-1].append(Entry(name, ledger, spec))


def say_once(text: str) -> None:
    """Print a message about a source once per command, however often the source is opened."""
    from pretask.runtime.console import say

    if not any(text in messages for messages in _messages):
        say(text)
    if _messages:
        _messages[-1].add(text)


def summary_lines(opened: Sequence[Entry]) -> list[str]:
    """One line per source. Of several openings with the same result, or not read to the end, the most complete counts."""
    best: dict[tuple[str, str], Entry] = {}
    for entry in opened:
        ledger = entry.ledger
        key = entry.spec, "" if ledger.unread else str(ledger.card())
        best[key] = max(best.get(key, entry), entry, key=lambda e: (e.ledger.used, bool(e.ledger.where)))
    return [f"{entry.name}: {entry.ledger.summary()}" for entry in best.values()]
