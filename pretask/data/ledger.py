"""The ledger of a source: every input record is used, skipped for a reason, or not read yet.

A record is one file of a folder, member of a shard, row of a table, or clip. Skipped records are of three kinds: files
that are not images, counted by suffix; images that cannot be used, each with its reason; and valid images that are
excluded, such as those without a label where labels are scored. Only the second kind counts against `--max-bad` and is
listed in bad.csv. At any time found = used + skipped + not read yet.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask.errors import UserError

BAD = "bad.csv"
"""file that lists the images that cannot be used, in every command"""
GROUPS = 3
"""reasons or suffixes named in one line; the rest is counted as others"""
NO_LABEL = "no label"


class Ledger:
    """What happened to every record of a source; see above."""

    def __init__(self, bad: Mapping[str, str] | None = None):
        self.bad = dict(bad or {})
        """images that cannot be used: name -> reason"""
        self.failed: dict[int, str] = {}
        """those that failed when a position of the source was read: position -> name in `bad`"""
        self.unwanted: dict[str, str] = {}
        """valid images that are excluded: name -> reason"""
        self.other: Counter[str] = Counter()
        """records that are not images: suffix -> count"""
        self.found = 0
        """number of records, set when the source is open"""
        self.seen: Tensor | None = None
        """(N,) bool, positions of the source that were read; None: all were"""
        self.numbered: Counter[str] = Counter()
        """name -> number of duplicates"""
        self.range = ""
        """values mapped to black … white, for images of more than 8 bits"""
        self.where = ""
        """path of the list of images that cannot be used"""

    # ---- entries

    def skip(self, place: str, why: str) -> str:
        """Record an image that cannot be used. Duplicate names are counted separately. Returns the listed name."""
        listed = self.unique(place, self.bad)
        self.bad[listed] = why
        return listed

    def mark_unreadable(self, position: int, place: str, why: str) -> None:
        """Record that the image at a position cannot be read (any longer). Repeated calls for a position count once."""
        if position not in self.failed:
            self.failed[position] = self.skip(place, why)
            if self.seen is not None and position < len(self.seen):
                self.seen[position] = False

    def exclude(self, place: str, why: str) -> None:
        """Record a valid image that is not used here."""
        self.unwanted[self.unique(place, self.unwanted)] = why

    def unique(self, place: str, taken: Mapping[str, str]) -> str:
        """`place`, with a number if it is already taken."""
        name = place
        while name in taken:
            self.numbered[place] += 1
            name = f"{place} ({self.numbered[place] + 1})"
        return name

    def set_size(self, n: int, unread: bool = False) -> None:
        """Set the number of positions of the source; `unread`: images are read on demand."""
        self.found = n + self.skipped
        self.seen = torch.zeros(n, dtype=torch.bool) if unread else None

    def clear(self, n: int) -> None:
        """Start over: none of the n images has been read."""
        for place in self.failed.values():
            del self.bad[place]
        self.failed.clear()
        self.numbered.clear()
        self.set_size(n, unread=True)

    def mark_read(self, positions: Sequence[int]) -> None:
        """Record that these positions were read; they may exceed the expected number."""
        good = [position for position in positions if position not in self.failed]
        if self.seen is not None and good:
            self.extended(self.seen, max(good) + 1)[good] = True

    def extended(self, seen: Tensor, n: int) -> Tensor:
        """`seen` with at least n positions; added ones count as found."""
        if (more := n - len(seen)) > 0:
            self.seen = seen = torch.cat([seen, torch.zeros(more, dtype=torch.bool)])
            self.found += more
        return seen

    def readable(self, positions: Tensor) -> Tensor:
        """(B,) positions -> (B,) bool: False where an image is known to be unreadable."""
        return ~torch.isin(positions, torch.tensor([*self.failed], dtype=torch.int64))

    def merge(self, *parts: "Ledger") -> None:
        """Become the sum of other ledgers, whose positions are concatenated."""
        before, seen, start = self.state(), [], 0
        for entries in (self.bad, self.unwanted, self.failed):
            entries.clear()
        self.numbered.clear()
        for part in parts:
            met = {place: start + position for position, place in part.failed.items()}
            for place, why in part.bad.items():
                if place in met:
                    self.mark_unreadable(met[place], place, why)
                else:
                    self.skip(place, why)
            for place, why in part.unwanted.items():
                self.exclude(place, why)
            seen.append(torch.ones(part.used, dtype=torch.bool) if part.seen is None else part.seen)
            start += len(seen[-1])
        self.other = sum((part.other for part in parts), Counter())
        self.found = sum(part.found for part in parts)
        self.seen = torch.cat(seen)
        self.restore(before)

    # ---- resuming a run, and several processes

    def state(self) -> dict[str, Any]:
        """What reading found, which reopening the source does not restore."""
        failed = {position: (place, self.bad[place]) for position, place in self.failed.items()}
        return {"failed": failed, "seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Add the state of the same source in an earlier run or another process."""
        for position, (place, why) in state["failed"].items():
            self.mark_unreadable(position, place, why)
        if self.seen is not None and (mask := state["seen"]) is not None:
            seen = self.extended(self.seen, len(mask))
            seen[: len(mask)] |= mask
            seen[[position for position in self.failed if position < len(seen)]] = False

    # ---- totals

    @property
    def skipped(self) -> int:
        """Number of skipped records of all three kinds."""
        return len(self.bad) + len(self.unwanted) + self.other.total()

    @property
    def used(self) -> int:
        return self.found - self.skipped if self.seen is None else int(self.seen.sum())

    @property
    def unread(self) -> int:
        """Number of records that have not been read yet."""
        return self.found - self.used - self.skipped

    def card(self) -> dict[str, Any]:
        """All counts, for JSON."""
        return {
            "found": self.found,
            "used": self.used,
            "left_out": dict(grouped(self.bad) + grouped(self.unwanted)),
            "other_files": dict(self.other),
            "not_looked_at": self.unread,
        }

    def summary(self) -> str:
        """All counts in one line."""
        counts = line(self.card(), self.where)
        return f"{counts} · range {self.range}" if self.range else counts

    def csv(self) -> str:
        """Images that cannot be used and why, as written to bad.csv."""
        text = io.StringIO()
        csv.writer(text).writerows([("file", "reason"), *sorted(self.bad.items())])
        return text.getvalue()

    def write(self, path: Path, final: Path | None = None) -> None:
        """Write the list of images that cannot be used, if there are any; `final` is where the file will be moved to."""
        from pretask.runtime import files

        if self.bad:
            files.write_text(path, self.csv())
            self.where = str(final or path)

    def first_bad(self) -> str:
        """The first images that cannot be used, in one line."""
        return first(self.bad)

    # ---- limits

    def check(self, name: str, limit: float) -> None:
        """Raises UserError if more than a fraction `limit` of the images cannot be used."""
        check_fraction(name, self.bad, self.found - self.other.total() - len(self.unwanted), limit)


