"""Track retrieval: given a tracked object's first patch, find its later patch among the later patches of all tracks.

This is the training objective of Wang and Gupta (arXiv:1505.00687) as a test for any encoder, on held-out clips. Nothing
is trained and no labels are needed. Hits are counted as in `retrieval`. Several tracks may follow the same object: tracks
of the same clip that overlap in time are not candidates for each other.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pretask.data.base import Images
from pretask.encoders import Encoder
from pretask.evals import baselines, text_retrieval
from pretask.evals.features import embed
from pretask.evals.measure import Result, accuracy
from pretask.evals.protocol import PROTOCOL, Entry, tabulate, untrained_entry
from pretask.evals.scores import Measurement, Role, Scores
from pretask.ops.neighbors import unit
from pretask.types import Batch, UserError

AT = (1, 5)
COMPARED = [Measurement("track recall", "pool", k=k) for k in AT]


class LaterPatches:
    """The later patches of a source of tracks, as a source."""

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
    role: Role = "run",
    seeds: Sequence[int],
    untrained: Sequence[Encoder] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Scores:
    """Score the encoders of runs that differ only in their seed, with the untrained encoder and raw pixels as baselines."""
    if len(tracks) < 2:
        raise UserError(f"{tracks.name} has {len(tracks)} track; retrieval needs at least 2")

    options, candidate = {"device": device, "progress": progress}, candidates(tracks)

    def results(entry: Entry, net: nn.Module, run: int) -> Iterator[Result]:
        first, last = (
            embed(net, source, **options).stages["pool"] for source in (tracks, LaterPatches(tracks))
        )
        return score_tracks(first, last, candidate)

    entries = [
        Entry(name, role, seeds, encoders),
        untrained_entry(encoders, seeds, untrained),
        Entry(baselines.Pixels.name, "pixels", [seed], [baselines.Pixels()]),
    ]
    data = {"train": "nothing", "n_train": 0, "test": tracks.name, "n_test": len(tracks), "classes": []}
    rows, differences, seconds = tabulate(entries, results, tracks, seed, COMPARED)
    records = {"test": tracks.ledger.card()}
    return Scores(data, rows, differences, [], seconds, PROTOCOL, records)


def candidates(tracks: Images) -> Tensor:
    """(N, N) bool: which other tracks are candidates, being from another clip or another time."""
    parts = [tracks.__getitems__(index).aux for index in torch.arange(len(tracks)).split(1024)]
    clip, span = (torch.cat([part[name] for part in parts]) for name in ("clip", "span"))
    first, last = span.T
    return (clip[:, None] != clip) | (last[:, None] < first) | (last < first[:, None])


def score_tracks(first: Tensor, last: Tensor, candidate: Tensor) -> Iterator[Result]:
    """(N, D) features of first and of later patches, (N, N) bool candidates -> recall@K: whether a track's own later patch
    is among the K nearest."""
    distance = -unit(first) @ unit(last).T  # (N, N)
    own = torch.eye(len(distance), dtype=torch.bool)
    distance = distance.masked_fill(~(own | candidate), torch.inf)
    mean_candidates = 1 + candidate.sum(1).float().mean().item()
    for k in AT:
        notes = {"among": round(mean_candidates, 1)}
        yield accuracy("track recall", "pool", text_retrieval.hits(distance, own, k), notes, k=k)
