"""The books of a source: each record that came in is used, left out for a reason, or not looked at yet.

A record is what a source is made of: a file of a folder, a member of a shard, a row of a table, a clip. Three kinds are left out:
files that are no images, counted by their ending; images that cannot be used, each with its reason; and sound images that are not
wanted here, such as those without a label where labels are scored. Only the second kind counts against `--max-bad` and stands in
bad.csv. At any time found = used + left out + not looked at yet.
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
"""what every verb calls the list of images that cannot be used"""
GROUPS = 3
"""reasons, or endings, that a line names; the rest is counted together"""
NO_LABEL = "no label"


class Ledger:
    def __init__(self, bad: Mapping[str, str] | None = None):
        self.bad = dict(bad or {})
        """images that cannot be used: place -> reason"""
        self.unwanted: dict[str, str] = {}
        """sound images that are of no use here: place -> reason"""
        self.other: Counter[str] = Counter()
        """records that are no images: ending -> how many"""
        self.found = 0
        """all there are, set when the source is open"""
        self.seen: Tensor | None = None
        """(N,) bool, positions of the source that were read; None: there is nothing that was not"""
        self.where = ""
        """a file that lists what cannot be used"""

    # ---- entries

    def leave(self, place: str, why: str) -> None:
        """An image that cannot be used. Two may be called alike; both are counted."""
        self.bad[self.free(place, self.bad)] = why

    def spare(self, place: str, why: str) -> None:
        """A sound image that is not wanted."""
        self.unwanted[self.free(place, self.unwanted)] = why

    @staticmethod
    def free(place: str, taken: Mapping[str, str]) -> str:
        name, number = place, 1
        while name in taken:
            number += 1
            name = f"{place} ({number})"
        return name

    def opened(self, n: int, unread: bool = False) -> None:
        """The source has n positions; `unread`: they will be read when they are asked for."""
        self.found = n + self.left
        self.seen = torch.zeros(n, dtype=torch.bool) if unread else None

    def clear(self, n: int) -> None:
        """Nothing of the n images was read yet."""
        self.bad.clear()
        self.opened(n, unread=True)

    def see(self, positions: Sequence[int]) -> None:
        """These were read; more than were expected may come by."""
        if self.seen is None or not positions:
            return
        if (more := max(positions) + 1 - len(self.seen)) > 0:
            self.seen = torch.cat([self.seen, torch.zeros(more, dtype=torch.bool)])
            self.found += more
        self.seen[positions] = True

    def gather(self, *parts: "Ledger") -> None:
        """All that stands in other books, of which this one is the sum."""
        self.found = sum(part.found for part in parts)
        self.other = sum((part.other for part in parts), Counter())
        for part in parts:
            self.bad |= part.bad
            self.unwanted |= part.unwanted
        seen = [torch.ones(part.used, dtype=torch.bool) if part.seen is None else part.seen for part in parts]
        self.seen = torch.cat(seen) | (torch.tensor(False) if self.seen is None else self.seen)

    # ---- of a run that was cut off

    def state(self) -> dict[str, Any]:
        return {"bad": dict(self.bad), "seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.bad |= state["bad"]
        if self.seen is not None and state["seen"] is not None:
            self.seen |= state["seen"]

    # ---- sums

    @property
    def left(self) -> int:
        """Records that are left out."""
        return len(self.bad) + len(self.unwanted) + self.other.total()

    @property
    def used(self) -> int:
        return self.found - self.left if self.seen is None else int(self.seen.sum())

    @property
    def waiting(self) -> int:
        """Records that nobody has looked at yet."""
        return self.found - self.used - self.left

    def card(self) -> dict[str, Any]:
        """For a reader and for programs."""
        return {
            "found": self.found,
            "used": self.used,
            "left_out": dict(grouped(self.bad) + grouped(self.unwanted)),
            "other_files": dict(self.other),
            "not_looked_at": self.waiting,
        }

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"{self.found:,} found", f"{self.used:,} used"]
        if lost := len(self.bad) + len(self.unwanted):
            told = said(grouped(self.bad) + grouped(self.unwanted))
            parts.append(f"{lost:,} left out: {told}" + (f" → {self.where}" if self.where else ""))
        if self.other:
            parts.append(f"{self.other.total():,} other files: {said(self.other)}")
        if self.waiting:
            parts.append(f"{self.waiting:,} not looked at yet")
        return " · ".join(parts)

    def csv(self) -> str:
        """What cannot be used and why, as every verb leaves it in bad.csv."""
        text = io.StringIO()
        csv.writer(text).writerows([("file", "reason"), *sorted(self.bad.items())])
        return text.getvalue()

    def write(self, path: Path, final: Path | None = None) -> None:
        """The list of what cannot be used, if there is any; `final` is its place when all is done."""
        from pretask.runtime import files as checkpoint

        if self.bad:
            checkpoint.write_text(path, self.csv())
            self.where = str(final or path)

    def some(self) -> str:
        """What cannot be used, as far as it fits into a line."""
        return first(self.bad)

    # ---- limits

    def check(self, name: str, limit: float) -> None:
        """UserError when more than `limit` of the images cannot be used."""
        stop(name, self.bad, self.found - self.other.total() - len(self.unwanted), limit)


def stop(name: str, bad: Mapping[str, str], n: int, limit: float) -> None:
    """UserError when more than `limit` of `n` images are bad."""
    if not bad or len(bad) <= limit * n:
        return
    raise UserError(
        f"{name}: {len(bad)} of {n} images cannot be read ({first(bad)}); "
        f"at most {limit:.0%} are tolerated. Mend or remove them, or raise --max-bad"
    )


def check_sample(name: str, bad: Mapping[str, str], n: int, limit: float) -> None:
    """The same of `n` images drawn from many: stop when chance alone does not explain it (3 standard deviations)."""
    if len(bad) > limit * n + 3 * math.sqrt(limit * (1 - limit) * n):
        stop(name, bad, n, limit)


def first(bad: Mapping[str, str]) -> str:
    """What cannot be used, as far as it fits into a line."""
    return "; ".join(f"{place}: {why}" for place, why in list(bad.items())[:GROUPS])


def grouped(reasons: Mapping[str, str]) -> Counter[str]:
    """Reasons up to their colon, behind which stand numbers and names."""
    return Counter(why.partition(":")[0] for why in reasons.values())


def said(counts: Counter[str]) -> str:
    common = counts.most_common(GROUPS)
    rest = counts.total() - sum(n for _, n in common)
    return ", ".join([f"{n:,} {what}" for what, n in common] + ([f"{rest:,} others"] if rest else []))
