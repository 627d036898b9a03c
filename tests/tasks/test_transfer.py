"""Transfer to tasks: SVMs, matching and masks, each against a slow implementation; and the command."""

import json
import re
import shutil
import sys
from itertools import product

import numpy as np
import pytest
import torch

from pretask import encoders
from pretask.cli.main import main
from pretask.data import annotated, annotations
from pretask.data.annotated import NONE, Annotated, Item
from pretask.data.base import OpenOptions
from pretask.errors import install_command
from pretask.evals import confidence
from pretask.ops.span import span
from pretask.rng import Rng
from pretask.tasks import TASKS, base, classification, detection, objects, segmentation
from pretask.tasks.base import Plan, Task, TaskResult, TaskScore
from pretask.tasks.classification import Classification
from pretask.tasks.detection import Detection
from pretask.tasks.segmentation import Segmentation
from pretask.transforms import augment
from pretask.types import UserError
from pretask.workflows.transfer import task_of

every = pytest.mark.parametrize("name", [name for name in TASKS if name not in ("normals", "depth")])
"""those of boxes, masks and classes; the others are in test_dense.py"""
COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def scenes(root, n, seed=0, size=24):
    """n gray images in COCO's form, half of them of part "a", with one or two colored squares each, and their masks."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for folder in (annotations.IMAGES, annotations.MASKS):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows, objects = [], []
    for i in range(n):
        pixels = rng.integers(90, 130, (size, size + 4, 3), dtype=np.uint8)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        for k in rng.permutation(3)[: 1 + i % 2].tolist():
            x, y, side = rng.integers(0, size - 9), rng.integers(0, size - 9), 9
            pixels[y : y + side, x : x + side] = list(COLORS.values())[k]
            mask[y : y + side, x : x + side] = k + 1
            box = [int(x), int(y), side, side]
            objects.append({"id": len(objects), "image_id": i, "category_id": k, "bbox": box, "iscrowd": 0})
        Image.fromarray(pixels).save(root / annotations.IMAGES / f"{i}.png")
        Image.fromarray(mask).save(root / annotations.MASKS / f"{i}.png")
        part = "a" if i < n // 2 else "b"
        rows.append({"id": i, "file_name": f"{i}.png", "width": size + 4, "height": size, "split": part})
    content = {"images": rows, "annotations": objects}
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(COLORS)]
    content["mask_classes"] = {"0": "ground"} | {str(k + 1): name for k, name in enumerate(COLORS)}
    (root / "instances.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("data") / "squares", 24)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for module, task in ((detection, Detection), (segmentation, Segmentation)):
        monkeypatch.setattr(task, "steps", min(2, task.steps))
        monkeypatch.setattr(module, "SIDE", 24)
    monkeypatch.setattr(classification, "RANDOM_ORDERS", 3)
    monkeypatch.setattr(confidence, "RESAMPLES", 40)


def encoder():
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=8", 3, 16)


def data(name, folder):
    task = task_of(name)
    return task, *(task.load(f"{folder}:{part}", OpenOptions(progress=False)) for part in "ab")


# ---- all tasks


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_the_required_attributes(name):
    task = task_of(name)
    assert isinstance(task, Task) and task.name == name
    assert {w for w in Task.__annotations__ if not hasattr(task, w)} == set() and len(
        Task.__annotations__
    ) == 5
    assert task.metrics and task.can_finetune == (name in ("normals", "depth"))
    trains = name != "classification"
    assert (type(task).train_network is not Task.train_network) == (task.steps > 0) == trains
    with_floor = type(task).floor is not Task.floor
    assert with_floor == (name != "detection")


@every
def test_the_encoder_and_the_random_state_are_unchanged(name, folder):
    task, train, test = data(name, folder)
    net, state = encoder(), torch.random.get_rng_state()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = task.evaluate(net, train, test, Plan(progress=False)).scores
    assert [f.metric for f in found] == list(task.metrics)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@every
def test_scores_do_not_depend_on_earlier_random_numbers(name, folder):
    (task, train, test), net = data(name, folder), encoder()
    torch.manual_seed(1)
    one = task.evaluate(net, train, test, Plan(progress=False)).scores
    torch.manual_seed(2)
    other = task.evaluate(net, train, test, Plan(progress=False)).scores
    for a, b in zip(one, other, strict=True):
        assert a.value == b.value and np.array_equal(a.bootstrap, b.bootstrap)
        assert 0 <= a.value <= 100 and a.bootstrap.shape == (confidence.RESAMPLES,)


@every
def test_training_does_not_depend_on_the_test_annotations(name, folder, monkeypatch):
    """Pictures show predictions, which are the same for any ground truth."""
    task, train, test = data(name, folder)
    if name == "classification":
        kept = []
        monkeypatch.setattr(
            classification, "score_decisions", lambda decision, *_: kept.append(decision) or []
        )
        for other in (test, train):
            items = [
                Item(i.file, i.width, i.height, j.boxes, j.label, j.hard)
                for i, j in zip(test.items, other.items, strict=True)
            ]
            Classification().evaluate(
                encoder(), train, Annotated("t", items, test.classes, {}), Plan(progress=False)
            )
        assert np.array_equal(*kept)
        return
    pictures = []
    for other in (test, train):
        items = [
            Item(i.file, i.width, i.height, j.boxes, j.label, j.hard, j.mask)
            for i, j in zip(test.items, other.items, strict=True)
        ]
        moved = Annotated("t", items, test.classes, test.areas)
        pictures.append(task.evaluate(encoder(), train, moved, Plan(progress=False)).pictures)
    assert all(torch.equal(a["predicted"], b["predicted"]) for a, b in zip(*pictures, strict=True))
    assert not all(torch.equal(a["truth"], b["truth"]) for a, b in zip(*pictures, strict=True))


def test_equal_seeds_hold_out_the_same_fifth(folder):
    whole = annotated.load(folder)
    kept, out = base.split_off_test(whole, 0)
    names = [{i.file.name for i in part.items} for part in (kept, out)]
    assert (len(kept), len(out)) == (19, 5) and not names[0] & names[1]
    assert {i.file.name for i in base.split_off_test(whole, 0)[1].items} == names[1]
    assert {i.file.name for i in base.split_off_test(whole, 1)[1].items} != names[1]


def test_a_difference_is_paired_over_resamples_and_runs():
    """Noise common to two rows, here all of the test set's, cancels in their difference."""
    noise = np.random.default_rng(0).normal(size=confidence.RESAMPLES)
    own = [TaskResult([TaskScore("x", 50.0 + s, 50.0 + s + noise)]) for s in (0, 2)]
    theirs = [TaskResult([TaskScore("x", 40.0 + s, 40.0 + s + noise)]) for s in (0, 2)]
    [row] = base.combine_runs(own, 30, name="own", role="run")
    assert row.metric == "x" and row.value == 51 and row.low < 50 and row.values == [50, 52]
    about = {"name": "own", "minus": "other", "minus_role": "untrained"}
    [difference] = base.paired_differences(own, theirs, 30, **about)
    assert difference.value == difference.low == difference.high == 10
    [fixed] = base.paired_differences(own, [TaskResult([TaskScore("x", 9.0)])], 30, **about)
    assert fixed.value == 42 and fixed.low < 42 < fixed.high  # a score without an interval counts as exact


