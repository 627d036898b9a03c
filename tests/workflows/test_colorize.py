"""Colorizing images: files, scores, and error messages."""

import json
import math
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import pretask
from pretask import data
from pretask.cli.main import main
from pretask.methods import colorization as cz
from pretask.reading import Reading
from pretask.train.run import Run
from pretask.transforms import augment
from pretask.transforms.color import rgb_to_lab
from pretask.types import UserError
from pretask.workflows import colorize


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return pretask.pretrain(
        "colorization",
        "synthetic:64:32",
        folder / "run",
        steps=30,
        batch=16,
        encoder="resnet_small:width=16",
        quiet=True,
    ).folder


@pytest.fixture
def photos(tmp_path):
    """Images of several sizes: one gray, one damaged, two that differ only in their suffix."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    image = data.open("synthetic:8:64").image.permute(0, 2, 3, 1).numpy()
    Image.fromarray(image[0]).resize((90, 60)).save(folder / "wide.jpg")
    Image.fromarray(image[1]).resize((40, 70)).save(folder / "deep" / "tall.png")
    Image.fromarray(image[2]).convert("L").save(folder / "gray.png")
    Image.fromarray(image[3]).save(folder / "wide.webp")
    Image.fromarray(image[4]).resize((2000, 1000)).save(folder / "large.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_every_image_keeps_its_size_and_lightness(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["colorize", str(run), "--data", str(photos), "--out", str(out), "--max-bad", "0.5"]
    assert main(words) == 0
    made = {str(p.relative_to(out)): Image.open(p).size for p in out.rglob("*.png")}
    assert made.pop("sheet.png")
    assert made == {
        "wide.png": (90, 60),
        "wide.webp.png": (64, 64),
        "deep/tall.png": (40, 70),
        "gray.png": (64, 64),
        "large.png": (1600, 800),
    }
    assert (out / "bad.csv").read_text() == "file,reason\nbroken.jpg,not an image\n"
    said = capsys.readouterr()
    assert "AuC" in said.out and "wrote 5 images" in said.err and "1 skipped: 1 not an image" in said.err

    def lightness(path):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
        return rgb_to_lab(augment.to_float(pixels))[:, :1]

    gap = (lightness(out / "deep" / "tall.png") - lightness(photos / "deep" / "tall.png")).abs()
    assert gap.median() < 1 and gap.mean() < 3  # except for colors outside sRGB


def test_temperature_changes_the_predicted_colors(run):
    paint = colorize.painter(Run(run))
    light = rgb_to_lab(augment.to_float(data.open("synthetic:4:48").image[:1]))[:, :1]
    with torch.inference_mode():
        assert paint(light, None).shape == (1, 2, 48, 48)
        assert torch.equal(paint(light, None), paint(light, 0.38))
        assert (paint(light, 1.0) - paint(light, 0.38)).abs().max() > 1


def test_perfect_color_predictions_reproduce_the_photograph(run, tmp_path, monkeypatch):
    """The method gets a gray image with its aspect ratio, whose shorter side is the image size of the run."""
    (tmp_path / "photos").mkdir()
    true = data.open("synthetic:1:64").image[0, :, :40].permute(1, 2, 0).numpy()
    Image.fromarray(true).save(tmp_path / "photos" / "wide.png")
    lab = rgb_to_lab(augment.to_float(torch.from_numpy(true).permute(2, 0, 1)[None]))
    looked = []

    def predict_ab(image, temperature=None):
        looked.append(image)
        return torch.nn.functional.interpolate(lab[:, 1:], size=image.shape[2:], mode="bilinear")

    known = Run(run)
    monkeypatch.setattr(known.method, "predict_ab", predict_ab)
    source = data.open(str(tmp_path / "photos"), size=32, channels=3, cache_mb=0)
    made = colorize.colorize(known, source, tmp_path / "out")
    assert looked[0].shape == (1, 3, 32, 51) and (looked[0][:, 0] - looked[0][:, 2]).abs().max() < 1e-4
    painted = np.array(Image.open(tmp_path / "out" / "wide.png")).astype(float)
    assert np.median(np.abs(painted - true)) < 6 and made.scores[0].raw.value > 97 > made.scores[1].raw.value


def test_output_names_are_unique_and_stay_inside_the_folder(run, tmp_path):
    """Names that differ only in their suffix, the name of the sheet, and names in a shard that point outside the folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.fromarray(data.open("synthetic:1:32").image[0].permute(1, 2, 0).numpy())
    for name in ("sheet.jpg", "a.jpg", "a.png", "a.png.jpg", "a.png.webp"):
        image.save(folder / name)
    made = colorize.colorize(run, data.open(str(folder), size=32, channels=3, cache_mb=0), tmp_path / "out")
    assert made.n == 5 == len([*(tmp_path / "out").glob("*.png")]) - 1
    assert Image.open(tmp_path / "out" / "sheet.png").width > 100

    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(folder / "a.jpg", "../../escaped.jpg")
        tar.add(folder / "a.jpg", "/above.jpg")
    source = data.open(str(tmp_path / "shard.tar"), size=32, channels=3, cache_mb=0)
    assert colorize.colorize(run, source, tmp_path / "deep" / "deeper" / "out").n == 2
    inside = {p.name for p in (tmp_path / "deep" / "deeper" / "out").rglob("*.png")}
    assert inside == {"sheet.png", "escaped.png", "above.png"}
    assert not [*tmp_path.rglob("escaped.png")][1:] and not [*tmp_path.rglob("above.png")][1:]


def test_a_very_wide_image_is_squeezed(run):
    """Otherwise a panorama of one pixel's height would be enlarged to millions of pixels."""
    ab = colorize.painter(Run(run))(torch.full((1, 1, 1, 1500), 50.0), None)
    assert ab.shape == (1, 2, 1, 1500)


