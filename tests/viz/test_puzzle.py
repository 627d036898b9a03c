"""Pictures of every method's puzzles: titles and captions, marks for correct answers, and positions of views and patches."""

import dataclasses
import re
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import images_for, light, small
from torch import Tensor

from pretask import encoders, methods
from pretask.data.in_memory import from_array
from pretask.methods import Method, context_prediction, jigsaw, neighbourhood_discovery, rotnet, simclr, swav
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.transforms import augment
from pretask.types import Batch
from pretask.viz import draw, sheet
from pretask.viz.puzzle import (
    Arrow,
    Board,
    Caption,
    Depth,
    Mask,
    Normals,
    Panel,
    Puzzle,
    generic_puzzles,
    tensor_fields,
)

NAMES = methods.names()
KEYS = (0, "pictures")


@cache
def build_small(name: str) -> tuple[Method, Batch]:
    """A small untrained method, and a batch."""
    source, config = images_for(name), light(name)
    torch.manual_seed(0)
    method = config.build(config.build_encoder(config.spec(small(config.encoder)), source), source)
    method.begin(Context(source, [], Plan.of(1, 1).at(0), Rng(0, "begin")))
    return method.eval(), source.__getitems__(torch.arange(6))


def has_predictions(method: Method) -> bool:
    return type(method).predict is not Method.predict


def show(name: str, answers: dict[str, Tensor]) -> list[Puzzle]:
    method, batch = build_small(name)
    return list(method.show(method.puzzle(batch, *KEYS), answers, batch.only(method.needs), Rng(*KEYS)))


# ---- every method


@pytest.mark.parametrize("name", NAMES)
def test_every_method_shows_question_and_answer_with_one_readable_caption(name):
    method, batch = build_small(name)
    fields = tensor_fields(method.puzzle(batch, *KEYS))
    puzzles = method.illustrate(batch, *KEYS)
    assert len(puzzles) >= len(batch)
    assert re.fullmatch(r"[A-Z][A-Za-z',\- ]+", method.pretext_task)
    for one in puzzles:
        (caption,) = one.captions
        titles = [panel.title for panel in (*one.question, *one.answer)]
        assert one.question
        assert one.answer
        assert not one.predicted
        assert re.fullmatch(r"[A-Z].*\?", caption.question)
        assert caption.answer
        assert not caption.predicted
        assert caption.question not in fields
        assert all(titles)
        assert not any("_" in text for text in (*titles, caption.question, caption.answer))


@pytest.mark.parametrize("name", NAMES)
def test_answers_of_the_network_are_marked_as_correct_or_wrong(name):
    method, batch = build_small(name)
    for one in method.illustrate(batch, *KEYS, solved=True):
        (caption,) = one.captions
        assert bool(caption.predicted) == has_predictions(method)
        if has_predictions(method):
            assert caption.mark or caption.predicted.startswith("≈")


@pytest.mark.parametrize("name", [name for name in NAMES if has_predictions(build_small(name)[0])])
def test_true_answers_get_check_marks_and_answers_for_another_image_get_crosses(name):
    """Reconstructions get neither."""
    method, batch = build_small(name)
    pretext = method.puzzle(batch, *KEYS)
    true = {key: getattr(pretext, key) for key in method.predict(pretext)}
    rolled = {key: answer.roll(1, 0) for key, answer in true.items()}
    right, wrong = show(name, true), show(name, rolled)
    assert any(one.captions[0].correct is not None for one in right) == (
        right[0].captions[0].predicted[0] != "≈"
    )
    for one, other in zip(right, wrong, strict=True):
        a, b = one.captions[0], other.captions[0]
        assert a.correct is not False
        assert all(a.parts_correct)
        if a.answer == a.predicted:
            assert b.correct == (b.answer == b.predicted)
        for caption, puzzle in ((a, one), (b, other)):
            marked = [panel.correct for panel in puzzle.predicted if panel.correct is not None]
            tiles = [
                t.correct for p in puzzle.predicted if isinstance(p.content, Board) for t in p.content.tiles
            ]
            assert set(marked) <= {caption.correct}
            assert {t for t in tiles if t is not None} <= set(caption.parts_correct)
    if a.correct is not None:
        assert not all(one.captions[0].correct for one in wrong)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_truncated_on_the_sheet_of_any_method(name, monkeypatch):
    written = []
    monkeypatch.setattr(
        sheet,
        "truncate",
        lambda text, face, room: written.append((text, draw.truncate(text, face, room))) or text,
    )
    method, batch = build_small(name)
    for solved in (False, True):
        puzzles = method.illustrate(batch, *KEYS, solved=solved)
        picture = sheet.puzzles(puzzles, rows=6, title=method.pretext_task)
        assert picture.width <= 8 * sheet.MAX_SIDE
        assert [text for text, kept in written if text != kept] == []
    assert len(written) >= 6