# ---- linear SVMs


def slow_decisions(x, y, cost):
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
def test_svms_reach_the_minimum_of_their_objective(n, d):
    rng = Rng(0)
    x = classification.unit(rng.normal(n, d) + 0.5)
    label = (x[:, :3] + 0.05 * rng.normal(n, 3) > 0.1).long()
    label[:5, 1] = -1
    rows, _ = span(x)  # the same decisions
    for cost, k in product((0.1, 2.0, 100.0), range(3)):
        made = classification.decide(rows, label[:, k], rows, cost, classification.FINAL_TOLERANCE)
        expected = slow_decisions(x, label[:, k], cost)
        assert np.abs(made - expected).max() < 0.001 * np.abs(expected).max()


def test_features_reduced_to_the_span_of_few_images_give_the_same_decisions(folder, monkeypatch):
    """12 images with 64 features and more."""
    _, train, test = data("classification", folder)
    decisions = []
    monkeypatch.setattr(
        classification, "score_decisions", lambda decision, *_: decisions.append(decision) or []
    )
    Classification().evaluate(encoder(), train, test, Plan(progress=False))
    monkeypatch.setattr(classification, "span", lambda x: (x, None))
    Classification().evaluate(encoder(), train, test, Plan(progress=False))
    spanned, whole = decisions
    assert np.abs(spanned - whole).max() < 1e-3 * np.abs(whole).max()


