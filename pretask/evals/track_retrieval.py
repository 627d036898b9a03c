"""Partners: is the later patch of a tracked thing the nearest to its first one, among the later patches of all tracks?

The question of Wang and Gupta's method (arXiv:1505.00687), put to any encoder on clips that it was not trained on.
Nothing is learned here, and no label is needed. Hits are counted as `retrieval` counts them. A thing may be followed by
several tracks at a time: those that overlap in time with a track of the same clip are no candidates for it.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretask.data.base import Images
from pretask.encoders import Encoder
from pretask.evals import baselines
from pretask.evals import text_retrieval as crossmodal
from pretask.evals.features import embed
from pretask.evals.knn import unit
from pretask.evals.measure import Result, accuracy
from pretask.evals.protocol import Scores, combined, differences
from pretask.types import Batch, UserError

AT = (1, 5)
COMPARED = [(f"partner@{k}", "pool") for k in AT]


class Later:
    """What the images of a source show a moment later, as a source of its own."""

    def __init__(self, source: Images):
        self.source, self.name, self.ledger = source, source.name, source.ledger
        self.channels, self.size, self.provides = source.channels, source.size, frozenset[str]()

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.source.__getitems__(index).aux["tracked"])


def evaluate(
    encoders: Sequence[Encoder],
    tracks: Images,
    *,
    name: str,
    seeds: Sequence[int],
    fresh: Sequence[Encoder] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Scores:
    """Score the encoders of runs that differ in their seed alone, beside the same untrained and raw pixels."""
    if len(tracks) < 2:
        raise UserError(f"{tracks.name} has {len(tracks)} track; to tell one from others takes 2 or more")

    def rows() -> Iterator[tuple[str, Sequence[int], Sequence[nn.Module]]]:
        untrained = fresh or [baselines.untrained(e, s) for e, s in zip(encoders, seeds, strict=True)]
        yield name, seeds, encoders
        yield f"untrained {encoders[0].name}", seeds, untrained
        yield baselines.Pixels.name, [seed], [baselines.Pixels()]

    other = apart_in_time(tracks)
    found: dict[str, list[list[Result]]] = {}
    scored: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for row, drawn, nets in rows():
        began = time.perf_counter()
        known = {"device": device, "progress": progress}
        pools = [[embed(net, s, **known).stages["pool"] for s in (tracks, Later(tracks))] for net in nets]
        found[row] = [[*hits(first, last, other)] for first, last in pools]
        about = {"features": row, "own": row == name}
        rest = {"data": tracks.name, "seeds": [*drawn]}
        scored += [about | one | rest for one in combined(found[row], seed)]
        seconds[row] = round(time.perf_counter() - began, 1)
    return Scores(
        {"train": "nothing", "n_train": 0, "test": tracks.name, "n_test": len(tracks), "classes": []},
        scored,
        [
            difference
            for row in found
            if row != name
            for difference in differences(name, found[name], row, found[row], seed, COMPARED)
        ],
        [],
        seconds,
    )


def apart_in_time(tracks: Images) -> Tensor:
    """(N, N): which tracks are of another clip, or of another time."""
    parts = [tracks.__getitems__(index).aux for index in torch.arange(len(tracks)).split(1024)]
    clip, span = (torch.cat([part[name] for part in parts]) for name in ("clip", "span"))
    first, last = span.T
    return (clip[:, None] != clip) | (last[:, None] < first) | (last < first[:, None])


def hits(first: Tensor, last: Tensor, other: Tensor) -> Iterator[Result]:
    """(N, D) features of the first and of the last patches -> whether a track's own is nearer than all but K - 1 of the
    `other` (N, N)."""
    apart = -unit(first) @ unit(last).T  # (N, N)
    own = torch.eye(len(apart), dtype=torch.bool)
    apart = apart.masked_fill(~(own | other), torch.inf)
    candidates = 1 + other.sum(1).float().mean().item()
    for k in AT:
        yield accuracy(
            f"partner@{k}", "pool", crossmodal.hits(apart, own, k), {"among": round(candidates, 1)}
        )
