"""The shortcut audit: each function removes its shortcut and little else; planted shortcuts are found and defenses work."""

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
from pretask.config import RunConfig
from pretask.data import loader
from pretask.rng import Rng
from pretask.transforms.color import luma
from pretask.transforms.shortcuts import SHORTCUTS, Shortcut
from pretask.types import UserError
from pretask.workflows import audit as auditing
from pretask.workflows.audit import Answers, Audit, summarize
from pretask.workflows.job import fresh
from pretask.workflows.pretrain import pretrain

NAMED = {shortcut.name: shortcut for shortcut in SHORTCUTS}


def cleaned(name: str, x: Tensor) -> Tensor:
    shortcut = NAMED[name]
    assert shortcut.image is not None
    return shortcut.image(x, Rng(0, "clue"))


def grain(n: int, side: int, coarse: int = 1, channels: int = 1) -> Tensor:
    """Noise with grains of `coarse` pixels, in [0.25, 0.75]."""
    x = Rng(0, "grain").uniform(n, channels, side // coarse, side // coarse, low=0.25, high=0.75)
    return F.interpolate(x, size=(side, side), mode="bilinear")


def magnified(x: Tensor, factor: float) -> Tensor:
    at = torch.diag(torch.full((2,), 1 / factor))
    theta = torch.cat([at, torch.zeros(2, 1)], 1).expand(len(x), -1, -1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def fringed(n: int, side: int) -> Tensor:
    """Gray noise through a lens that strongly magnifies green (Doersch et al. 2015, sec. 3.1)."""
    x = grain(n, side, 4)
    return torch.cat([x, magnified(x, 1.1), x], 1)


def lined(n: int, side: int) -> Tensor:
    """Sixteen white lines of 14 pixels on black: long enough to reach a neighboring tile, but not across a wide gap."""
    rng = Rng(0, "lines")
    at = torch.arange(side)
    found = torch.zeros(n, side, side)
    for _ in range(16):
        angle, across, down = rng.uniform(3, n, 1, 1) * torch.tensor([torch.pi, side, side]).view(3, 1, 1, 1)
        x, y = at - across, at[:, None] - down
        across_line, along_line = (
            (angle.cos() * x + angle.sin() * y).abs(),
            (angle.sin() * x - angle.cos() * y).abs(),
        )
        found = torch.maximum(found, (1.5 - across_line).clamp(0, 1) * (along_line < 7))
    return found[:, None].expand(-1, 3, -1, -1)


def ramped(n: int, side: int) -> Tensor:
    """Color noise, darker toward the top."""
    return 0.5 * grain(n, side, channels=3) + 0.5 * torch.linspace(0, 1, side)[:, None]


# ---- removal of shortcuts


def test_remove_fringes_keeps_colors():
    x = fringed(4, 64)
    assert (x[:, 0] - x[:, 1]).abs().mean() > 0.05
    out = cleaned("fringes", x)
    assert (out[:, 0] - out[:, 1]).abs().mean() < 0.02
    flat = torch.rand(4, 3, 1, 1).expand(-1, -1, 64, 64)
    assert torch.allclose(cleaned("fringes", flat), flat, atol=1e-5)
    assert torch.allclose(cleaned("fringes", grain(4, 64).expand(-1, 3, -1, -1)), grain(4, 64), atol=1e-5)


def test_remove_saturation_keeps_fringes():
    flat = torch.rand(4, 3, 1, 1).expand(-1, -1, 64, 64)
    assert torch.allclose(cleaned("saturation", flat), luma(flat).expand_as(flat), atol=1e-5)
    x = fringed(4, 64)
    before, after = ((y[:, 0] - y[:, 1]).abs().mean() for y in (x, cleaned("saturation", x)))
    assert after > 0.7 * before


def test_remove_shading_removes_ramps_and_dark_corners_only():
    at = torch.linspace(-1, 1, 32)
    plain = 0.4 * torch.ones(1, 3, 32, 32)
    falling = plain + 0.2 * at[:, None] + 0.1 * at - 0.1 * (at**2 + at[:, None] ** 2)
    out = cleaned("shading", falling)
    assert out.std() < 1e-4 and abs(out.mean() - falling.mean()) < 1e-4
    noise = grain(8, 32, channels=3)
    assert (cleaned("shading", noise) - noise).abs().mean() < 0.02


def test_remove_grid_shifts_blocks_to_random_positions():
    x = torch.zeros(400, 3, 32, 32)
    x[..., ::8, :] = x[..., ::8] = 0.5
    out = cleaned("JPEG grid", x)
    down = (out[:, 0, :, 1:].amin(-1) > 0).float().argmax(1) % 8  # of the first full line
    assert (down.bincount(minlength=8) > 25).all()
    one = x[:1].clone()
    one[0, 0, 13, 17] = 1.0  # the image is shifted as a whole
    moved = cleaned("JPEG grid", one)[0, 0]
    assert (moved == 1).sum() == 1


def test_remove_traces_removes_only_the_finest_detail():
    fine = (torch.arange(64) % 2).float().expand(2, 3, 64, -1)
    assert cleaned("fine traces", fine)[..., 4:-4].std() < 0.1 < fine.std()
    coarse = grain(2, 64, 16, 3)
    assert (cleaned("fine traces", coarse) - coarse).abs().max() < 0.05


def test_remove_rim_removes_a_frame_and_keeps_the_inside():
    x = torch.zeros(2, 3, 64, 64)
    x[..., 4:-4, 4:-4] = grain(2, 56, channels=3)
    out = cleaned("rim", x)
    assert out.min() >= 0.2
    assert torch.equal(out[..., 4:-4, 4:-4], x[..., 4:-4, 4:-4])


def test_remove_edges_fades_tiles_into_their_mean_only_at_the_border():
    shortcut = NAMED["edges"]
    assert shortcut.tiles is not None
    x = grain(2 * 9, 16, channels=3).view(2, 9, 3, 16, 16)
    out, mean = shortcut.tiles(x), x.mean((-2, -1), keepdim=True)
    rim = torch.ones(16, 16, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert torch.allclose(out[..., rim], mean[..., 0].expand_as(out[..., rim]))
    assert torch.equal(out[..., 2:-2, 2:-2], x[..., 2:-2, 2:-2])


@pytest.mark.parametrize("name", [shortcut.name for shortcut in SHORTCUTS if shortcut.image])
def test_results_are_images_of_the_same_shape_and_range(name):
    x = torch.rand(3, 3, 20, 20)
    out = cleaned(name, x)
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1


# ---- the arithmetic


def test_explained_share_is_the_lost_part_of_the_accuracy_above_chance():
    def right(share: float) -> Answers:
        return Answers("rotation", (torch.arange(1000) < 1000 * share).float(), 4)

    gone = [
        (NAMED[name], right(share)) for name, share in (("shading", 0.5), ("rim", 0.8), ("fringes", 0.25))
    ]
    audit = summarize("rotnet", "made up", right(0.8), gone, 0)
    assert (audit.accuracy, audit.chance) == (pytest.approx(80), 25)
    assert [f.shortcut for f in audit.findings] == ["fringes", "shading", "rim"]
    assert [f.explained_share for f in audit.findings] == pytest.approx([100, 100 * 30 / 55, 0], abs=1e-4)
    assert [f.significant for f in audit.findings] == [True, True, False]
    for f in audit.findings:
        assert f.low is not None and f.high is not None and f.explained_share is not None
        assert f.low <= f.explained_share <= f.high < f.low + 12
    assert "fringes, explains up to 100 %" in audit.verdict


def test_at_chance_nothing_is_explained():
    guessed = Answers("rotation", (torch.arange(1000) % 4 == 0).float(), 4)
    audit = summarize("rotnet", "made up", guessed, [(NAMED["shading"], guessed)], 0)
    assert audit.findings[0].explained_share is None and "not above chance" in audit.verdict


def test_removing_nothing_changes_no_prediction(folder):
    """The puzzles are the same except for the removed shortcut."""
    run = pretask.pretrain("rotnet", folder / "x.npz", folder / "same", steps=4, size=24, quiet=True)
    nothing = Shortcut("nothing", "nothing", image=lambda x, rng: x + 0 * rng.uniform(*x.shape))
    some = loader.sample(run.source, 80)
    with torch.no_grad():
        puzzle, again = (auditing.puzzle(run.method, some, c, Rng(0, "audit")) for c in (None, nothing))
        whole, without = (auditing.predict_answers(run.method, some, c, 0) for c in (None, nothing))
    assert torch.equal(puzzle.image, again.image)
    assert whole is not None and without is not None and torch.equal(whole.accuracy, without.accuracy)


# ---- planted shortcuts


def audited(folder: Path, method: str, x: Tensor, steps: int, **options: object) -> Audit:
    """The audit of a small network trained on the images x."""
    folder.mkdir()
    np.savez(folder / "x.npz", images=(255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    config = dataclasses.replace(methods.recipe(method)(), **options)
    settings = RunConfig(str(folder / "x.npz"), folder / "run", encoder="resnet_small:width=16", steps=steps)
    run = pretrain(fresh(method, settings, config, dataclasses.replace(config.train, batch=64)))
    return auditing.audit(run, 300, progress=False)


def is_found(audit: Audit, shortcut: str) -> bool:
    """Whether it explains nearly everything, and no other shortcut half as much."""
    first, second = audit.findings[:2]
    assert first.low is not None and second.explained_share is not None, audit.verdict
    return first.shortcut == shortcut and first.low > 70 and second.explained_share < first.low / 2


def is_gone(audit: Audit, shortcut: str, before: float) -> bool:
    """Whether it explains less than a tenth of the accuracy above chance before the defense."""
    found = next(f for f in audit.findings if f.shortcut == shortcut)
    return audit.accuracy - found.accuracy < 0.1 * (before - audit.chance)


def test_planted_fringes_are_found_and_color_dropping_prevents_them(tmp_path):
    """Doersch et al. 2015, sec. 3.1: chromatic aberration gives a patch's position."""
    x, options = fringed(500, 64), {"downsample": 0.0, "num_pairs": 40}
    cheat = audited(tmp_path / "a", "context_prediction", x, 50, color="keep", **options)
    assert is_found(cheat, "fringes") and cheat.accuracy > 60
    defended = audited(tmp_path / "b", "context_prediction", x, 50, color="drop", **options)
    assert is_gone(defended, "fringes", cheat.accuracy)


def test_lines_through_tiles_are_found_and_gaps_prevent_them(tmp_path):
    """Doersch et al. 2015, sec. 3.1: lines and textures that continue."""
    x = lined(3000, 64)
    options = {"downsample": 0.0, "color": "drop", "num_pairs": 40, "flatten": True, "hidden": 256}
    cheat = audited(tmp_path / "a", "context_prediction", x, 150, gap=0.0, jitter=0.0, **options)
    assert is_found(cheat, "edges") and cheat.accuracy > 30
    defended = audited(tmp_path / "b", "context_prediction", x, 150, **options)
    assert is_gone(defended, "edges", cheat.accuracy)


def test_a_ramp_is_found_and_normalized_tiles_prevent_it(tmp_path):
    """Noroozi & Favaro 2016, sec. 3.2: neighboring tiles have similar brightness."""
    x, options = ramped(500, 48), {"num_permutations": 10, "channel_shift": 0, "gray": 0.0}
    cheat = audited(tmp_path / "a", "jigsaw", x, 60, normalize=False, **options)
    assert is_found(cheat, "shading") and cheat.accuracy > 60
    defended = audited(tmp_path / "b", "jigsaw", x, 60, **options)
    assert is_gone(defended, "shading", cheat.accuracy)


def test_a_ramp_is_found_in_a_puzzle_without_tiles(tmp_path):
    assert is_found(audited(tmp_path / "a", "rotnet", ramped(300, 24), 40), "shading")


# ---- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audit")
    pixels = (255 * ramped(80, 48)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(path / "x.npz", images=pixels)
    np.savez(path / "gray.npz", images=pixels[..., 0])
    return path


def test_json_is_the_only_standard_output(folder, capsys):
    words = [
        "audit",
        "jigsaw",
        "--data",
        str(folder / "x.npz"),
        "--steps",
        "2",
        "--num-permutations",
        "10",
        "--json",
    ]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["method"], found["answer"], found["n"]) == (2, "jigsaw", "label", 80)
    assert {f["shortcut"] for f in found["findings"]} == set(NAMED)


def test_the_audit_of_a_run_is_saved_and_shown_in_its_report(folder, capsys):
    run = str(folder / "kept")
    data = str(folder / "x.npz")
    assert main(["audit", "rotnet", "--data", data, "--steps", "20", "--size", "24", "--out", run]) == 0
    capsys.readouterr()
    assert main(["audit", run, "--count", "40"]) == 0
    out = capsys.readouterr().out
    assert "shading" in out and "tile to tile" not in out and "40 images" in out  # rotnet has no tiles
    kept = auditing.read(Path(run))
    assert kept is not None and kept.n == 40 and kept.verdict in " ".join(out.split())
    page = (Path(run) / "report.html").read_text()
    assert "Shortcut learning" in page and "without shading" in page


def test_grayscale_images_have_no_color_shortcuts(folder):
    run = pretask.pretrain("rotnet", folder / "gray.npz", folder / "gray", steps=2, size=24, quiet=True)
    names = {f.shortcut for f in pretask.audit(run, 20).findings}
    assert names == {"shading", "JPEG grid", "fine traces", "rim"}


def test_images_without_a_label_are_left_out(folder):
    config = {"num_classes": 20}
    run = pretask.pretrain(
        "exemplar_cnn", folder / "x.npz", folder / "exemplars", steps=2, batch=64, config=config, quiet=True
    )
    audit = pretask.audit(run)
    assert audit.n == 20 and audit.chance == pytest.approx(5)
    few = dataclasses.replace(loader.sample(run.source, 80), index=(run.method.label < 0).nonzero()[:, 0])
    with pytest.raises(UserError, match="none of the 60 images"), torch.no_grad():
        auditing.predict_answers(run.method, few.rows(slice(0, 60)), None, 0)


def test_chance_counts_classes_that_do_not_occur_in_the_sample(folder):
    """Of 100 permutations, 80 images have about 60."""
    run = pretask.pretrain("jigsaw", folder / "x.npz", folder / "orders", steps=1, quiet=True)
    assert 1 <= pretask.audit(run).chance < 1.1


@pytest.mark.parametrize("words", [["simclr"], ["sdae", "--size", "16"]])
def test_methods_that_predict_no_class_are_a_user_error(folder, words, capsys):
    assert main(["audit", words[0], "--data", str(folder / "x.npz"), "--steps", "2", *words[1:]]) == 2
    assert f"{words[0]} predicts no class, so there is nothing to audit" in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_is_a_user_error(folder, capsys):
    assert main(["audit", str(folder)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_an_audit_of_another_schema_is_refused(tmp_path):
    (tmp_path / auditing.FILE).write_text(json.dumps({"schema": 1, "findings": []}))
    with pytest.raises(UserError, match=r"has schema 1, expected 2; scripts/convert_runs\.py"):
        auditing.read(tmp_path)
