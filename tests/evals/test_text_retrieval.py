"""Text retrieval: hits against a slow loop, random ties, the direction of the divergence, and a whole run on synthetic pairs."""

import json
import math
import random

import pytest
import torch
from small import quick_scores

import pretask
from pretask import data
from pretask.cli.main import main
from pretask.evals import linear_probe, text_retrieval
from pretask.evals.features import Features
from pretask.evals.measure import Chosen
from pretask.evals.protocol import split_off_test
from pretask.rng import Rng
from pretask.text.topics import learn


def slow_hit(distance, relevant, k, tries=4000):
    """How often a relevant candidate is among the k nearest, with ties in random order."""
    found = 0
    for _ in range(tries):
        order = sorted(range(len(distance)), key=lambda i: (distance[i], random.random()))
        found += any(relevant[i] for i in order[:k])
    return found / tries


def test_hits_match_sorting_with_ties_in_random_order():
    random.seed(0)
    generator = torch.Generator().manual_seed(0)
    for levels in (2, 3, 50):
        distance = torch.randint(levels, (6, 7), generator=generator).float()
        relevant = torch.rand(6, 7, generator=generator) < 0.3
        relevant[:, 0] = True
        for k in (1, 2, 5):
            fast = text_retrieval.hits(distance, relevant, k)
            for q in range(6):
                slow = slow_hit(distance[q].tolist(), relevant[q].tolist(), k)
                assert fast[q].item() == pytest.approx(slow, abs=0.04)


def test_constant_distances_score_at_chance():
    relevant = torch.eye(20, dtype=torch.bool)
    assert text_retrieval.hits(torch.zeros(20, 20), relevant, 5).tolist() == pytest.approx([0.25] * 20)
    assert text_retrieval.hits(1 - relevant.float(), relevant, 1).tolist() == [1.0] * 20


def test_divergence_matches_the_formula_from_text_to_image_and_ignores_scale():
    share = torch.tensor([[0.7, 0.2, 0.0], [0.1, 0.1, 0.8]])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1)
    t = share / share.sum(1, keepdim=True)
    slow = [
        [sum(a * math.log(a / b) for a, b in zip(q, r, strict=True) if a) for r in p.tolist()]
        for q in t.tolist()
    ]
    torch.testing.assert_close(text_retrieval.kl_divergence(share, logits), torch.tensor(slow))
    torch.testing.assert_close(text_retrieval.kl_divergence(3 * share, logits), torch.tensor(slow))


def test_a_probe_on_soft_labels_is_at_its_optimum_and_equals_the_usual_one_for_one_hot_labels():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    share = torch.rand(80, 3, generator=generator, dtype=torch.float64)
    share *= torch.rand(80, 1, generator=generator, dtype=torch.float64)  # so that they do not sum to 1
    design = linear_probe.Design(x)
    problem = linear_probe.Problem(design, share, 3)
    theta = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    theta.requires_grad_(True)
    standard = torch.cat([(x - design.mean) * design.scale, torch.ones(80, 1)], 1)
    objective = (
        -(share * (standard @ theta.T).log_softmax(1)).sum(1).mean() + 0.05 * theta[:, :5].square().sum()
    )
    objective.backward()
    value, gradient = problem.value(theta.detach()[None], 0.1)
    assert value.item() == pytest.approx(objective.item())
    torch.testing.assert_close(gradient[0], theta.grad)
    label = torch.randint(3, (80,), generator=generator)
    sure = torch.nn.functional.one_hot(label, 3).double()
    one, other = (linear_probe.fit(x, target, 3, 0.01) for target in (label, sure))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-3)


@pytest.fixture
def texts():
    return data.open("synthetic:120:16")


