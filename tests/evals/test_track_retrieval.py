"""Track retrieval: hits by hand; overlapping tracks of a clip are not candidates; the command needs no labels."""

import json

import pytest
import torch
import torch.nn.functional as F

from pretask import data
from pretask.cli.main import main
from pretask.data import store
from pretask.data.arrays import Arrays
from pretask.encoders import build
from pretask.evals import track_retrieval
from pretask.rng import Rng
from pretask.types import UserError


def tracks(
    n: int = 24, size: int = 16, clip: torch.Tensor | None = None, span: torch.Tensor | None = None
) -> Arrays:
    made = data.open(f"synthetic:{n}:{size}").__getitems__(torch.arange(n))
    clip = torch.arange(n) if clip is None else clip
    span = torch.tensor([[0, 30]]).expand(n, 2) if span is None else span
    return Arrays(
        "clips", made.image, aux={"tracked": made.aux["tracked"], "clip": clip, "span": span.clone()}
    )


def slow(first, last, clip, span, k) -> list[float]:
    right = []
    for i in range(len(first)):
        near = {}
        for j in range(len(last)):
            overlap = span[i][0] <= span[j][1] and span[j][0] <= span[i][1]
            if j == i or clip[i] != clip[j] or not overlap:
                near[j] = float(F.cosine_similarity(first[i], last[j], dim=0))
        better = sum(near[j] > near[i] for j in near)
        right.append(float(better < k))
    return right


def test_hits_are_those_counted_by_hand():
    clip, begins = torch.arange(30) // 6, Rng(3).integers(30, high=60)
    look = 3 * Rng(4).normal(5, 6)[clip]  # objects of one clip are similar
    first, last = look + Rng(1).normal(30, 6), look + Rng(1).normal(30, 6) + 0.7 * Rng(2).normal(30, 6)
    span = torch.stack([begins, begins + 20], 1)
    source = tracks(30, clip=clip, span=span)
    for found, k in zip(
        track_retrieval.score_tracks(first, last, track_retrieval.candidates(source)),
        track_retrieval.AT,
        strict=True,
    ):
        assert found.title == f"track recall@{k}"
        assert found.correct.tolist() == slow(first, last, clip.tolist(), span.tolist(), k)
        assert found.value > 5
        everyone = ~torch.eye(30, dtype=torch.bool)
        assert found.correct.sum() > next(track_retrieval.score_tracks(first, last, everyone)).correct.sum()


def test_a_constant_encoder_scores_at_chance():
    same = torch.ones(40, 4)
    for found, k in zip(
        track_retrieval.score_tracks(same, same, ~torch.eye(40).bool()), track_retrieval.AT, strict=True
    ):
        assert found.value == pytest.approx(100 * k / 40)


def test_rows_are_the_run_its_untrained_encoder_and_pixels():
    torch.manual_seed(0)
    nets = [build("resnet_small:width=8", 3, 16) for _ in range(2)]
    scores = track_retrieval.evaluate(
        nets, tracks(), name="mine", seeds=(0, 1), untrained=nets, progress=False
    )
    assert {r.name for r in scores.rows} == {"mine", f"untrained {nets[0].name}", "raw pixels"}
    one = scores.get("run", "track recall", k=1)
    assert one.name == "mine" and one.low <= one.value <= one.high and len(one.values) == 2
    zero = next(d for d in scores.differences if d.minus_role == "untrained" and d.key == one.key)
    assert zero.value == 0
    with pytest.raises(UserError, match="has 1 track"):
        track_retrieval.evaluate(nets, tracks(1), name="mine", seeds=(0, 1), progress=False)


def test_evaluate_scores_track_retrieval_for_tracks(tmp_path, capsys):
    store.prepare(tracks(), tmp_path / "tracks", progress=False)
    run = tmp_path / "run"
    flags = ["--out", str(run), "--encoder", "resnet_small:width=8", "--steps", "2", "--batch", "8"]
    assert main(["pretrain", "video_triplet", "--data", str(tmp_path / "tracks"), *flags]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(tmp_path / "tracks"), "--json"]) == 0
    output = capsys.readouterr()
    assert {(r["metric"], r["k"]) for r in json.loads(output.out)["rows"]} == {
        ("track recall", 1), ("track recall", 5)
    }  # fmt: skip
    assert main(["evaluate", str(run), "--data", str(tmp_path / "tracks")]) == 0
    shown = capsys.readouterr().out
    assert "no training; chance of track recall@1 4.2" in shown and "track recall@5" in shown
    assert main(["evaluate", str(run), "--data", str(tmp_path / "tracks"), "--finetune"]) == 2
    assert "holds tracks, which have no labels" in capsys.readouterr().err