def test_puzzles_of_a_method_without_show_are_drawn_from_the_names_of_their_fields():
    @dataclasses.dataclass(frozen=True)
    class Pretext:
        left_half: Tensor
        is_day: Tensor

    puzzle = Pretext(torch.rand(2, 3, 8, 8), torch.tensor([True, False]))
    (one, _) = generic_puzzles(puzzle, {"is_day": torch.tensor([True, True])}, {})
    assert [panel.title for panel in one.question] == ["left half"]
    assert one.captions == [Caption("is day", "yes", "yes", (True,))]


# ---- geometry, compared with the pixels of the puzzle


def smooth_images(count: int = 4, size: int = 96) -> Batch:
    """Smooth noise, different in every image."""
    x = F.interpolate(Rng(1).uniform(count, 3, 7, 7), size=(size, size), mode="bicubic").clamp(0, 1)
    return Batch(torch.arange(count), (255 * x).round().to(torch.uint8))


def build_on(config, batch: Batch, encoder: str = "resnet_small:width=8") -> Method:
    source = from_array(batch.image)
    return config.build(encoders.build(encoder, 3, source.size), source)


def assert_shows(view: Tensor, image: Tensor, box: tuple[float, ...]):
    """Assert that a view shows the box of the image, perhaps flipped."""
    left, top, right, bottom = box
    center = torch.tensor([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
    part = augment.crop(augment.to_float(image[None]), center, view.shape[-1])[0]
    difference = min((view - x).abs().mean() for x in (part, part.flip(-1)))
    assert difference < 0.01


PLAIN = augment.ViewAugmentation(jitter=0.0, jitter_p=0.0, gray=0.0)


def test_frames_mark_the_crops_of_the_two_views():
    batch = smooth_images()
    for one, image in zip(
        build_on(simclr.Config(views=PLAIN), batch).illustrate(batch, 3), batch.image, strict=True
    ):
        source, first = one.question
        (second,) = one.answer
        for panel, mark in zip((first, second), source.marks, strict=True):
            assert_shows(panel.content, image, mark.box)


def test_thin_frames_mark_the_local_crops():
    batch = smooth_images()
    config = swav.Config(views=dataclasses.replace(PLAIN, crop=(0.3, 1.0)))
    for one, image in zip(build_on(config, batch).illustrate(batch, 4), batch.image, strict=True):
        boxes = {mark.role: [] for mark in one.question[0].marks}
        for mark in one.question[0].marks:
            boxes[mark.role].append(mark.box)
        crops = [tile.image for tile in one.answer[1].content.tiles]
        assert len(boxes["other"]) == len(crops) == config.local_crops
        for crop, box in zip(crops, reversed(boxes["other"]), strict=True):
            assert_shows(crop, image, box)
        assert_shows(one.answer[0].content, image, boxes["second"][0])


def test_the_frame_marks_the_crop_of_a_view_of_a_known_image():
    batch = smooth_images()
    method = build_on(neighbourhood_discovery.Config(jitter=0.0, gray=0.0), batch)
    for one, image in zip(method.illustrate(batch, 5), batch.image, strict=True):
        assert_shows(one.question[0].content, image, one.answer[0].marks[0].box)


def test_the_target_patch_is_framed_on_the_image_and_its_position_is_named():
    batch = smooth_images()
    method = build_on(context_prediction.Config(color="keep", downsample=0.0), batch)
    for one, image in zip(method.illustrate(batch, 6), batch.image, strict=True):
        *_, first, second = one.answer[0].marks
        left, top, right, bottom = second.box
        center = torch.tensor([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
        part = augment.crop(augment.to_float(image[None]), center, one.question[0].content.shape[-1])[0]
        part, patch = (x - x.mean((1, 2), keepdim=True) for x in (part, one.question[0].content))
        assert torch.cosine_similarity(part.flatten(), patch.flatten(), 0) > 0.95
        down, across = second.box[1] - first.box[1], second.box[0] - first.box[0]
        name = one.captions[0].answer
        assert ("upper" in name or "above" in name) == (down < -0.1)
        assert ("lower" in name or "below" in name) == (down > 0.1)
        assert ("left" in name, "right" in name) == (across < -0.1, across > 0.1)


def test_the_arrow_points_to_the_original_upper_side():
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, :, :20] = 255
    batch = Batch(torch.arange(1), image)
    config = rotnet.Config(crop=0.99, angles=(0, 45, 90, 180, 270))
    for one in build_on(config, batch).illustrate(batch, 0):
        light = one.question[0].content.mean(0)
        at = torch.linspace(-1, 1, len(light))
        x, y = (light.sum(0) @ at / light.sum(), light.sum(1) @ at / light.sum())
        (arrow,) = one.answer[0].marks
        angle = torch.tensor(float(arrow.angle)).deg2rad()
        assert -x * angle.sin() - y * angle.cos() > 0.9 * torch.hypot(x, y)


def test_solving_a_jigsaw_restores_the_image():
    batch = smooth_images()
    method = build_on(jigsaw.Config(tile=1.0, channel_shift=0, gray=0.0, flip=0.0), batch)
    for one, image in zip(method.illustrate(batch, 0), batch.image, strict=True):
        assert [tile.label for tile in one.answer[0].content.tiles] == list("123456789")
        rows = torch.stack([tile.image for tile in one.answer[0].content.tiles]).unflatten(0, (3, 3))
        restored = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        assert torch.equal(restored, augment.to_float(image))
        assert one.captions[0].answer.split() == [tile.label for tile in one.question[0].content.tiles]


# ---- rendered panels


def render(panel: Panel) -> np.ndarray:
    return np.asarray(draw.render_panel(panel, 192)).astype(int)


def test_a_mask_covers_only_its_patches():
    masked = torch.tensor([[False, True], [False, False]])
    found = render(Panel("", torch.zeros(3, 96, 96), [Mask(masked)]))
    inside = [found[y : y + 80, x : x + 80].mean() for y in (8, 104) for x in (8, 104)]
    assert [value > 100 for value in inside] == [False, True, False, False]


def test_near_depth_is_brighter_than_far_depth_and_unknown_depth_is_gray():
    meters = torch.full((1, 96, 96), 1.0)
    meters[:, :, 32:64], meters[:, :, 64:] = 5.0, 0.0
    found = render(Panel("", Depth(meters, (1.0, 5.0))))[20:100]
    near, far, unknown = (found[:, x : x + 20].mean((0, 1)) for x in (20, 90, 150))
    assert near.sum() > far.sum()
    assert np.abs(unknown - draw.EDGE).max() < 2


@pytest.mark.parametrize(
    ("vector", "color"),
    [((0, 0, -1), (128, 128, 255)), ((1, 0, 0), (255, 128, 128)), ((0, -1, 0), (128, 255, 128))],
)
def test_normals_have_the_usual_colors_on_the_map_and_on_the_legend_sphere(vector, color):
    """Toward the camera, right, and up, which is -y."""
    found = render(Panel("", Normals(torch.tensor(vector).float()[:, None, None].expand(-1, 96, 96))))
    assert np.abs(found[20, 20] - color).max() <= 1
    middle = 192 - 4 - 24
    on_sphere = found[round(middle + 22 * vector[1]), round(middle + 22 * vector[0])]
    assert np.abs(on_sphere - color).max() < 60


@pytest.mark.parametrize("correct", [True, False])
def test_answers_of_the_network_are_framed_in_green_or_red(correct):
    found = render(Panel("", torch.ones(3, 96, 96), [Arrow(0)], correct))
    color = draw.CORRECT if correct else draw.WRONG
    assert np.abs(found[1, :100] - color).max() <= 2
    assert np.abs(found[110, 96] - color).max() <= 2  # the arrow