def test_a_class_without_negatives_has_decision_0():
    x, label = classification.unit(Rng(0).normal(12, 3)), torch.tensor([1] * 11 + [-1])[:, None]
    assert classification.decide(x, label[:, 0], x, 1.0, classification.FINAL_TOLERANCE).tolist() == [0] * 12
    assert classification.choose(x, label, 0).score.item() == 1


def test_hard_images_are_ignored_when_the_cost_is_chosen():
    rng = Rng(0)
    label = rng.coin(60, 2, p=0.5).long()
    x = classification.unit(rng.normal(60, 10) + torch.cat([3.0 * label, torch.zeros(60, 8)], 1))
    label[:10] = -1
    spoilt = x.clone()
    spoilt[:10] = classification.unit(torch.cat([torch.full((10, 1), -9.0), torch.zeros(10, 9)], 1))
    one, other = (classification.choose(each, label, 0) for each in (x, spoilt))
    torch.testing.assert_close(one.score, other.score)
    assert one.score.min() > 0.9


def test_map_is_the_mean_over_classes_of_ap_on_their_known_images():
    decision = np.array([[2.0, 1], [3, 2], [1, 3]])
    label = np.array([[1, 0], [-1, 1], [0, 1]])
    assert [f.value for f in classification.score_decisions(decision, label, 0)] == pytest.approx(
        [100, 100, 100]
    )
    label[1, 0] = 0
    label[0, 0], label[2, 0] = 0, 1  # the only positive is ranked last of three
    assert classification.score_decisions(decision, label, 0)[2].value == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_classes_missing_from_one_set_are_skipped_and_named(folder):
    _, train, test = data("classification", folder)
    items = [i for i in test.items if 2 not in i.label.tolist()]
    scored, skipped = objects.scored_classes(train, Annotated("t", items, test.classes, {}))
    assert scored == [0, 1] and "blue (1 of 3 classes)" in skipped[0]
    with pytest.raises(UserError, match="no class in common"):
        objects.scored_classes(Annotated("t", [], test.classes, {}), test)


# ---- detection


def annotated_item(boxes, label, hard=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    hard = [False] * len(boxes) if hard is None else hard
    return Item(None, 100, 100, boxes, torch.tensor(label), torch.tensor(hard))  # type: ignore[arg-type]


def detections(boxes, label, score):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(label), "scores": torch.tensor(score)}


