"""TextTopicNet: topic models, the loss in loops and by golden values, and the targets."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from pretask import data, encoders
from pretask.methods import text_topic
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.text import topics
from pretask.text import words as text
from pretask.train.plan import Plan
from pretask.transforms import augment
from pretask.types import Batch, UserError

NOW = Plan.of(9, 1).at(0)
K = 40


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:200:16")


@pytest.fixture(scope="module")
def texts(source):
    return text.unpack(source.aux["words"])


def learned(texts, k=4, **options):
    return topics.learn(texts, Rng(0), k, **{"min_df": 1, "max_df": 1.0} | options)


def begun(config, source):
    torch.manual_seed(0)
    method = config.build(encoders.build("resnet_small:width=16", 3, 16), source)
    context = Context(source, [], NOW, Rng(0, "begin"))
    method.begin(context)
    return method, context


# ---- words


def test_tokens_of_an_example_text():
    (bag,) = topics.tokenize(["The 3 Cats' running-wheels, in 1999! Cat, wheel."], "english")
    assert bag == ["cat", "running", "wheel", "cat", "wheel"]


def test_without_english_plurals_are_kept_and_stop_words_can_be_a_file(tmp_path):
    assert topics.tokenize(["the cats, a cat"], "") == [["the", "cats", "cat"]]
    (tmp_path / "stop.txt").write_text("the\nkatze\n")
    assert topics.tokenize(["the Katze, the cat"], str(tmp_path / "stop.txt")) == [["cat"]]
    with pytest.raises(UserError, match=r"--stop-words nowhere\.txt is not a file; expected english"):
        topics.tokenize(["a"], "nowhere.txt")


@pytest.mark.parametrize(("times", "kept"), [(19, False), (20, True), (50, True), (51, False)])
def test_rare_and_common_words_are_ignored(times, kept):
    bags = [["word"] * (i < times) + ["other"] * (i % 3 == 0) for i in range(100)]
    counts, vocabulary = topics.count_words(bags, min_df=20, max_df=0.5)
    assert ("word" in vocabulary) == kept
    assert counts.shape == (100, len(vocabulary))


def test_texts_without_usable_words_are_a_user_error_that_names_the_flags():
    with pytest.raises(UserError, match=r"no word of these 3 texts is in 20 of them .* lower --min-df"):
        learned(["one two three", "four five six", "seven eight nine"], min_df=20)


# ---- topics


def test_learned_topics_are_those_that_generated_the_texts(source, texts):
    found = learned(texts)
    probs = found.transform(texts)
    topic_sets = [set(words) for words in data.synthetic.TOPIC_WORDS]
    of_topic = [max(range(4), key=lambda c: len(topic_sets[c] & set(top))) for top in found.top_words()]
    assert sorted(of_topic) == [0, 1, 2, 3]
    label = data.open_labeled("synthetic:200:16").label
    assert (torch.tensor(of_topic)[probs.argmax(1)] == label).float().mean() > 0.98
    assert found.perplexity < 0.75 * found.unigram_perplexity


def planted(n, k, v, length):
    """n texts of about `length` words, of k topics over v words, and the topics (k, v)."""
    draw = np.random.default_rng(0)
    topic, probs = draw.dirichlet(np.full(v, 0.05), k), draw.dirichlet(np.full(k, 1 / k), n)
    names = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(v)]
    rows = [draw.multinomial(draw.poisson(length) + 1, p / p.sum()) for p in probs @ topic]
    texts = [" ".join(name for name, c in zip(names, row, strict=True) for _ in range(c)) for row in rows]
    return texts, topic, names


@pytest.mark.parametrize(
    ("n", "k", "v", "length", "passes", "chunk", "near"),
    [
        (700, 8, 200, 80, 20, 2000, 0.06),  # many passes; with decay 0.7 and offset 10: 0.13
        (2700, 8, 300, 60, 1, 200, 0.35),  # one pass; in batch mode, a single update: 0.6
    ],
)
def test_planted_topics_are_found_in_many_passes_and_in_one(
    n, k, v, length, passes, chunk, near, monkeypatch
):
    monkeypatch.setattr(topics, "CHUNK", chunk)
    texts, topic, names = planted(n, k, v, length)
    found = learned(texts, k, stop_words="", passes=passes)
    own = torch.zeros(k, v, dtype=torch.double)
    own[:, [names.index(word) for word in found.vocabulary]] = found.weight
    far = 0.5 * (own / own.sum(1, keepdim=True) - torch.from_numpy(topic)[:, None]).abs().sum(2)
    assert far[linear_sum_assignment(far)].mean() < near


def test_topic_probabilities_are_0_or_at_least_a_hundredth_and_deterministic(texts):
    probs = learned(texts, k=K).transform([texts[0], texts[1], texts[0]])
    assert probs.shape == (3, K) and torch.equal(probs[0], probs[2])
    assert ((probs == 0) | (probs >= topics.MIN_PROBABILITY)).all()
    assert ((probs.sum(1) > 0.6) & (probs.sum(1) <= 1 + 1e-6)).all()


def test_a_text_of_unknown_words_has_uniform_topic_probabilities(texts):
    probs = learned(texts).transform(["zyx qwv"])
    torch.testing.assert_close(probs, torch.full((1, 4), 0.25))


def test_topics_are_restored_from_their_files(texts, tmp_path):
    found = learned(texts)
    for name, content in found.files().items():
        (tmp_path / name).write_bytes(content)
    again = topics.Topics.load(tmp_path)
    assert torch.equal(again.transform(texts[:9]), found.transform(texts[:9]))
    assert again.top_words() == found.top_words() and again.perplexity == found.perplexity
    with pytest.raises(UserError, match=r"has no topics\.json"):
        topics.Topics.load(tmp_path / "nowhere")


def test_a_stop_word_file_is_not_needed_after_training(texts, tmp_path):
    stop = tmp_path / "stop.txt"
    stop.write_text("goal\n")
    found = learned(texts, stop_words=str(stop))
    assert "goal" not in found.vocabulary and "match" in found.vocabulary
    stop.unlink()
    assert found.transform(texts[:2]).shape == (2, 4)


def test_identical_texts_are_a_user_error():
    with pytest.raises(UserError, match="all 3 texts are the same"):
        learned(["cats chase dogs"] * 3)


def test_perplexity_of_one_topic_is_that_of_the_word_frequencies():
    """Two words, one three times as frequent in topic and texts: 4 / 3^0.75."""
    bags = [["often"] * 6 + ["seldom"] * 2]
    model = topics.restore_model(np.array([[3.0, 1.0]]))
    found = topics.perplexity(model, bags, ["often", "seldom"])
    assert found == pytest.approx(4 / 3**0.75)


def test_perplexity_is_of_words_from_which_topics_were_not_inferred():
    """Every second word is of another topic than the words before, so it cannot be predicted."""
    model = topics.restore_model(np.array([[1000.0, 1.0], [1.0, 1000.0]]))
    probs = 0.9, 0.1  # four words of the first topic and a prior of 1/2 on each
    p = (probs[0] * 1 + probs[1] * 1000) / 1001
    found = topics.perplexity(model, [["one", "other"] * 4], ["one", "other"])
    assert found == pytest.approx(1 / p, rel=1e-3)
    assert topics.perplexity(model, [["one", "one"] * 4], ["one", "other"]) < 1.2


def test_held_out_texts_are_not_used_for_training(texts, monkeypatch):
    fitted, plain = [], topics.lda

    def watched(*words):
        model = plain(*words)
        fit = model.fit
        model.fit = lambda counts: (fitted.append(counts.shape[0]), fit(counts))[1]
        return model

    monkeypatch.setattr(topics, "lda", watched)
    assert learned(texts).num_texts == 180 and fitted == [180]
    assert learned(texts[:100] * 2).num_texts == 180  # both copies of a text are held out, or none


# ---- the loss


def test_loss_matches_the_formula(source):
    method, _ = begun(text_topic.Config(), source)
    puzzle = method.puzzle(source.__getitems__(torch.arange(6)), 0)
    logits = method.logits(puzzle.image)
    slow = 0.0
    for row, probs in zip(logits.tolist(), puzzle.topic_probs.tolist(), strict=True):
        for o, t in zip(row, probs, strict=True):
            p = 1 / (1 + math.exp(-o))
            slow -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / 6
    assert method.loss(puzzle).total.item() == pytest.approx(slow, rel=1e-5)


def test_golden_losses():
    one_hot = torch.eye(K)[:3]
    assert text_topic.cross_entropy(torch.zeros(3, K), one_hot).item() == pytest.approx(27.73, abs=0.005)
    constant = torch.full((3, K), math.log((1 / K) / (1 - 1 / K)))
    for probs in (one_hot, torch.full((3, K), 1 / K)):
        assert text_topic.cross_entropy(constant, probs).item() == pytest.approx(4.676, abs=5e-4)


def test_gradient_at_initialization():
    logits = torch.zeros(5, K, requires_grad=True)
    probs = torch.rand(5, K)
    text_topic.cross_entropy(logits, probs).backward()
    torch.testing.assert_close(logits.grad, (0.5 - probs) / 5)


def test_excess_loss_is_0_for_perfect_predictions(source):
    method, _ = begun(text_topic.Config(), source)
    puzzle = method.puzzle(source.__getitems__(torch.arange(6)), 0)
    right = dataclasses.replace(puzzle, topic_probs=method.logits(puzzle.image).sigmoid().detach())
    loss = method.loss(right)
    assert loss.parts["excess_loss"].item() == pytest.approx(0, abs=1e-4)
    assert loss.total.item() > 1


# ---- the puzzle


def test_targets_of_an_image_are_the_topics_of_its_text(source, texts):
    method, context = begun(text_topic.Config(topics=4), source)
    index = torch.tensor([5, 17, 5])
    puzzle = method.puzzle(source.__getitems__(index), 0)
    found = learned(texts, min_df=5, max_df=0.5)
    assert torch.equal(puzzle.topic_probs[0], puzzle.topic_probs[2])
    assert torch.equal(puzzle.topic, puzzle.topic_probs.argmax(1))
    assert set(context.files) == {topics.CARD, topics.WEIGHT}
    assert method.topic_probs.shape == (200, 4) and found.weight.shape == method_weight(context).shape
    assert [t.split() for t in method.answer_names()["topic"]] == top_of(context)


def method_weight(context):
    from safetensors.torch import load

    return load(context.files[topics.WEIGHT])["weight"]


def top_of(context):
    import json

    return [words[:3] for words in json.loads(context.files[topics.CARD])["top_words"]]


def test_only_matching_texts_can_be_predicted_not_shuffled_ones():
    """A control: image and text must belong together."""
    whole, shuffled = data.open("synthetic:600:16"), data.open("synthetic:600:16")
    shuffled.aux["words"] = shuffled.aux["words"][Rng(1).permutation(600)]
    right = {}
    for name, one in (("true", whole), ("shuffled", shuffled)):
        method, _ = begun(
            text_topic.Config(
                topics=4, views=augment.ViewAugmentation(crop=(0.9, 1.0), jitter_p=0.0, gray=0.0)
            ),
            one,
        )
        optimizer = torch.optim.AdamW(method.groups(), lr=1e-2)
        for step in range(200):
            loss = method.loss(method.puzzle(one.__getitems__(Rng(step).permutation(500)[:50]), step))
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        method.eval()
        unseen = method.puzzle(one.__getitems__(torch.arange(500, 600)), 0)
        right[name] = (method.predict(unseen)["topic"] == unseen.topic).float().mean().item()
    assert right["true"] > 0.5 and right["shuffled"] < 0.35


@pytest.mark.parametrize(("size", "side", "places", "count"), [(256, 227, 30, 12), (20, 16, 5, 200)])
def test_paper_windows_are_227_of_256_pixels_at_30_positions_and_unstretched(size, side, places, count):
    """Pixels hold their row and column: windows are contiguous, randomly placed, and flipped half of the time."""
    at = torch.arange(size, dtype=torch.uint8)
    grid = torch.stack([at[:, None].expand(size, size), at.expand(size, size), 0 * at.expand(size, size)])
    batch = Batch(torch.zeros(count, dtype=torch.long), grid.expand(count, 3, size, size))
    config = dataclasses.replace(text_topic.Paper(), **({} if size == 256 else {"side": side / size}))
    method = config.build(encoders.build("resnet_small:width=4", 3, size), data.open(f"synthetic:4:{size}"))
    shown = 255 * method.pretext(batch, Rng(1)).image
    assert shown.shape == (count, 3, side, side)
    rows, columns = shown[:, 0], shown[:, 1]
    mirrored = columns[:, 0, 0] > columns[:, 0, -1]
    columns = torch.where(mirrored[:, None, None], columns.flip(2), columns)
    first, steps = torch.stack([rows[:, 0, 0], columns[:, 0, 0]]), torch.arange(float(side))
    near = {"atol": 0.01, "rtol": 0}
    torch.testing.assert_close(rows, (first[0, :, None, None] + steps[:, None]).expand_as(rows), **near)
    torch.testing.assert_close(columns, (first[1, :, None, None] + steps).expand_as(columns), **near)
    torch.testing.assert_close(first, first.round(), **near)
    assert first.min() > -0.01 and first.max() < places - 0.99
    assert mirrored.any() and not mirrored.all()
    if count == 200:  # enough for all positions to occur
        assert all(sorted({round(f) for f in each.tolist()}) == list(range(places)) for each in first)


def test_paper_network_is_caffenet_with_the_released_learning_rates():
    config, source = text_topic.Paper(), data.open("synthetic:16:256")
    torch.manual_seed(0)
    method = config.build(encoders.build(config.encoder, 3, 256), source)
    assert sum(p.numel() for p in method.parameters()) == 57_032_104
    assert list(method.encoder.widths) == [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "pool"]
    assert method.side == 227 and method.eval().logits(torch.rand(1, 3, 227, 227)).shape == (1, 40)
    assert not method.head.bias.any()
    assert method.head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    for group in method.optimizers(config.train)[0].param_groups:  # lr_mult 1, 2 and decay_mult 1, 0
        vectors = {p.ndim for p in group["params"]} == {1}
        assert group["lr"] == pytest.approx(2e-3 if vectors else 1e-3)
        assert group["weight_decay"] == pytest.approx(0.0 if vectors else 5e-4)
        assert group["momentum"] == 0.9 and not group["nesterov"]
    assert (config.train.epochs, config.min_df, config.max_df, config.passes) == (102, 20, 0.5, 1)
    assert config.views.jitter_p == config.views.gray == 0 and config.views.crop == (1.0, 1.0)


def test_default_augmentation_uses_the_whole_image(source):
    method, _ = begun(text_topic.Config(), source)
    batch = source.__getitems__(torch.arange(6))
    views = text_topic.Config().views(augment.to_float(batch.image), 16, Rng(3))
    assert torch.equal(method.pretext(batch, Rng(3)).image, views)
