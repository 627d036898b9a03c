"""The shortcut audit: each clue is taken away and little else, planted cheats are named, defences make them vanish."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pretask
from pretask import methods
from pretask.cli.main import main
from pretask.data import loader
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.transforms.shortcuts import CLUES, Clue
from pretask.types import UserError
from pretask.workflows import audit as auditing
from pretask.workflows.audit import Answers, Audit, judged
from pretask.workflows.pretrain import Settings, pretrain

NAMED = {clue.name: clue for clue in CLUES}


def cleaned(name: str, x: Tensor) -> Tensor:
    clue = NAMED[name]
    assert clue.image is not None
    return clue.image(x, Rng(0, "clue"))


def grain(n: int, side: int, coarse: int = 1, channels: int = 1) -> Tensor:
    """Noise whose grains are `coarse` pixels wide, in the middle half of [0, 1]."""
    x = Rng(0, "grain").uniform(n, channels, side // coarse, side // coarse, low=0.25, high=0.75)
    return F.interpolate(x, size=(side, side), mode="bilinear")


def magnified(x: Tensor, factor: float) -> Tensor:
    at = torch.diag(torch.full((2,), 1 / factor))
    theta = torch.cat([at, torch.zeros(2, 1)], 1).expand(len(x), -1, -1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def fringed(n: int, side: int) -> Tensor:
    """Grey grain through a lens that magnifies green (Doersch et al. 2015, sec. 3.1), by far too much."""
    x = grain(n, side, 4)
    return torch.cat([x, magnified(x, 1.1), x], 1)


def lined(n: int, side: int) -> Tensor:
    """Sixteen straight white lines on black, each 14 pixels long: they reach into a next tile, but over no wide gap."""
    rng = Rng(0, "lines")
    at = torch.arange(side)
    found = torch.zeros(n, side, side)
    for _ in range(16):
        angle, across, down = rng.uniform(3, n, 1, 1) * torch.tensor([torch.pi, side, side]).view(3, 1, 1, 1)
        x, y = at - across, at[:, None] - down
        beside, along = (angle.cos() * x + angle.sin() * y).abs(), (angle.sin() * x - angle.cos() * y).abs()
        found = torch.maximum(found, (1.5 - beside).clamp(0, 1) * (along < 7))
    return found[:, None].expand(-1, 3, -1, -1)


def ramped(n: int, side: int) -> Tensor:
    """Colour noise, darker towards the top."""
    return 0.5 * grain(n, side, channels=3) + 0.5 * torch.linspace(0, 1, side)[:, None]


# ---- clues


def test_fringes_go_and_colours_stay():
    x = fringed(4, 64)
    assert (x[:, 0] - x[:, 1]).abs().mean() > 0.05
    out = cleaned("fringes", x)
    assert (out[:, 0] - out[:, 1]).abs().mean() < 0.02
    flat = torch.rand(4, 3, 1, 1).expand(-1, -1, 64, 64)
    assert torch.allclose(cleaned("fringes", flat), flat, atol=1e-5)
    assert torch.allclose(cleaned("fringes", grain(4, 64).expand(-1, 3, -1, -1)), grain(4, 64), atol=1e-5)


def test_saturation_goes_and_fringes_stay():
    flat = torch.rand(4, 3, 1, 1).expand(-1, -1, 64, 64)
    assert torch.allclose(cleaned("saturation", flat), images.luma(flat).expand_as(flat), atol=1e-5)
    x = fringed(4, 64)
    before, after = ((y[:, 0] - y[:, 1]).abs().mean() for y in (x, cleaned("saturation", x)))
    assert after > 0.7 * before


def test_a_ramp_and_dark_corners_are_levelled_and_an_even_image_is_not_changed():
    at = torch.linspace(-1, 1, 32)
    plain = 0.4 * torch.ones(1, 3, 32, 32)
    falling = plain + 0.2 * at[:, None] + 0.1 * at - 0.1 * (at**2 + at[:, None] ** 2)
    out = cleaned("shading", falling)
    assert out.std() < 1e-4 and abs(out.mean() - falling.mean()) < 1e-4
    noise = grain(8, 32, channels=3)
    assert (cleaned("shading", noise) - noise).abs().mean() < 0.02


def test_blocks_begin_anywhere_after_the_grid_is_taken_away():
    x = torch.zeros(400, 3, 32, 32)
    x[..., ::8, :] = x[..., ::8] = 0.5
    out = cleaned("JPEG grid", x)
    down = (out[:, 0, :, 1:].amin(-1) > 0).float().argmax(1) % 8  # of the first full line
    assert (down.bincount(minlength=8) > 25).all()
    one = x[:1].clone()
    one[0, 0, 13, 17] = 1.0  # what an image shows is moved as a whole
    moved = cleaned("JPEG grid", one)[0, 0]
    assert (moved == 1).sum() == 1


def test_the_finest_detail_goes_and_the_coarse_stays():
    fine = (torch.arange(64) % 2).float().expand(2, 3, 64, -1)
    assert cleaned("fine traces", fine)[..., 4:-4].std() < 0.1 < fine.std()
    coarse = grain(2, 64, 16, 3)
    assert (cleaned("fine traces", coarse) - coarse).abs().max() < 0.05


def test_a_frame_goes_and_the_inside_stays():
    x = torch.zeros(2, 3, 64, 64)
    x[..., 4:-4, 4:-4] = grain(2, 56, channels=3)
    out = cleaned("rim", x)
    assert out.min() >= 0.2
    assert torch.equal(out[..., 4:-4, 4:-4], x[..., 4:-4, 4:-4])


def test_tiles_fade_into_their_own_mean_at_the_edge_and_nowhere_else():
    clue = NAMED["edges"]
    assert clue.tiles is not None
    x = grain(2 * 9, 16, channels=3).view(2, 9, 3, 16, 16)
    out, mean = clue.tiles(x), x.mean((-2, -1), keepdim=True)
    rim = torch.ones(16, 16, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert torch.allclose(out[..., rim], mean[..., 0].expand_as(out[..., rim]))
    assert torch.equal(out[..., 2:-2, 2:-2], x[..., 2:-2, 2:-2])


@pytest.mark.parametrize("name", [clue.name for clue in CLUES if clue.image])
def test_what_is_left_is_an_image(name):
    x = torch.rand(3, 3, 20, 20)
    out = cleaned(name, x)
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1


# ---- the arithmetic


def test_a_clue_explains_what_is_lost_of_what_is_above_chance():
    def right(share: float) -> Answers:
        return Answers("turn", (torch.arange(1000) < 1000 * share).float(), 4)

    gone = [
        (NAMED[name], right(share)) for name, share in (("shading", 0.5), ("rim", 0.8), ("fringes", 0.25))
    ]
    audit = judged("rotnet", "made up", right(0.8), gone, 0)
    assert (audit.accuracy, audit.chance) == (pytest.approx(80), 25)
    assert [f.clue for f in audit.findings] == ["fringes", "shading", "rim"]
    assert [f.explains for f in audit.findings] == pytest.approx([100, 100 * 30 / 55, 0], abs=1e-4)
    assert [f.sure for f in audit.findings] == [True, True, False]
    for f in audit.findings:
        assert f.low is not None and f.high is not None and f.explains is not None
        assert f.low <= f.explains <= f.high < f.low + 12
    assert "fringes, explains up to 100 %" in audit.verdict


def test_of_nothing_solved_nothing_is_explained():
    guessed = Answers("turn", (torch.arange(1000) % 4 == 0).float(), 4)
    audit = judged("rotnet", "made up", guessed, [(NAMED["shading"], guessed)], 0)
    assert audit.findings[0].explains is None and "nothing is solved" in audit.verdict


def test_without_a_clue_that_is_not_there_every_answer_is_the_same(folder):
    """So the puzzles are the same, and only the clue differs."""
    run = pretask.pretrain("rotnet", folder / "x.npz", folder / "same", steps=4, size=24, quiet=True)
    nothing = Clue("nothing", "nothing", image=lambda x, rng: x + 0 * rng.uniform(*x.shape))
    some = loader.sample(run.source, 80)
    with torch.no_grad():
        puzzle, again = (auditing.puzzle(run.method, some, c, Rng(0, "audit")) for c in (None, nothing))
        whole, without = (auditing.answered(run.method, some, c, 0) for c in (None, nothing))
    assert torch.equal(puzzle.image, again.image)
    assert whole is not None and without is not None and torch.equal(whole.right, without.right)


# ---- planted cheats


def audited(folder: Path, method: str, x: Tensor, steps: int, **knobs: object) -> Audit:
    """The audit of a small solver that learned from the images x."""
    folder.mkdir()
    np.savez(folder / "x.npz", images=(255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    config = dataclasses.replace(methods.recipe(method)(), **knobs)
    settings = Settings(str(folder / "x.npz"), folder / "run", encoder="resnet_small:width=16", steps=steps)
    run = pretrain(method, settings, config, dataclasses.replace(config.train, batch=64))
    return auditing.audit(run, 300, progress=False)


def named(audit: Audit, clue: str) -> bool:
    """It explains nearly all, and nothing else explains half as much."""
    first, second = audit.findings[:2]
    assert first.low is not None and second.explains is not None, audit.verdict
    return first.clue == clue and first.low > 70 and second.explains < first.low / 2


def vanished(audit: Audit, clue: str, before: float) -> bool:
    """Not a tenth of what was solved with it is owed to it."""
    found = next(f for f in audit.findings if f.clue == clue)
    return audit.accuracy - found.accuracy < 0.1 * (before - audit.chance)


def test_fringes_are_named_and_dropping_colours_makes_them_vanish(tmp_path):
    """Doersch et al. 2015, sec. 3.1: a lens tells a patch where in the image it lies."""
    x, knobs = fringed(500, 64), {"coarse": 0.0, "pairs": 40}
    cheat = audited(tmp_path / "a", "context_prediction", x, 100, colour="keep", **knobs)
    assert named(cheat, "fringes") and cheat.accuracy > 60
    defended = audited(tmp_path / "b", "context_prediction", x, 100, colour="drop", **knobs)
    assert vanished(defended, "fringes", cheat.accuracy)


def test_lines_through_tiles_without_gaps_are_named_and_gaps_make_them_vanish(tmp_path):
    """Doersch et al. 2015, sec. 3.1: lines and textures that run on."""
    x = lined(3000, 64)
    knobs = {"coarse": 0.0, "colour": "drop", "pairs": 40, "flat": True, "hidden": 256}
    cheat = audited(tmp_path / "a", "context_prediction", x, 300, gap=0.0, jitter=0.0, **knobs)
    assert named(cheat, "edges") and cheat.accuracy > 30
    defended = audited(tmp_path / "b", "context_prediction", x, 300, **knobs)
    assert vanished(defended, "edges", cheat.accuracy)


def test_a_ramp_is_named_and_normalised_tiles_make_it_vanish(tmp_path):
    """Noroozi & Favaro 2016, sec. 3.2: neighbouring tiles have like brightness."""
    x, knobs = ramped(500, 48), {"orders": 10, "fringe": 0, "grey": 0.0}
    cheat = audited(tmp_path / "a", "jigsaw", x, 100, normalise=False, **knobs)
    assert named(cheat, "shading") and cheat.accuracy > 60
    defended = audited(tmp_path / "b", "jigsaw", x, 100, **knobs)
    assert vanished(defended, "shading", cheat.accuracy)


def test_a_ramp_is_named_in_a_puzzle_without_tiles(tmp_path):
    assert named(audited(tmp_path / "a", "rotnet", ramped(300, 24), 40), "shading")


# ---- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audit")
    pixels = (255 * ramped(80, 48)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(path / "x.npz", images=pixels)
    np.savez(path / "grey.npz", images=pixels[..., 0])
    return path


def test_json_stands_alone_on_standard_output(folder, capsys):
    words = ["audit", "jigsaw", "--data", str(folder / "x.npz"), "--steps", "2", "--orders", "10", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["method"], found["answer"], found["n"]) == (1, "jigsaw", "entry", 80)
    assert {f["clue"] for f in found["findings"]} == set(NAMED)


def test_the_audit_of_a_run_is_kept_and_shown_in_its_report(folder, capsys):
    run = str(folder / "kept")
    data = str(folder / "x.npz")
    assert main(["audit", "rotnet", "--data", data, "--steps", "20", "--size", "24", "--out", run]) == 0
    capsys.readouterr()
    assert main(["audit", run, "--images", "40"]) == 0
    out = capsys.readouterr().out
    assert "shading" in out and "tile to tile" not in out and "40 images" in out  # rotnet has no tiles
    kept = auditing.read(Path(run))
    assert kept is not None and kept.n == 40 and kept.verdict in " ".join(out.split())
    page = (Path(run) / "report.html").read_text()
    assert "Is the puzzle solved by cheating?" in page and "without shading" in page


def test_grey_images_have_no_clues_of_colour(folder):
    run = pretask.pretrain("rotnet", folder / "grey.npz", folder / "grey", steps=2, size=24, quiet=True)
    names = {f.clue for f in pretask.audit(run, 20).findings}
    assert names == {"shading", "JPEG grid", "fine traces", "rim"}


def test_images_without_a_seed_are_left_out(folder):
    config = {"seeds": 20}
    run = pretask.pretrain(
        "exemplar_cnn", folder / "x.npz", folder / "exemplars", steps=2, batch=64, config=config, quiet=True
    )
    audit = pretask.audit(run)
    assert audit.n == 20 and audit.chance == pytest.approx(5)
    few = dataclasses.replace(loader.sample(run.source, 80), index=(run.method.label < 0).nonzero()[:, 0])
    with pytest.raises(UserError, match="none of the 60 images"), torch.no_grad():
        auditing.answered(run.method, few.rows(slice(0, 60)), None, 0)


def test_chance_counts_the_answers_that_were_not_seen_too(folder):
    """Of 100 orders, 80 images show some sixty."""
    run = pretask.pretrain("jigsaw", folder / "x.npz", folder / "orders", steps=1, quiet=True)
    assert 1 <= pretask.audit(run).chance < 1.1


@pytest.mark.parametrize("words", [["simclr"], ["sdae", "--size", "16"]])
def test_a_method_without_right_and_wrong_is_one_line(folder, words, capsys):
    assert main(["audit", words[0], "--data", str(folder / "x.npz"), "--steps", "2", *words[1:]]) == 2
    assert (
        f"{words[0]} has no answer that is right or wrong, so there is nothing to audit"
        in capsys.readouterr().err
    )


def test_a_folder_that_is_no_run_is_one_line(folder, capsys):
    assert main(["audit", str(folder)]) == 2
    assert "is not a run" in capsys.readouterr().err