def test_score_matches_a_slow_reference_for_the_area_under_the_curve():
    """Reference: fractions within 0, 0.01, … 150, weighted by the inverse smoothed frequency of the true color."""
    rng = torch.Generator().manual_seed(0)
    true = 40 * torch.randn(3, 2, 6, 6, generator=rng)
    ab = true + 30 * torch.randn(3, 2, 6, 6, generator=rng)
    scorer = colorize.Scorer()
    for i in range(3):
        assert scorer.add(ab[i : i + 1], true[i : i + 1])
    painted, none, truth = scorer.scores(0)

    nearest, far, farther, vivid = [], [], [], []
    for i in range(3):
        for y in range(6):
            for x in range(6):
                a, b = true[i, :, y, x].tolist()
                nearest.append(min(range(313), key=lambda k: math.dist((a, b), cz.BINS[k].tolist())))
                far.append(math.dist((a, b), ab[i, :, y, x].tolist()))
                farther.append(math.hypot(a, b))
                vivid.append(math.hypot(*ab[i, :, y, x].tolist()))
    share = cz.smooth(torch.tensor(nearest).bincount(minlength=313).float())
    weight = 1 / share[nearest].double().numpy()
    steps = np.linspace(0, 150, 15001)
    for score, distance in ((painted, np.array(far)), (none, np.array(farther))):
        curve = np.array([(distance <= t).mean() for t in steps])
        balanced = np.array([weight[distance <= t].sum() for t in steps]) / weight.sum()
        assert score.raw.value == pytest.approx(100 * curve.mean(), abs=0.05)
        assert score.balanced.value == pytest.approx(100 * balanced.mean(), abs=0.05)
        assert score.raw.low < score.raw.value < score.raw.high
    for score, chroma in ((painted, vivid), (none, [0]), (truth, farther)):
        assert score.chroma.value == pytest.approx(np.mean(chroma), abs=1e-3)
    assert painted.chroma.low < painted.chroma.value < painted.chroma.high


def test_true_colors_score_100_and_gray_images_are_not_scored():
    scorer = colorize.Scorer()
    true = rgb_to_lab(augment.to_float(data.open("synthetic:4:32").image))[:, 1:]
    assert scorer.add(true[:1], true[:1]) and not scorer.add(true[:1], 0 * true[:1])
    painted, none, truth = scorer.scores(0)
    assert painted.raw.value == pytest.approx(100) and painted.balanced.value == pytest.approx(100)
    assert (truth.raw, truth.balanced, truth.chroma) == (painted.raw, painted.balanced, painted.chroma)
    assert none.raw.value < 99
    assert colorize.Scorer().scores(0) == []


def test_arrays_are_colorized_and_json_is_the_only_standard_output(run, tmp_path, capsys):
    np.savez(tmp_path / "some.npz", images=data.open("synthetic:5:32").image.permute(0, 2, 3, 1).numpy())
    out = tmp_path / "out"
    assert (
        main(["colorize", str(run), "--data", str(tmp_path / "some.npz"), "--out", str(out), "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == result["scored"] == 5
    assert [s["colors"] for s in result["scores"]] == ["predicted", "gray", "true"]
    assert json.loads((out / "scores.json").read_text()) == result
    assert sorted(p.name for p in out.glob("[0-9].png")) == [f"{i}.png" for i in range(5)]


def test_a_color_proxy_run_colorizes_images(photos, tmp_path):
    """Wide and tall images keep their size, and the temperature changes the colors."""
    run = pretask.pretrain(
        "color_proxy",
        "synthetic:64:32",
        tmp_path / "run",
        steps=20,
        batch=16,
        encoder="resnet_small:width=16",
        quiet=True,
    )
    out = tmp_path / "out"
    made = colorize.colorize(
        run, data.open(str(photos), size=32, channels=3, reading=Reading(max_bad=0.5), cache_mb=0), out
    )
    assert made.n == 5 and made.scored == 4 and Image.open(out / "deep" / "tall.png").size == (40, 70)
    paint, light = colorize.painter(run), 20 + 60 * torch.rand(1, 1, 40, 60)
    with torch.inference_mode():
        assert torch.equal(paint(light, None), paint(light, 1.0))
        assert (paint(light, 1.0) - paint(light, 0.1)).abs().max() > 0.1


def test_user_errors_are_one_line_and_leave_no_files(run, photos, tmp_path, capsys):
    other = pretask.pretrain("rotnet", "synthetic:64:32", tmp_path / "rot", steps=2, quiet=True).folder
    for words, said in (
        (
            [str(other), "--out", str(tmp_path / "new")],
            "rotnet does not predict colors; give a run of colorization or color_proxy",
        ),
        ([str(run), "--out", str(photos)], "exists; choose another --out"),
        (
            [str(run), "--out", str(tmp_path / "new"), "--temperature", "0"],
            "--temperature 0.0 is out of range",
        ),
    ):
        assert main(["colorize", *words, "--data", str(photos), "--max-bad", "0.5"]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_method_loads_without_its_training_images(tmp_path):
    np.savez(tmp_path / "gone.npz", images=data.open("synthetic:20:32").image.permute(0, 2, 3, 1).numpy())
    run = pretask.pretrain(
        "colorization",
        tmp_path / "gone.npz",
        tmp_path / "run",
        steps=2,
        batch=16,
        encoder="resnet_small:width=16",
        quiet=True,
    ).folder
    (tmp_path / "gone.npz").unlink()
    loaded = Run(run)
    assert loaded.method.prior.sum() == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match=r"gone"):
        _ = loaded.source