def line(card: Mapping[str, Any], where: str = "") -> str:
    """A card in one line; `where` is the path of the list of images that cannot be used."""
    parts = [f"{card['found']:,} found", f"{card['used']:,} used"]
    if lost := sum(card["left_out"].values()):
        reasons = counted(card["left_out"])
        parts.append(f"{lost:,} skipped: {reasons}" + (f" → {where}" if where else ""))
    if other := sum(card["other_files"].values()):
        parts.append(f"{other:,} other files: {counted(card['other_files'])}")
    if card["not_looked_at"]:
        parts.append(f"{card['not_looked_at']:,} not read yet")
    return " · ".join(parts)


def write_all(path: Path, ledgers: Sequence[tuple[str, Ledger]]) -> None:
    """Write one list of the images that cannot be used in several sources, as SOURCE: NAME; replaces an earlier list."""
    from pretask.runtime import files

    joint = Ledger()
    for name, ledger in {id(ledger): (name, ledger) for name, ledger in ledgers}.values():
        for place, why in ledger.bad.items():
            joint.skip(f"{name}: {place}", why)
        ledger.where = str(path) if ledger.bad else ledger.where
    files.remove(path)
    joint.write(path)


def check_fraction(name: str, bad: Mapping[str, str], n: int, limit: float) -> None:
    """Raises UserError if more than a fraction `limit` of `n` images are bad."""
    if not bad or len(bad) <= limit * n:
        return
    raise UserError(
        f"{name}: {len(bad)} of {n} images cannot be read ({first(bad)}); "
        f"at most {limit:.0%} are tolerated. Fix or remove them, or raise --max-bad"
    )


def check_sample(name: str, bad: Mapping[str, str], n: int, limit: float) -> None:
    """The same for a sample of `n` images: raises only if the excess is significant (3 standard deviations)."""
    if len(bad) > limit * n + 3 * math.sqrt(limit * (1 - limit) * n):
        check_fraction(name, bad, n, limit)


def first(bad: Mapping[str, str]) -> str:
    """The first GROUPS entries, in one line."""
    return "; ".join(f"{place}: {why}" for place, why in list(bad.items())[:GROUPS])


def grouped(reasons: Mapping[str, str]) -> Counter[str]:
    """Reason -> count, without the details that follow a colon."""
    return Counter(why.partition(":")[0] for why in reasons.values())


def counted(counts: Mapping[str, int]) -> str:
    """ "20 HEIC, 3 damaged, 2 others": the GROUPS most frequent, and the rest."""
    common = Counter(counts).most_common(GROUPS)
    rest = sum(counts.values()) - sum(n for _, n in common)
    return ", ".join([f"{n:,} {what}" for what, n in common] + ([f"{rest:,} others"] if rest else []))