def test_matching_by_hand():
    """Best overlap decides; a second detection of an object is false; hard objects and other classes are ignored."""
    item = annotated_item(
        [[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], [0, 0, 1], [False, True, False]
    )
    boxes = [
        [0, 0, 10, 8],
        [0, 0, 10, 10],
        [20, 20, 30, 29],
        [80, 80, 90, 90],
        [50, 50, 60, 60],
        [0, 5, 10, 15],
    ]
    found = detections(boxes, [0, 0, 0, 0, 1, 0], [0.6, 0.9, 0.7, 0.8, 0.5, 0.1])
    assert detection.match(item, found, 0).tolist() == [1, 0, -1, 0, 0]  # by score
    assert detection.match(item, found, 1).tolist() == [1]


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
        items.append(annotated_item(boxes, label, (rng.random(n) < 0.15).tolist()))
        near = boxes + rng.normal(0, 2, (n, 4))
        guessed = np.concatenate([near, random_boxes(rng, 3)])
        labels = np.concatenate([label, rng.integers(0, 3, 3)])
        found.append(detections(guessed, labels, rng.random(n + 3).astype(np.float32)))
    return Annotated("t", items, ["a", "b", "c"], {}), found


def test_coco_metrics_match_pycocotools(detected, capsys):
    test, found = detected
    evaluator = detection.coco_evaluator(test, found, [0, 1, 2])
    evaluator.accumulate()
    evaluator.summarize()
    numbers = detection.coco_ap(test, found, [0, 1, 2], np.ones((1, 20)))
    assert [float(v[0]) for v in numbers.values()] == pytest.approx(100 * evaluator.stats[:3], abs=1e-6)
    assert 20 < numbers["AP"][0] < 90


def test_a_resampled_set_is_scored_as_one_with_repeated_images(detected):
    test, found = detected
    times = np.random.default_rng(1).multinomial(20, np.full(20, 0.05), size=1)
    index = np.repeat(np.arange(20), times[0])
    repeated = test.subset(torch.from_numpy(index), "repeated")
    for score in (detection.coco_ap, detection.voc_ap):
        one = score(test, found, [0, 1, 2], times.astype(float))
        other = score(repeated, [found[i] for i in index], [0, 1, 2], np.ones((1, 20)))
        assert {k: v[0] for k, v in one.items()} == pytest.approx({k: v[0] for k, v in other.items()})


@pytest.mark.parametrize("hard_too", [True, False])
def test_a_perfect_detector_scores_100_with_and_without_hard_objects(detected, hard_too):
    test, _ = detected
    perfect = []
    for item in test.items:
        there = torch.ones_like(item.hard) if hard_too else ~item.hard
        score = torch.ones(int(there.sum()))
        perfect.append({"boxes": item.boxes[there], "labels": item.label[there], "scores": score})
    once = np.ones((1, 20))
    for numbers in (f(test, perfect, [0, 1, 2], once) for f in (detection.coco_ap, detection.voc_ap)):
        assert {k: round(float(v[0]), 6) for k, v in numbers.items()} == dict.fromkeys(numbers, 100)


def test_a_detector_learns_to_find_squares_by_their_color(folder):
    _, train, test = data("detection", folder)
    found = Detection().evaluate(encoder(), train, test, Plan(steps=60, size=48, progress=False)).scores
    assert {f.metric: f.value for f in found}["AP50"] > 50


def test_undoing_the_flip_gives_image_and_boxes_back(folder):
    item = annotated.load(folder).items[0]
    (image, target), (flipped, moved) = (detection.example(item, 3, flip) for flip in (False, True))
    assert torch.equal(flipped.flip(-1), image) and not torch.equal(flipped, image)
    boxes = moved["boxes"].clone()
    boxes[:, [0, 2]] = item.width - boxes[:, [2, 0]]
    assert torch.equal(boxes, target["boxes"]) and torch.equal(moved["labels"], item.label + 1)


def test_hard_objects_are_not_trained_on():
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
def test_pyramid_levels_are_the_deepest_maps_of_each_size(spec, size, stages, strides):
    pyramid = detection.Pyramid(encoders.build(spec, 3, size))
    assert pyramid.stages == stages and pyramid.strides == strides


def test_images_are_normalized_once(folder, monkeypatch):
    """The encoder gets pixels in [0, 1], and normalizes them itself."""
    net, seen = encoder(), []
    monkeypatch.setattr(type(net), "normalized", lambda self, x: seen.append(x) or x)
    image = augment.to_float(annotated.load(folder).items[0].image(3))
    made = detection.detector(net, 3, 24).eval()
    seen.clear()  # building the detector runs the encoder
    made([image])
    assert (
        seen[0].min() >= 0 and seen[0].max() <= 1 and abs(seen[0][..., :24, :28].mean() - image.mean()) < 0.01
    )


def test_a_fixed_size_transformer_gets_squares_of_its_size(folder):
    net = encoders.build("vit_tiny_patch16_224:patch_size=8,embed_dim=48,depth=2", 3, 32)
    for task in (Detection(), Segmentation()):
        with pytest.raises(UserError, match="only takes images of 32 px, not of 64; leave out --size"):
            task.check(net, Plan(size=64))
    made = detection.detector(net, 3, base.image_side(net, Plan(), 160)).eval()
    with torch.no_grad():
        [out] = made([torch.rand(3, 20, 50)])
    assert out["boxes"][:, 2].max() <= 50 and out["boxes"][:, 3].max() <= 20


def test_without_pycocotools_the_error_has_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=re.escape(install_command("detection"))):
        Detection().check(encoder(), Plan())


