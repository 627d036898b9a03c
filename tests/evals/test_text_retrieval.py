"""Image and text: hits against a slow loop, ties by chance, the divergence's direction, and the whole way on made-up pairs."""

import json
import math
import random

import pytest
import torch

import pretask
from pretask import data as sources
from pretask.cli.main import main
from pretask.evals import baselines
from pretask.evals import linear_probe as linear
from pretask.evals import text_retrieval as crossmodal
from pretask.evals.features import Features
from pretask.evals.measure import Chosen
from pretask.evals.protocol import parts
from pretask.rng import Rng
from pretask.text.topics import learn
from pretask.train.run import Run


def slow_hit(apart, own, k, tries=4000):
    """How often a right candidate is among the k nearest, when equal ones are put in random order."""
    found = 0
    for _ in range(tries):
        order = sorted(range(len(apart)), key=lambda i: (apart[i], random.random()))
        found += any(own[i] for i in order[:k])
    return found / tries


def test_hits_are_those_of_sorting_with_ties_in_random_order():
    random.seed(0)
    generator = torch.Generator().manual_seed(0)
    for levels in (2, 3, 50):
        apart = torch.randint(levels, (6, 7), generator=generator).float()
        own = torch.rand(6, 7, generator=generator) < 0.3
        own[:, 0] = True
        for k in (1, 2, 5):
            fast = crossmodal.hits(apart, own, k)
            for q in range(6):
                slow = slow_hit(apart[q].tolist(), own[q].tolist(), k)
                assert fast[q].item() == pytest.approx(slow, abs=0.04)


def test_a_constant_answer_scores_by_chance():
    own = torch.eye(20, dtype=torch.bool)
    assert crossmodal.hits(torch.zeros(20, 20), own, 5).tolist() == pytest.approx([0.25] * 20)
    assert crossmodal.hits(1 - own.float(), own, 1).tolist() == [1.0] * 20


def test_divergence_is_the_formula_from_text_to_image_and_scaling_changes_nothing():
    share = torch.tensor([[0.7, 0.2, 0.0], [0.1, 0.1, 0.8]])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1)
    t = share / share.sum(1, keepdim=True)
    slow = [
        [sum(a * math.log(a / b) for a, b in zip(q, r, strict=True) if a) for r in p.tolist()]
        for q in t.tolist()
    ]
    torch.testing.assert_close(crossmodal.between(share, logits), torch.tensor(slow))
    torch.testing.assert_close(crossmodal.between(3 * share, logits), torch.tensor(slow))


def test_a_probe_of_shares_is_at_its_optimum_and_that_of_sure_shares_is_the_usual_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    share = torch.rand(80, 3, generator=generator, dtype=torch.float64)
    share *= torch.rand(80, 1, generator=generator, dtype=torch.float64)  # that need not add up to 1
    design = linear.Design(x)
    problem = linear.Problem(design, share, 3)
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
    one, other = (linear.fit(x, target, 3, 0.01) for target in (label, sure))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-3)


@pytest.fixture
def texts():
    return sources.open("synthetic:120:16")


