"""Contact sheets: any method's puzzles by the shapes of their fields, and how they are set on a sheet."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretask.rng import Rng
from pretask.viz import sheet
from pretask.viz.puzzle import generic, joined


def noise(*shape: int) -> Tensor:
    return Rng(0, "noise").uniform(*shape)


@dataclass(frozen=True)
class Puzzle:
    image: Tensor
    turn: Tensor


def cells(pretext, answers, rows):
    return sheet.cells(generic(pretext, answers, {}), rows)


def test_a_cell_holds_the_sample_of_its_own_row_and_the_verdict_on_its_own_answer():
    image = torch.stack([torch.full((3, 8, 8), v / 10) for v in range(6)])
    found = cells(Puzzle(image, torch.arange(6)), {"turn": torch.tensor([0, 1, 0, 3, 4, 0])}, rows=4)
    assert [np.asarray(cell.pictures[0][1])[9, 9, 0] for cell in found] == [0, 26, 51, 76]
    assert [(line.answer, line.predicted) for (line,) in (cell.captions for cell in found)] == [
        ("0", "0"), ("1", "1"), ("2", "0"), ("3", "3"),
    ]  # fmt: skip
    assert [line.correct for (line,) in (cell.captions for cell in found)] == [True, True, False, True]
    assert sheet.tally(found) == "3 of 4 answered correctly"


def test_every_kind_of_field_is_drawn_and_everything_else_is_left_out():
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
    assert sheet.puzzles(generic(puzzle, {}, {}), rows=3, title="everything").width > 400


def test_joined_tiles_stand_where_they_belong():
    image = noise(2, 3, 12, 12)
    tiles = image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 3, 4, 4)
    seen = joined(tiles)
    rows = [r + r // 4 for r in range(12)]  # one pixel of seam after every four
    assert torch.equal(seen[:, :, rows][..., rows], image)


def test_a_picture_chosen_among_those_of_the_puzzle_is_judged_and_a_painted_one_is_not():
    asked = noise(4, 3, 8, 8)
    chosen = cells(Puzzle(asked, noise(4)), {"image": asked[[0, 1, 3, 3]]}, 4)
    assert [cell.captions[0].correct for cell in chosen] == [True, True, False, True]
    painted = cells(Puzzle(asked, noise(4)), {"image": asked * 0.9}, 4)
    assert [line.question for line in painted[0].captions] == ["turn"]
    assert [name for name, _ in painted[0].pictures] == ["image", "image, network"]


def test_several_numbers_of_a_puzzle_are_judged_one_by_one():
    asked, answered = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 2, 0], [4, 5, 6]])
    found = cells(Puzzle(noise(2, 3, 8, 8), asked), {"turn": answered}, 2)
    assert [(line.correct, line.mark) for (line,) in (c.captions for c in found)] == [
        (False, "✗ (2 of 3)"),
        (True, "✓ (3 of 3)"),
    ]
    assert sheet.tally(found) == "5 of 6 answered correctly"


def test_answers_that_are_not_exact_are_not_judged():
    (cell,) = cells(Puzzle(noise(1, 1, 8, 8), torch.tensor([0.5])), {"turn": torch.tensor([0.4999])}, 1)
    assert cell.captions[0].correct is None
    assert sheet.tally([cell]) == ""


@pytest.mark.parametrize("size", [8, 28, 32, 96, 224])
def test_pictures_are_drawn_large_enough_and_small_ones_keep_their_pixels(size):
    picture = sheet.pictures(noise(1, 3, size, size))[0]
    drawn = sheet.enlarged(picture)
    assert 96 <= drawn.width <= sheet.LARGEST
    if size < 96:
        times = drawn.width // size
        assert np.array_equal(np.asarray(drawn)[::times, ::times], np.asarray(picture))


def test_a_sheet_shows_right_in_green_and_wrong_in_red():
    puzzle = Puzzle(torch.ones(2, 3, 16, 16), torch.tensor([1, 2]))

    def colors(answer: list[int]) -> set[tuple[int, int, int]]:
        drawn = sheet.puzzles(generic(puzzle, {"turn": torch.tensor(answer)}, {}), title="t")
        return {color for _, color in drawn.getcolors(1 << 20) or []}  # pyright: ignore

    assert sheet.RIGHT in colors([1, 2]) - colors([2, 1])
    assert sheet.WRONG in colors([2, 1]) - colors([1, 2])


def test_values_outside_the_unit_range_and_no_numbers_at_all_are_still_drawn():
    wild = torch.stack([torch.linspace(-3, 3, 64).view(1, 8, 8), torch.full((1, 8, 8), math.nan)])
    a, _ = sheet.pictures(wild)
    assert np.asarray(a).min() == 0
    assert np.asarray(a).max() == 255
    puzzle = Puzzle(torch.full((1, 3, 8, 8), math.inf), torch.tensor([0]))
    assert sheet.puzzles(generic(puzzle, {}, {}), title="").width > 0


def test_a_contact_sheet_has_its_columns_and_cuts_long_captions():
    drawn = sheet.images(noise(10, 3, 32, 32), ["a caption far longer than its picture"] * 10, columns=5)
    assert drawn.width == 2 * sheet.MARGIN + 5 * 128 + 4 * 2 * sheet.GAP
