"""Encoders taken to tasks: the machines, the matching, the masks, each against its slow truth; and the verb."""

import json
import shutil
import sys
from itertools import product

import numpy as np
import pytest
import torch

from pretask import encoders
from pretask.cli.main import main
from pretask.data import annotated, voc
from pretask.data.annotated import NONE, Annotated, Item
from pretask.evals import confidence as interval
from pretask.ops.span import span
from pretask.rng import Rng
from pretask.tasks import TASKS, detection, segmentation
from pretask.tasks import base as transfer
from pretask.tasks.base import Found, Outcome, Plan
from pretask.transforms import augment as images
from pretask.types import UserError
from pretask.workflows.transfer import task_of

every = pytest.mark.parametrize("name", [name for name in TASKS if name not in ("normals", "depth")])
"""those of boxes, masks and classes; the others are in test_dense.py"""
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def scenes(root, n, seed=0, size=24):
    """n grey images in COCO's form, half of them of part "a", with one or two coloured squares each, and their masks."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for folder in (annotated.IMAGES, annotated.MASKS):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows, objects = [], []
    for i in range(n):
        pixels = rng.integers(90, 130, (size, size + 4, 3), dtype=np.uint8)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        for k in rng.permutation(3)[: 1 + i % 2].tolist():
            x, y, side = rng.integers(0, size - 9), rng.integers(0, size - 9), 9
            pixels[y : y + side, x : x + side] = list(COLOURS.values())[k]
            mask[y : y + side, x : x + side] = k + 1
            box = [int(x), int(y), side, side]
            objects.append({"id": len(objects), "image_id": i, "category_id": k, "bbox": box, "iscrowd": 0})
        Image.fromarray(pixels).save(root / annotated.IMAGES / f"{i}.png")
        Image.fromarray(mask).save(root / annotated.MASKS / f"{i}.png")
        part = "a" if i < n // 2 else "b"
        rows.append({"id": i, "file_name": f"{i}.png", "width": size + 4, "height": size, "split": part})
    content = {"images": rows, "annotations": objects}
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(COLOURS)]
    content["mask_classes"] = {"0": "ground"} | {str(k + 1): name for k, name in enumerate(COLOURS)}
    (root / "instances.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("data") / "squares", 24)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for module in (detection, segmentation):
        monkeypatch.setattr(module, "STEPS", 2)
        monkeypatch.setattr(module, "SIDE", 24)
    monkeypatch.setattr(voc, "CHANCE", 3)
    monkeypatch.setattr(interval, "RESAMPLES", 40)


def encoder():
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=8", 3, 16)


def data(name, folder):
    task = task_of(name)
    return task, *(task.load(f"{folder}:{part}", 0.1, False) for part in "ab")


# ---- what holds for every task


@every
def test_a_task_has_all_that_is_asked_of_one(name):
    task = task_of(name)
    wanted = {w for w in vars(transfer.Task) | transfer.Task.__annotations__ if not w.startswith("_")}
    assert {w for w in wanted if not hasattr(task, w)} == set() and len(wanted) == 10


@every
def test_the_encoder_and_the_random_state_are_left_alone(name, folder):
    task, train, test = data(name, folder)
    net, state = encoder(), torch.random.get_rng_state()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = task.apply(net, train, test, Plan(progress=False)).found
    assert [f.eval for f in found] == list(task.EVALS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@every
def test_what_was_drawn_before_has_no_say(name, folder):
    (task, train, test), net = data(name, folder), encoder()
    torch.manual_seed(1)
    one = task.apply(net, train, test, Plan(progress=False)).found
    torch.manual_seed(2)
    other = task.apply(net, train, test, Plan(progress=False)).found
    for a, b in zip(one, other, strict=True):
        assert a.value == b.value and np.array_equal(a.again, b.again)
        assert 0 <= a.value <= 100 and a.again.shape == (interval.RESAMPLES,)


@every
def test_the_truth_of_the_test_images_has_no_say_in_what_is_learnt(name, folder, monkeypatch):
    """Pictures show what was found: it is the same whatever the truth is."""
    task, train, test = data(name, folder)
    if name == "classification":
        kept = []
        monkeypatch.setattr(voc, "scored", lambda decision, *_: kept.append(decision) or [])
        for shown in (test, train):
            told = [
                Item(i.file, i.width, i.height, j.boxes, j.label, j.hard)
                for i, j in zip(test.items, shown.items, strict=True)
            ]
            voc.apply(encoder(), train, Annotated("t", told, test.classes, {}), Plan(progress=False))
        assert np.array_equal(*kept)
        return
    drawn = []
    for other in (test, train):
        told = [
            Item(i.file, i.width, i.height, j.boxes, j.label, j.hard, j.mask)
            for i, j in zip(test.items, other.items, strict=True)
        ]
        moved = Annotated("t", told, test.classes, test.areas)
        drawn.append(task.apply(encoder(), train, moved, Plan(progress=False)).pictures)
    assert all(torch.equal(a["found"], b["found"]) for a, b in zip(*drawn, strict=True))
    assert not all(torch.equal(a["truth"], b["truth"]) for a, b in zip(*drawn, strict=True))


def test_a_fifth_is_set_aside_the_same_for_equal_seeds(folder):
    whole = annotated.load(folder)
    kept, out = transfer.parts(whole, 0)
    names = [{i.file.name for i in part.items} for part in (kept, out)]
    assert (len(kept), len(out)) == (19, 5) and not names[0] & names[1]
    assert {i.file.name for i in transfer.parts(whole, 0)[1].items} == names[1]
    assert {i.file.name for i in transfer.parts(whole, 1)[1].items} != names[1]


def test_a_difference_is_paired_over_resamples_and_runs():
    """What two rows share, here all of the luck of the test set, is no part of their difference."""
    luck = np.random.default_rng(0).normal(size=interval.RESAMPLES)
    own = [Outcome([Found("x", 50.0 + s, 50.0 + s + luck)]) for s in (0, 2)]
    theirs = [Outcome([Found("x", 40.0 + s, 40.0 + s + luck)]) for s in (0, 2)]
    [row] = transfer.combined(own, "t", 30)
    assert row["eval"] == "t x" and row["value"] == 51 and row["low"] < 50 and row["values"] == [50, 52]
    [apart] = transfer.apart("own", own, "other", theirs, "t", 30)
    assert apart["value"] == apart["low"] == apart["high"] == 10
    [fixed] = transfer.apart("own", own, "floor", [Outcome([Found("x", 9.0)])], "t", 30)
    assert (
        fixed["value"] == 42 and fixed["low"] < 42 < fixed["high"]
    )  # what has no interval is a fixed number


# ---- linear SVMs


def lowest(x, y, cost):
    """Decisions at the minimum of half the squared norm of weights and bias + the weighted squared hinge."""
    w = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    z, sign = torch.cat([x, torch.ones(len(x), 1)], 1).double(), 2.0 * y - 1
    weight = cost * torch.where(y == 1, 2.0, 1.0) * (y != -1)
    search = torch.optim.LBFGS([w], max_iter=1000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def objective():
        search.zero_grad()
        error = (1 - sign * (z @ w)).clamp(min=0).square()
        (whole := w.square().sum() / 2 + (weight * error).sum()).backward()
        return whole

    search.step(objective)
    return (z @ w).detach().numpy()


@pytest.mark.parametrize(("n", "d"), [(60, 12), (40, 90)])
def test_the_machines_are_at_the_lowest_of_their_objective(n, d):
    rng = Rng(0)
    x = voc.unit(rng.normal(n, d) + 0.5)
    label = (x[:, :3] + 0.05 * rng.normal(n, 3) > 0.1).long()
    label[:5, 1] = -1
    rows, _ = span(x)  # the same decisions
    for cost, k in product((0.1, 2.0, 100.0), range(3)):
        made = voc.decide(rows, label[:, k], rows, cost, voc.EXACTLY)
        expected = lowest(x, label[:, k], cost)
        assert np.abs(made - expected).max() < 0.001 * np.abs(expected).max()


def test_few_images_are_judged_as_if_their_features_had_been_kept_whole(folder, monkeypatch):
    """Features of 64 numbers and more, of 12 images."""
    _, train, test = data("classification", folder)
    decisions = []
    monkeypatch.setattr(voc, "scored", lambda decision, *_: decisions.append(decision) or [])
    voc.apply(encoder(), train, test, Plan(progress=False))
    monkeypatch.setattr(voc, "span", lambda x: (x, None))
    voc.apply(encoder(), train, test, Plan(progress=False))
    spanned, whole = decisions
    assert np.abs(spanned - whole).max() < 1e-3 * np.abs(whole).max()


def test_a_class_that_every_known_image_shows_has_nothing_to_be_told_from():
    x, label = voc.unit(Rng(0).normal(12, 3)), torch.tensor([1] * 11 + [-1])[:, None]
    assert voc.decide(x, label[:, 0], x, 1.0, voc.EXACTLY).tolist() == [0] * 12
    assert voc.choose(x, label, 0).score.item() == 1


def test_hard_images_have_no_say_in_the_choice_of_a_cost():
    rng = Rng(0)
    label = rng.coin(60, 2, p=0.5).long()
    x = voc.unit(rng.normal(60, 10) + torch.cat([3.0 * label, torch.zeros(60, 8)], 1))
    label[:10] = -1
    spoilt = x.clone()
    spoilt[:10] = voc.unit(torch.cat([torch.full((10, 1), -9.0), torch.zeros(10, 9)], 1))
    one, other = (voc.choose(each, label, 0) for each in (x, spoilt))
    torch.testing.assert_close(one.score, other.score)
    assert one.score.min() > 0.9


def test_map_is_the_mean_of_what_each_class_scores_on_the_images_it_is_judged_on():
    decision = np.array([[2.0, 1], [3, 2], [1, 3]])
    label = np.array([[1, 0], [-1, 1], [0, 1]])
    assert [f.value for f in voc.scored(decision, label, 0)] == pytest.approx([100, 100, 100])
    label[1, 0] = 0
    label[0, 0], label[2, 0] = 0, 1  # the only one comes last of three
    assert voc.scored(decision, label, 0)[2].value == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_classes_that_one_set_lacks_are_left_out_and_named(folder):
    _, train, test = data("classification", folder)
    items = [i for i in test.items if 2 not in i.label.tolist()]
    judged, said = voc.judged(train, Annotated("t", items, test.classes, {}))
    assert judged == [0, 1] and "blue (1 of 3 classes)" in said[0]
    with pytest.raises(UserError, match="no class in common"):
        voc.judged(Annotated("t", [], test.classes, {}), test)


# ---- detection


def thing(boxes, label, hard=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    hard = [False] * len(boxes) if hard is None else hard
    return Item(None, 100, 100, boxes, torch.tensor(label), torch.tensor(hard))  # type: ignore[arg-type]


def guess(boxes, label, score):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(label), "scores": torch.tensor(score)}


def test_matching_by_hand():
    """Best overlap decides; the second on one object is wrong; on a hard object it is not judged; another class has no say."""
    item = thing([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], [0, 0, 1], [False, True, False])
    boxes = [
        [0, 0, 10, 8],
        [0, 0, 10, 10],
        [20, 20, 30, 29],
        [80, 80, 90, 90],
        [50, 50, 60, 60],
        [0, 5, 10, 15],
    ]
    found = guess(boxes, [0, 0, 0, 0, 1, 0], [0.6, 0.9, 0.7, 0.8, 0.5, 0.1])
    assert detection.matches(item, found, 0).tolist() == [1, 0, -1, 0, 0]  # by score
    assert detection.matches(item, found, 1).tolist() == [1]


def random_boxes(rng, n):
    corner = rng.uniform(0, 60, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 40, (n, 2))], 1)


@pytest.fixture(scope="module")
def detected():
    """20 images with objects of three classes, some hard, and detections, many of them near an object."""
    pytest.importorskip("pycocotools")
    rng, items, found = np.random.default_rng(0), [], []
    for _ in range(20):
        n = int(rng.integers(1, 5))
        boxes, label = random_boxes(rng, n), rng.integers(0, 3, n)
        items.append(thing(boxes, label, (rng.random(n) < 0.15).tolist()))
        near = boxes + rng.normal(0, 2, (n, 4))
        guessed = np.concatenate([near, random_boxes(rng, 3)])
        labels = np.concatenate([label, rng.integers(0, 3, 3)])
        found.append(guess(guessed, labels, rng.random(n + 3).astype(np.float32)))
    return Annotated("t", items, ["a", "b", "c"], {}), found


def test_cocos_numbers_are_those_of_pycocotools(detected, capsys):
    test, found = detected
    evaluator = detection.coco_evaluator(test, found, [0, 1, 2])
    evaluator.accumulate()
    evaluator.summarize()
    numbers = detection.by_coco(test, found, [0, 1, 2], np.ones((1, 20)))
    assert [float(v[0]) for v in numbers.values()] == pytest.approx(100 * evaluator.stats[:3], abs=1e-6)
    assert 20 < numbers["AP"][0] < 90


def test_a_set_drawn_anew_is_scored_as_one_with_images_repeated(detected):
    test, found = detected
    times = np.random.default_rng(1).multinomial(20, np.full(20, 0.05), size=1)
    index = np.repeat(np.arange(20), times[0])
    again = test.some(torch.from_numpy(index), "again")
    for score in (detection.by_coco, detection.by_voc):
        one = score(test, found, [0, 1, 2], times.astype(float))
        other = score(again, [found[i] for i in index], [0, 1, 2], np.ones((1, 20)))
        assert {k: v[0] for k, v in one.items()} == pytest.approx({k: v[0] for k, v in other.items()})


@pytest.mark.parametrize("hard_too", [True, False])
def test_a_perfect_detector_scores_100_whether_it_finds_the_hard_ones_or_not(detected, hard_too):
    test, _ = detected
    perfect = []
    for item in test.items:
        there = torch.ones_like(item.hard) if hard_too else ~item.hard
        score = torch.ones(int(there.sum()))
        perfect.append({"boxes": item.boxes[there], "labels": item.label[there], "scores": score})
    once = np.ones((1, 20))
    for numbers in (f(test, perfect, [0, 1, 2], once) for f in (detection.by_coco, detection.by_voc)):
        assert {k: round(float(v[0]), 6) for k, v in numbers.items()} == dict.fromkeys(numbers, 100)


def test_a_detector_learns_to_find_squares_by_their_colour(folder):
    _, train, test = data("detection", folder)
    found = detection.apply(encoder(), train, test, Plan(steps=60, size=48, progress=False)).found
    assert {f.eval: f.value for f in found}["AP50"] > 50


def test_undoing_the_flip_gives_image_and_boxes_back(folder):
    item = annotated.load(folder).items[0]
    (image, target), (flipped, moved) = (detection.example(item, 3, flip) for flip in (False, True))
    assert torch.equal(flipped.flip(-1), image) and not torch.equal(flipped, image)
    boxes = moved["boxes"].clone()
    boxes[:, [0, 2]] = item.width - boxes[:, [2, 0]]
    assert torch.equal(boxes, target["boxes"]) and torch.equal(moved["labels"], item.label + 1)


def test_hard_objects_are_no_examples():
    item = Item(None, 4, 4, torch.eye(4), torch.arange(4), torch.tensor([True, False, True, False]))  # type: ignore[arg-type]
    object.__setattr__(item, "image", lambda channels: torch.zeros(channels, 4, 4, dtype=torch.uint8))
    assert detection.example(item, 3, False)[1]["labels"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("spec", "size", "stages", "strides"),
    [
        ("resnet_small:width=8", 32, ["stage2", "stage3"], [4, 8, 16, 32]),
        ("resnet18", 64, ["stage2", "stage3", "stage4", "stage5"], [4, 8, 16, 32, 64, 128]),
        ("vit_tiny_patch16_224:patch_size=8,embed_dim=48,depth=2", 32, ["stage2"], [8, 16, 32]),
    ],
)
def test_the_levels_are_the_deepest_maps_of_each_size(spec, size, stages, strides):
    pyramid = detection.Pyramid(encoders.build(spec, 3, size))
    assert pyramid.stages == stages and pyramid.strides == strides


def test_images_are_normalised_once(folder, monkeypatch):
    """The encoder is given plain pixels."""
    net, seen = encoder(), []
    monkeypatch.setattr(type(net), "normalised", lambda self, x: seen.append(x) or x)
    image = images.to_float(annotated.load(folder).items[0].image(3))
    made = detection.detector(net, 3, 24).eval()
    seen.clear()  # the net has been asked for its sizes
    made([image])
    assert (
        seen[0].min() >= 0 and seen[0].max() <= 1 and abs(seen[0][..., :24, :28].mean() - image.mean()) < 0.01
    )


def test_a_transformer_sees_squares_of_its_own_size(folder):
    net = encoders.build("vit_tiny_patch16_224:patch_size=8,embed_dim=48,depth=2", 3, 32)
    for task in (detection, segmentation):
        with pytest.raises(UserError, match="takes images of 32 px alone, not of 64; leave out --size"):
            task.check(net, Plan(size=64))
    made = detection.detector(net, 3, transfer.canvas(net, Plan(), 160)).eval()
    with torch.no_grad():
        [out] = made([torch.rand(3, 20, 50)])
    assert out["boxes"][:, 2].max() <= 50 and out["boxes"][:, 3].max() <= 20


def test_without_pycocotools_the_install_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'pretask\[detection\]'"):
        detection.check(encoder(), Plan())


# ---- segmentation


def test_iou_and_pixels_are_what_loops_over_pixels_count():
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 3, (4, 6, 5)), rng.integers(0, 4, (4, 6, 5))
    truth[:, 0] = NONE
    counts = np.stack(
        [
            segmentation.counted(torch.tensor(t), torch.tensor(a), 5)
            for t, a in zip(truth, answer, strict=True)
        ]
    )
    pairs = [(t, a) for t, a in zip(truth.ravel(), answer.ravel(), strict=True) if t != NONE]
    ious = []
    for k in sorted({t for t, _ in pairs}):
        both = sum(t == k and a == k for t, a in pairs)
        ious.append(both / sum(t == k or a == k for t, a in pairs))
    found = {f.eval: f.value for f in segmentation.scored(counts, 0, {})}
    assert found["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert found["pixels"] == pytest.approx(100 * np.mean([t == a for t, a in pairs]))


def test_masks_are_squeezed_and_flipped_with_their_images(folder):
    """Where the mask says red, the image is red."""
    train = annotated.load(folder, masks=True)
    table = segmentation.numbers(train)
    for i in range(6):
        for flip in (False, True):
            image, mask = segmentation.example(train, i, 3, 24, flip)
            numbers = table[mask.long()]
            for k, rgb in enumerate(COLOURS.values()):
                inner = image[:, numbers == k + 1].float()
                if inner.numel():
                    assert (inner.median(1).values - torch.tensor(rgb)).abs().max() < 20


def test_unlabelled_pixels_have_no_say_in_the_loss():
    logits, mask = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    mask[:, 0] = NONE
    expected = torch.nn.functional.cross_entropy(logits[:, :, 1:], mask[:, 1:])
    torch.testing.assert_close(segmentation.cost(logits, mask), expected)
    assert segmentation.cost(logits, torch.full_like(mask, NONE)) == 0


def test_a_class_that_the_training_masks_lack_has_no_say(folder):
    _, train, test = data("segmentation", folder)
    fewer = Annotated("t", train.items, train.classes, {v: n for v, n in train.areas.items() if n != "blue"})
    assert segmentation.numbers(fewer)[3] == NONE and segmentation.numbers(fewer)[2] == 2
    said = segmentation.apply(encoder(), fewer, test, Plan(progress=False)).said
    assert said == ["left out, as the training masks lack them: blue (1 classes)"]
    other = Annotated("o", test.items, test.classes, {**test.areas, 2: "cyan"})
    with pytest.raises(UserError, match="numbers its classes in another way: cyan"):
        segmentation.matched(train, other)


def test_a_segmenter_learns_colours_and_beats_the_commonest_class(folder):
    _, train, test = data("segmentation", folder)
    found = segmentation.apply(encoder(), train, test, Plan(steps=60, size=64, progress=False)).found[0]
    name, floor = segmentation.floor(train, test, Plan())
    assert name == "all ground" and found.value > floor.found[0].value + 10


# ---- the verb


FAST = ["--encoder", "resnet_small:width=8", "--batch", "16", "--steps", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "rotnet-s0"
    assert main(["pretrain", "rotnet", "--data", "synthetic:64:16", "--out", str(where), *FAST]) == 0
    return where


@every
def test_the_verb_scores_a_task_beside_the_untrained_encoder(name, trained, folder, capfd):
    words = ["transfer", str(trained), "--data", f"{folder}:a", "--test", f"{folder}:b", "--task", name]
    assert main(words) == 0
    shown, said = capfd.readouterr()
    path = trained / "scores" / f"{name}-squares-b.json"
    scores = json.loads(path.read_text())
    own, other = "rotnet", "untrained resnet_small:width=8"
    assert [*dict.fromkeys(r["features"] for r in scores["rows"])][:2] == [own, other]
    assert {r["eval"] for r in scores["rows"]} == {f"{name} {e}" for e in task_of(name).EVALS}
    assert all(d["low"] <= d["value"] <= d["high"] for d in scores["differences"] if d["low"] is not None)
    assert path.with_suffix(".png").exists() == (name != "classification")
    assert str(path) in said and f"Transfer: {name}" in (trained / "report.html").read_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert all(word in shown for word in (*task_of(name).EVALS, "untrained", "95%", "against"))


def test_sisters_and_a_supervised_row(trained, folder, capfd):
    words = ["transfer", str(trained), "--data", str(folder), "--task", "segmentation"]
    assert main([*words, "--seeds", "2", "--supervised", "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)
    assert scores["data"]["n_train"] == 19 and scores["data"]["n_test"] == 5
    rows = {r["features"]: r for r in scores["rows"] if r["eval"] == "segmentation mIoU"}
    assert [len(r["values"]) for r in rows.values()] == [2, 2, 2, 1]
    assert "supervised resnet_small:width=8" in rows and rows["rotnet"]["seeds"] == [0, 1]


def test_what_is_skipped_is_counted_and_listed(trained, folder, tmp_path, capfd):
    root = shutil.copytree(folder, tmp_path / "some")
    (root / annotated.IMAGES / "0.png").write_bytes(b"no image")
    assert main(["transfer", str(trained), "--data", str(root), "--task", "classification", "--json"]) == 0
    told = capfd.readouterr()
    scores = json.loads(told.out)
    [kept] = (trained / "scores").glob("classification-some*.json")
    assert json.loads(kept.read_text()) == scores
    assert "1 images or objects could not be used" in scores["skipped"][-1]
    [listed] = (trained / "scores").glob("classification-some*.csv")
    assert "some: JPEGImages/0.png,not an image" in listed.read_text() and str(listed) in told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "detektion"], "no task is called 'detektion'; there are classification, detection"),
        (["--task", "classification", "--steps", "3"], "takes no --steps"),
        (["--task", "detection", "--steps", "0"], "--steps 0"),
        (["--task", "segmentation", "--size", "0"], "--size 0"),
        ([], "task"),
    ],
)
def test_a_mistake_is_one_line(trained, folder, words, said, capfd):
    assert main(["transfer", str(trained), "--data", str(folder), *words]) == 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0]


def test_a_run_without_an_encoder_is_one_line(tmp_path, folder, capfd):
    assert main(["transfer", str(tmp_path), "--data", str(folder), "--task", "detection"]) == 2
    assert "is not a run" in capfd.readouterr().err