def test_images_with_the_same_text_are_on_the_same_side_of_the_split(texts):
    captions = text_retrieval.read_texts(texts)
    captions = [captions[i // 4] for i in range(120)]  # four images to a text
    source = text_retrieval.TextLabeled(texts, captions, learn(captions, Rng(0), 4, min_df=1, max_df=1.0))
    train, test = split_off_test(source, seed=0)
    one, other = (set(source.text_id[part.index].tolist()) for part in (train, test))
    assert not one & other and len(one | other) == 30 and 5 <= len(other) <= 7


def test_features_that_show_the_topics_find_every_text_and_those_of_other_images_do_not(texts):
    """Three images to a text; the features are the topics themselves, then those of other images."""
    captions = text_retrieval.read_texts(texts)
    captions = [captions[i // 3] for i in range(120)]
    source = text_retrieval.TextLabeled(texts, captions, learn(captions, Rng(0), 4, min_df=1, max_df=1.0))
    source.topic_probs = (2 * Rng(0).normal(40, 4)).softmax(1)[source.text_id]
    train, test = split_off_test(source, seed=0)
    shown = source.topic_probs.log()
    chosen = Chosen(1, {"pool": linear_probe.Choice(1e-5, 1.0, lambda: linear_probe.Probe(shown, shown[0]))})

    def score(rows):
        of = (
            Features({"pool": x}, part.label, [], "x")
            for x, part in ((shown[train.index], train), (rows, test))
        )
        return {r.title: r for r in text_retrieval.score_text_retrieval(*of, train, test, chosen)}

    rows = shown[test.index]
    own, others = score(rows), score(rows.roll(len(rows) // 2, 0))
    for kind, among in (("text", len(test) // 3), ("image", len(test))):
        assert own[f"{kind}@1"].value > 90 > 50 > others[f"{kind}@1"].value
        assert own[f"{kind}@1"].notes["among"] == among
        assert own[f"{kind}@1"].correct.shape == (len(test),)


def test_text_and_image_retrieval_have_their_own_candidates(texts):
    """Noisy features, for which the two ways differ; argmin by argmin."""
    captions = text_retrieval.read_texts(texts)
    source = text_retrieval.TextLabeled(texts, captions, learn(captions, Rng(0), 4, min_df=1, max_df=1.0))
    source.topic_probs = (2 * Rng(0).normal(120, 4)).softmax(1)
    train, test = split_off_test(source, seed=0)
    x = source.topic_probs.log() + Rng(1).normal(120, 4)
    of = [Features({"pool": x[part.index]}, part.label, [], "x") for part in (train, test)]
    chosen = Chosen(1, {"pool": linear_probe.Choice(0.01, 1.0, lambda: linear_probe.Probe(x, x[0]))})
    found = {r.title: r.correct for r in text_retrieval.score_text_retrieval(*of, train, test, chosen)}
    share = [source.topic_probs[part.index] for part in (train, test)]
    distance = text_retrieval.kl_divergence(
        share[1], linear_probe.fit(x[train.index], share[0], 4, 0.01).logits(x[test.index])
    )
    here = torch.arange(len(test))
    assert torch.equal(found["image@1"], (distance.argmin(1) == here).double())
    assert torch.equal(found["text@1"], (distance.argmin(0) == here).double())
    assert not torch.equal(found["image@1"], found["text@1"])


def test_a_run_uses_its_own_topics_and_head(texts):
    captions = text_retrieval.read_texts(texts)
    source = text_retrieval.TextLabeled(texts, captions, learn(captions, Rng(0), 4, min_df=1, max_df=1.0))
    others = learn(captions, Rng(5), 6, min_df=1, max_df=1.0)
    train, test = split_off_test(source, seed=0)
    x, weight = Rng(1).normal(120, 8), Rng(2).normal(8, 6).requires_grad_()
    of = [Features({"pool": x[part.index]}, part.label, [], "x") for part in (train, test)]
    head = text_retrieval.Head(others, lambda pool: pool @ weight)
    found = {r.title: r for r in text_retrieval.score_text_retrieval(*of, train, test, Chosen(1, {}), head)}
    distance = text_retrieval.kl_divergence(
        others.transform([captions[i] for i in test.index]), x[test.index] @ weight.detach()
    )
    relevant = torch.eye(len(test), dtype=torch.bool)
    assert torch.equal(found["image@10"].correct, text_retrieval.hits(distance, relevant, 10))
    assert torch.equal(found["text@10"].correct, text_retrieval.hits(distance.T, relevant, 10))
    assert found["image@1"].notes["by"] == "its own head"


def test_images_that_could_not_be_read_have_no_topics(texts):
    captions = text_retrieval.read_texts(texts)
    source = text_retrieval.TextLabeled(texts, captions, learn(captions, Rng(0), 4, min_df=1, max_df=1.0))
    source.ledger.mark_unreadable(3, "3", "not an image")
    topic_probs, text_id = text_retrieval.text_targets(source)
    assert torch.equal(topic_probs, source.topic_probs[torch.arange(120) != 3])
    assert torch.equal(text_id, source.text_id[torch.arange(120) != 3])


def test_a_run_on_synthetic_pairs_retrieves_their_texts(tmp_path, monkeypatch, capsys):
    """Texts that describe their images are retrieved; a run's own topics are used."""
    quick_scores(monkeypatch)
    source = data.open("synthetic:240:16")
    captions = text_retrieval.read_texts(source)
    (tmp_path / "images").mkdir()
    from PIL import Image

    rows = []
    for i, pixels in enumerate(source.__getitems__(torch.arange(240)).image):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"images/{i}.png")
        rows.append({"image": f"images/{i}.png", "text": captions[i]})
    for name, part in (("train", rows[:180]), ("test", rows[180:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    run = str(tmp_path / "run-s0")
    known = {"config": {"topics": 4}, "encoder": "resnet_small:width=8"}
    pretask.pretrain("text_topic", train, run, steps=60, batch=32, quiet=True, **known)
    assert main(["evaluate", run, "--data", train, "--test", test]) == 0
    table = capsys.readouterr().out
    assert "its text@10" in table and "4 classes, chance 25.0" in table
    scores = pretask.evaluate(run, train, test, progress=False)
    row = scores.get("run", "text", k=10)
    assert row.n == 60 and row.chosen[0] == {"by": "its own head", "among": 60}
    assert "penalty" in scores.get("untrained", "text", k=10).chosen[0]
    both = pretask.evaluate(run, train, test, seeds=2, progress=False).get("run", "image", k=10)
    alone = pretask.evaluate(run.replace("s0", "s1"), train, test, progress=False).get("run", "image", k=10)
    assert both.values[1] == alone.value, "each run by its own topics"
    assert {d.title for d in scores.differences} >= {"text@10", "image@10"}
    page = (tmp_path / "run-s0/report.html").read_text()
    assert "Topics of the texts" in page and "image@10" in page
    assert main(["evaluate", run, "--data", train, "--test", "synthetic:40:16", "--seeds", "2"]) == 0
    assert main(["evaluate", run, "--data", train, "--test", str(tmp_path / "images")]) == 2
    assert "has no texts, and" in capsys.readouterr().err