def test_images_of_one_text_stay_on_one_side_of_the_split(texts):
    said = crossmodal.texts_of(texts)
    said = [said[i // 4] for i in range(120)]  # four images to a text
    source = crossmodal.Told(texts, said, learn(said, Rng(0), 4, fewest=1, most=1.0))
    train, test = parts(source, seed=0)
    one, other = (set(source.which[part.index].tolist()) for part in (train, test))
    assert not one & other and len(one | other) == 30 and 5 <= len(other) <= 7


def test_features_that_show_the_topics_find_every_text_and_those_of_other_images_do_not(texts):
    """Three images to a text; the features are the topics themselves, then those of other images."""
    said = crossmodal.texts_of(texts)
    said = [said[i // 3] for i in range(120)]
    source = crossmodal.Told(texts, said, learn(said, Rng(0), 4, fewest=1, most=1.0))
    source.share = (2 * Rng(0).normal(40, 4)).softmax(1)[source.which]
    train, test = parts(source, seed=0)
    shown = source.share.log()
    chosen = Chosen(1, {"pool": linear.Choice(1e-5, 1.0, lambda: linear.Probe(shown, shown[0]))})

    def found(rows):
        of = (
            Features({"pool": x}, part.label, [], "x")
            for x, part in ((shown[train.index], train), (rows, test))
        )
        return {r.eval: r for r in crossmodal.by_text(*of, train, test, chosen)}

    rows = shown[test.index]
    own, others = found(rows), found(rows.roll(len(rows) // 2, 0))
    for kind, among in (("text", len(test) // 3), ("image", len(test))):
        assert own[f"{kind}@1"].value > 90 > 50 > others[f"{kind}@1"].value
        assert own[f"{kind}@1"].notes["among"] == among
        assert own[f"{kind}@1"].right.shape == (len(test),)


def test_each_way_looks_among_its_own_candidates(texts):
    """Noisy features, for which the two ways differ; argmin by argmin."""
    said = crossmodal.texts_of(texts)
    source = crossmodal.Told(texts, said, learn(said, Rng(0), 4, fewest=1, most=1.0))
    source.share = (2 * Rng(0).normal(120, 4)).softmax(1)
    train, test = parts(source, seed=0)
    x = source.share.log() + Rng(1).normal(120, 4)
    of = [Features({"pool": x[part.index]}, part.label, [], "x") for part in (train, test)]
    chosen = Chosen(1, {"pool": linear.Choice(0.01, 1.0, lambda: linear.Probe(x, x[0]))})
    found = {r.eval: r.right for r in crossmodal.by_text(*of, train, test, chosen)}
    share = [source.share[part.index] for part in (train, test)]
    apart = crossmodal.between(share[1], linear.fit(x[train.index], share[0], 4, 0.01).logits(x[test.index]))
    here = torch.arange(len(test))
    assert torch.equal(found["image@1"], (apart.argmin(1) == here).double())
    assert torch.equal(found["text@1"], (apart.argmin(0) == here).double())
    assert not torch.equal(found["image@1"], found["text@1"])


def test_a_run_says_itself_what_a_topic_is_and_which_an_image_has(texts):
    said = crossmodal.texts_of(texts)
    source = crossmodal.Told(texts, said, learn(said, Rng(0), 4, fewest=1, most=1.0))
    others = learn(said, Rng(5), 6, fewest=1, most=1.0)
    train, test = parts(source, seed=0)
    x, weight = Rng(1).normal(120, 8), Rng(2).normal(8, 6).requires_grad_()
    of = [Features({"pool": x[part.index]}, part.label, [], "x") for part in (train, test)]
    head = crossmodal.Head(others, lambda pool: pool @ weight)
    found = {r.eval: r for r in crossmodal.by_text(*of, train, test, Chosen(1, {}), head)}
    apart = crossmodal.between(others.of([said[i] for i in test.index]), x[test.index] @ weight.detach())
    own = torch.eye(len(test), dtype=torch.bool)
    assert torch.equal(found["image@10"].right, crossmodal.hits(apart, own, 10))
    assert torch.equal(found["text@10"].right, crossmodal.hits(apart.T, own, 10))
    assert found["image@1"].notes["by"] == "its own head"


def test_images_that_could_not_be_read_have_no_topics(texts):
    said = crossmodal.texts_of(texts)
    source = crossmodal.Told(texts, said, learn(said, Rng(0), 4, fewest=1, most=1.0))
    source.ledger.bad = {"3": "not an image"}
    share, which = crossmodal.told(source)
    assert torch.equal(share, source.share[torch.arange(120) != 3])
    assert torch.equal(which, source.which[torch.arange(120) != 3])


def test_the_whole_way(tmp_path, monkeypatch, capsys):
    """Texts that tell what is to be seen are found by it; a run's own topics are used."""
    monkeypatch.setattr(baselines, "SAMPLES", 2000)
    source = sources.open("synthetic:240:16")
    said = crossmodal.texts_of(source)
    (tmp_path / "images").mkdir()
    from PIL import Image

    rows = []
    for i, pixels in enumerate(source.__getitems__(torch.arange(240)).image):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"images/{i}.png")
        rows.append({"image": f"images/{i}.png", "text": said[i]})
    for name, part in (("train", rows[:180]), ("test", rows[180:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    run = str(tmp_path / "run-s0")
    words = ["pretrain", "text_topic", "--topics", "4", "--data", train, "--out", run, "--steps", "60"]
    assert main([*words, "--batch", "32", "--encoder", "resnet_small:width=8"]) == 0
    assert main(["evaluate", run, "--data", train, "--test", test]) == 0
    table = capsys.readouterr().out
    assert "its text@10" in table and "4 classes, chance 25.0" in table
    scores = pretask.evaluate(run, train, test, progress=False)
    row = scores.get("text_topic", "text@10")
    assert row["n"] == 60 and row["chosen"][0] == {"by": "its own head", "among": 60}
    assert "penalty" in scores.get(f"untrained {Run(run).encoder.name}", "text@10")["chosen"][0]
    both = pretask.evaluate(run, train, test, seeds=2, progress=False).get("text_topic", "image@10")
    alone = pretask.evaluate(run.replace("s0", "s1"), train, test, progress=False).get(
        "text_topic", "image@10"
    )
    assert both["values"][1] == alone["value"], "each run by its own topics"
    assert {d["eval"] for d in scores.differences} >= {"text@10", "image@10"}
    page = (tmp_path / "run-s0/report.html").read_text()
    assert "Topics of the texts" in page and "image@10" in page
    assert main(["evaluate", run, "--data", train, "--test", "synthetic:40:16", "--seeds", "2"]) == 0
    assert main(["evaluate", run, "--data", train, "--test", str(tmp_path / "images")]) == 2
    assert "has no texts, and" in capsys.readouterr().err
