"""Contact sheets: generic puzzles from the shapes of their fields, and the layout of a sheet."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretask.rng import Rng
from pretask.viz import sheet
from pretask.viz.puzzle import generic_puzzles, join_tiles


def noise(*shape: int) -> Tensor:
    return Rng(0, "noise").uniform(*shape)


@dataclass(frozen=True)
class Puzzle:
    image: Tensor
    turn: Tensor


def cells(pretext, answers, rows):
    return sheet.cells(generic_puzzles(pretext, answers, {}), rows)


def test_a_cell_shows_one_sample_and_whether_its_answer_is_correct():
    image = torch.stack([torch.full((3, 8, 8), v / 10) for v in range(6)])
    found = cells(Puzzle(image, torch.arange(6)), {"turn": torch.tensor([0, 1, 0, 3, 4, 0])}, rows=4)
    assert [np.asarray(cell.pictures[0][1])[9, 9, 0] for cell in found] == [0, 26, 51, 76]
    assert [(line.answer, line.predicted) for (line,) in (cell.captions for cell in found)] == [
        ("0", "0"), ("1", "1"), ("2", "0"), ("3", "3"),
    ]  # fmt: skip
    assert [line.correct for (line,) in (cell.captions for cell in found)] == [True, True, False, True]
    assert sheet.tally(found) == "3 of 4 answered correctly"


def test_every_supported_kind_of_field_is_shown_and_others_are_omitted():
    @dataclass(frozen=True)
    class Everything:
        color: Tensor
        gray: Tensor
        tiles: Tensor
        views: tuple[Tensor, ...]
        mask: Tensor
        hidden: Tensor
        order: Tensor
        level: Tensor
        flag: Tensor
        words: Tensor
        weights: Tensor
        name: str

    b = 3
    puzzle = Everything(
        color=noise(b, 3, 16, 16),
        gray=noise(b, 1, 28, 28),
        tiles=noise(b, 9, 3, 10, 10),
        views=(noise(b, 3, 16, 16), noise(b, 3, 8, 8)),
        mask=noise(b, 4, 4) > 0.5,
        hidden=noise(b, 196) > 0.5,
        order=torch.arange(9).repeat(b, 1),
        level=noise(b),
        flag=noise(b) > 0.5,
        words=noise(b, 500),
        weights=noise(50),
        name="not a tensor",
    )
    cell = cells(puzzle, {}, rows=2)[0]
    assert [name for name, _ in cell.pictures] == [
        "color", "gray", "tiles", "views 1", "views 2", "mask", "hidden",
    ]  # fmt: skip
    assert [line.question for line in cell.captions] == ["order", "level", "flag"]
    assert cell.captions[0].answer == "0 1 2 3 4 5 6 7 8"
    pixels = np.asarray(dict(cell.pictures)["hidden"].resize((14, 14), Image.Resampling.BOX))[1:-1, 1:-1, 0]
    assert np.array_equal(pixels > 127, puzzle.hidden[0].view(14, 14)[1:-1, 1:-1].numpy())
    assert sheet.puzzles(generic_puzzles(puzzle, {}, {}), rows=3, title="everything").width > 400


def test_joined_tiles_restore_the_image():
    image = noise(2, 3, 12, 12)
    tiles = image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 3, 4, 4)
    joined = join_tiles(tiles)
    rows = [r + r // 4 for r in range(12)]  # one pixel of seam after every four
    assert torch.equal(joined[:, :, rows][..., rows], image)


def test_selected_pictures_are_marked_as_correct_or_wrong_and_reconstructions_are_not():
    image = noise(4, 3, 8, 8)
    selected = cells(Puzzle(image, noise(4)), {"image": image[[0, 1, 3, 3]]}, 4)
    assert [cell.captions[0].correct for cell in selected] == [True, True, False, True]
    reconstructed = cells(Puzzle(image, noise(4)), {"image": image * 0.9}, 4)
    assert [line.question for line in reconstructed[0].captions] == ["turn"]
    assert [name for name, _ in reconstructed[0].pictures] == ["image", "image, network"]


def test_several_numbers_of_an_answer_are_marked_one_by_one():
    true, predicted = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 2, 0], [4, 5, 6]])
    found = cells(Puzzle(noise(2, 3, 8, 8), true), {"turn": predicted}, 2)
    assert [(line.correct, line.mark) for (line,) in (c.captions for c in found)] == [
        (False, "✗ (2 of 3)"),
        (True, "✓ (3 of 3)"),
    ]
    assert sheet.tally(found) == "5 of 6 answered correctly"


def test_floats_are_not_marked_as_correct_or_wrong():
    (cell,) = cells(Puzzle(noise(1, 1, 8, 8), torch.tensor([0.5])), {"turn": torch.tensor([0.4999])}, 1)
    assert cell.captions[0].correct is None
    assert sheet.tally([cell]) == ""


@pytest.mark.parametrize("size", [8, 28, 32, 96, 224])
def test_small_pictures_are_enlarged_by_a_whole_factor(size):
    picture = sheet.pictures(noise(1, 3, size, size))[0]
    drawn = sheet.enlarge(picture)
    assert 96 <= drawn.width <= sheet.MAX_SIDE
    if size < 96:
        factor = drawn.width // size
        assert np.array_equal(np.asarray(drawn)[::factor, ::factor], np.asarray(picture))


def test_correct_answers_are_green_and_wrong_answers_are_red():
    puzzle = Puzzle(torch.ones(2, 3, 16, 16), torch.tensor([1, 2]))

    def colors(answer: list[int]) -> set[tuple[int, int, int]]:
        drawn = sheet.puzzles(generic_puzzles(puzzle, {"turn": torch.tensor(answer)}, {}), title="t")
        return {color for _, color in drawn.getcolors(1 << 20) or []}  # pyright: ignore

    assert sheet.CORRECT in colors([1, 2]) - colors([2, 1])
    assert sheet.WRONG in colors([2, 1]) - colors([1, 2])


def test_values_outside_the_unit_range_and_nan_are_still_drawn():
    wild = torch.stack([torch.linspace(-3, 3, 64).view(1, 8, 8), torch.full((1, 8, 8), math.nan)])
    a, _ = sheet.pictures(wild)
    assert np.asarray(a).min() == 0
    assert np.asarray(a).max() == 255
    puzzle = Puzzle(torch.full((1, 3, 8, 8), math.inf), torch.tensor([0]))
    assert sheet.puzzles(generic_puzzles(puzzle, {}, {}), title="").width > 0


def test_a_contact_sheet_has_the_requested_columns_and_truncates_long_captions():
    drawn = sheet.images(noise(10, 3, 32, 32), ["a caption far longer than its picture"] * 10, columns=5)
    assert drawn.width == 2 * sheet.MARGIN + 5 * 128 + 4 * 2 * sheet.GAP