# ---- segmentation


def test_miou_and_pixel_accuracy_match_loops_over_pixels():
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 3, (4, 6, 5)), rng.integers(0, 4, (4, 6, 5))
    truth[:, 0] = NONE
    counts = np.stack(
        [
            segmentation.pixel_counts(torch.tensor(t), torch.tensor(a), 5)
            for t, a in zip(truth, answer, strict=True)
        ]
    )
    pairs = [(t, a) for t, a in zip(truth.ravel(), answer.ravel(), strict=True) if t != NONE]
    ious = []
    for k in sorted({t for t, _ in pairs}):
        both = sum(t == k and a == k for t, a in pairs)
        ious.append(both / sum(t == k or a == k for t, a in pairs))
    found = {f.metric: f.value for f in segmentation.score_counts(counts, 0, {})}
    assert found["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert found["pixels"] == pytest.approx(100 * np.mean([t == a for t, a in pairs]))


def test_masks_are_resized_and_flipped_with_their_images(folder):
    """Where the mask says red, the image is red."""
    train = annotated.load(folder, masks=True)
    table = segmentation.class_table(train)
    for i in range(6):
        for flip in (False, True):
            image, mask = segmentation.example(train, i, 3, 24, flip)
            numbers = table[mask.long()]
            for k, rgb in enumerate(COLORS.values()):
                inner = image[:, numbers == k + 1].float()
                if inner.numel():
                    assert (inner.median(1).values - torch.tensor(rgb)).abs().max() < 20


def test_unlabeled_pixels_are_ignored_in_the_loss():
    logits, mask = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    mask[:, 0] = NONE
    expected = torch.nn.functional.cross_entropy(logits[:, :, 1:], mask[:, 1:])
    torch.testing.assert_close(segmentation.mask_loss(logits, mask), expected)
    assert segmentation.mask_loss(logits, torch.full_like(mask, NONE)) == 0


def test_classes_missing_from_the_training_masks_are_ignored(folder):
    _, train, test = data("segmentation", folder)
    fewer = Annotated("t", train.items, train.classes, {v: n for v, n in train.areas.items() if n != "blue"})
    assert segmentation.class_table(fewer)[3] == NONE and segmentation.class_table(fewer)[2] == 2
    skipped = Segmentation().evaluate(encoder(), fewer, test, Plan(progress=False)).skipped
    assert skipped == ["left out, since the training masks lack them: blue (1 classes)"]
    other = Annotated("o", test.items, test.classes, {**test.areas, 2: "cyan"})
    with pytest.raises(UserError, match=r"has other class numbers than .*: cyan"):
        Segmentation().align_classes(train, other)


def test_a_segmenter_learns_colors_and_beats_the_most_frequent_class(folder):
    _, train, test = data("segmentation", folder)
    found = Segmentation().evaluate(encoder(), train, test, Plan(steps=60, size=64, progress=False)).scores[0]
    name, floor = Segmentation().floor(train, test, Plan())
    assert name == "all ground" and found.value > floor.scores[0].value + 10


# ---- the command


FAST = ["--encoder", "resnet_small:width=8", "--batch", "16", "--steps", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "rotnet-s0"
    assert main(["pretrain", "rotnet", "--data", "synthetic:64:16", "--out", str(where), *FAST]) == 0
    return where


@every
def test_the_command_compares_a_run_with_its_untrained_encoder(name, trained, folder, capfd):
    words = ["transfer", str(trained), "--data", f"{folder}:a", "--test", f"{folder}:b", "--task", name]
    assert main(words) == 0
    shown, log = capfd.readouterr()
    path = trained / "scores" / f"{name}-squares-b.json"
    scores = json.loads(path.read_text())
    own, other = "rotnet", "untrained resnet_small:width=8"
    assert [*dict.fromkeys((r["role"], r["name"]) for r in scores["rows"])][:2] == [
        ("run", own),
        ("untrained", other),
    ]
    assert {(r["task"], r["metric"]) for r in scores["rows"]} == {(name, e) for e in task_of(name).metrics}
    assert all(d["low"] <= d["value"] <= d["high"] for d in scores["differences"] if d["low"] is not None)
    assert path.with_suffix(".png").exists() == (name != "classification")
    assert str(path) in log and f"Transfer: {name}" in (trained / "report.html").read_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert all(word in shown for word in (*task_of(name).metrics, "untrained", "95%", "against"))


def test_seed_runs_and_a_supervised_encoder_are_scored(trained, folder, capfd):
    words = ["transfer", str(trained), "--data", str(folder), "--task", "segmentation"]
    assert main([*words, "--seeds", "2", "--supervised", "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)
    assert scores["data"]["n_train"] == 19 and scores["data"]["n_test"] == 5
    rows = {r["role"]: r for r in scores["rows"] if r["metric"] == "mIoU"}
    assert [len(r["values"]) for r in rows.values()] == [2, 2, 2, 1]
    assert list(rows) == ["run", "untrained", "supervised", "floor"] and rows["run"]["seeds"] == [0, 1]


def test_skipped_images_and_objects_are_counted_and_listed(trained, folder, tmp_path, capfd):
    root = shutil.copytree(folder, tmp_path / "some")
    (root / annotations.IMAGES / "0.png").write_bytes(b"no image")
    (root / "labels.csv").write_text("0.png")
    content = json.loads((root / "instances.json").read_text())
    broken = [each for each in content["annotations"] if each["image_id"] % 3]
    for each in broken:
        each["bbox"] = [1, 1, 0, 0]
    (root / "instances.json").write_text(json.dumps(content))
    assert main(["transfer", str(trained), "--data", str(root), "--task", "classification", "--json"]) == 0
    output = capfd.readouterr()
    scores = json.loads(output.out)
    [kept] = (trained / "scores").glob("classification-some*.json")
    assert json.loads(kept.read_text()) == scores
    assert f"{1 + len(broken)} images or objects could not be used" in scores["skipped"][-1]
    n, lost = len(content["annotations"]), sum(each["image_id"] == 0 for each in content["annotations"])
    assert (
        f"most objects of some cannot be used, {len(broken)} of {n - lost}: {len(broken)} its box has no size"
        in scores["skipped"]
    )
    [listed] = (trained / "scores").glob("classification-some*.csv")
    assert "some: JPEGImages/0.png,not an image" in listed.read_text() and str(listed) in output.err
    assert (
        f"some: 25 found · 23 used · 1 skipped: 1 not an image → {listed} · 1 other files: 1 .csv"
        in output.err
    )
    assert (
        f"objects of some: {n} found · {n - lost - len(broken)} used · {lost + len(broken)} skipped: "
        f"{len(broken)} its box has no size, {lost} its image is skipped → {listed}"
    ) in output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "detektion"], "no task is called 'detektion'; there are classification, detection"),
        (["--task", "classification", "--steps", "3"], "takes no --steps"),
        (["--task", "detection", "--steps", "0"], "--steps 0"),
        (["--task", "segmentation", "--size", "0"], "--size 0"),
        ([], "task"),
    ],
)
def test_invalid_arguments_are_a_one_line_error(trained, folder, words, message, capfd):
    assert main(["transfer", str(trained), "--data", str(folder), *words]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_folder_that_is_no_run_is_an_error(tmp_path, folder, capfd):
    assert main(["transfer", str(tmp_path), "--data", str(folder), "--task", "detection"]) == 2
    assert "holds no trained encoder" in capfd.readouterr().err
