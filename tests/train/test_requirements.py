"""Minimum requirements of each method: the minimum trains, and one less is refused before any work."""

import math

import pytest
import torch
from small import images_for, light, small, undrawn

from pretask import api, data, encoders, methods
from pretask.cli import main
from pretask.encoders import Encoder
from pretask.errors import UserError
from pretask.methods import MethodConfig, Minimum
from pretask.runtime import files
from pretask.train import requirements, run

NAMES = methods.names()


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    undrawn(monkeypatch)


def encoder_for(config: MethodConfig, side: int) -> Encoder:
    source = data.open(f"synthetic:4:{side}")
    return config.build_encoder(config.spec(small(config.encoder)), source)


def trained(name, tmp_path, images, side, batch):
    """Losses of two steps or more."""
    config = light(name)
    steps = max(2, config.train.cycles)
    made = api.pretrain(
        name, f"synthetic:{images}:{side}", tmp_path / "run", encoder=small(config.encoder), steps=steps,
        batch=batch, quiet=True, config=config,
    )  # fmt: skip
    return [row["loss"] for row in files.read_rows(made.folder / run.LOG)]


def least(name: str) -> tuple[int, int, int]:
    """Smallest side, number of images and batch."""
    config = light(name)
    side = config.smallest_side(encoder_for(config, images_for(name).size)).value
    fewest, batch = config.fewest_images().value, config.smallest_batch().value
    while True:  # the next side that the encoder accepts too
        try:
            encoder_for(config, side)
        except UserError:
            side += 1
        else:
            return side, max(fewest, batch), batch


def learned(losses: list[float]) -> bool:
    return len(losses) >= 2 and all(map(math.isfinite, losses))


@pytest.mark.parametrize("name", NAMES)
def test_smallest_side_trains(name, tmp_path):
    """With two images or more, since batch norms of a deep map may get a single value from one image."""
    side, images, batch = least(name)
    assert learned(trained(name, tmp_path, max(images, 8), side, max(batch, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_smallest_batch_and_fewest_images_train(name, tmp_path):
    _, images, batch = least(name)
    images = 8 if name == "video_triplet" else images  # from two clips
    assert learned(trained(name, tmp_path, images, 64, batch))


@pytest.mark.parametrize("name", NAMES)
def test_one_less_is_refused_with_the_minimum(name, tmp_path):
    side, images, batch = least(name)
    for fewer, number in (
        ((images, side - 1, batch), side),
        ((images - 1, side, min(batch, images - 1)), images),
        ((images, side, batch - 1), batch),
    ):
        if min(fewer) < 1:
            continue  # refused by the limits of the field itself
        with pytest.raises(UserError, match=rf"\b{number}\b") as caught:
            trained(name, tmp_path, *fewer)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_command_line_reports_the_minimum_in_one_line(tmp_path, capfd):
    words = ["pretrain", "moco", "--data", "synthetic:8:16", "--out", str(tmp_path / "run"), "--batch", "1"]
    assert main.main([*words, "--encoder", "resnet_small:width=4", "--steps", "2"]) == 2
    err = capfd.readouterr().err
    assert err == "pretask: moco takes batches of 2 images or more, not of 1; give --batch 2 or more\n"
    assert not (tmp_path / "run").exists()


def test_batch_norm_with_a_single_value_is_found_by_trying(tmp_path):
    known = {"encoder": "resnet_small:width=4", "steps": 1, "batch": 1, "quiet": True}
    with pytest.raises(UserError, match="colorization takes batches of 2 images or more here"):
        api.pretrain("colorization", "synthetic:2:8", tmp_path / "one place", **known)
    api.pretrain("colorization", "synthetic:2:32", tmp_path / "more", **known)
    api.pretrain("rotnet", "synthetic:2:8", tmp_path / "four turns", **known)


def test_minimum_depends_on_the_config():
    def of(name, **config):
        return methods.recipe(name)(**config)

    net = encoders.build("resnet_small:width=4", 3, 64)
    assert of("jigsaw").smallest_side(net).value == 30
    assert of("jigsaw", tile=1.0).smallest_side(net).value == 24
    assert of("jigsaw", window=0.5).smallest_side(net).value == 60
    assert of("context_prediction", patch=0.1, gap=0.1).smallest_side(net).value == 40
    assert of("color_proxy", window=7, side=0.5).smallest_side(net).value == 13
    assert of("jule", clusters=7).fewest_images().value == 14
    assert of("neighbourhood_discovery", neighbors=5).fewest_images().value == 7
    assert of("exemplar_cnn", seeds_per_image=2).fewest_images().value == 1
    assert of("exemplar_cnn", hidden=0).smallest_batch().value == 1
    assert of("text_topic", min_df=3, max_df=0.25).fewest_images().value == 12
    vit = encoders.build("vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=1", 3, 32)
    assert of("mae").smallest_side(vit).value == 8
    assert of("mae", mask_ratio=0.9).smallest_side(vit).value == 16
    assert of("ijepa").smallest_side(vit).value == 16
    assert of("ibot", mask_ratio=(0.0, 0.1)).smallest_side(vit).value == 16


def test_minimum_of_a_custom_method_is_enforced(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from pretask.methods import Minimum, rotnet\n\n"
        "@dataclass(frozen=True)\n"
        "class Config(rotnet.Config):\n"
        '    """Turn."""\n\n'
        "    def smallest_batch(self):\n"
        '        return Minimum(5, "or go home")\n'
    )
    with pytest.raises(UserError, match=r"mine takes batches of 5 images or more, not of 4; .*, or go home"):
        api.pretrain(str(file), "synthetic:8:16", tmp_path / "run", steps=1, batch=4, quiet=True)


def test_batch_is_not_checked_without_training():
    config, source = methods.recipe("simclr")(), data.open("synthetic:1:16")
    requirements.check(config, encoder_for(config, 16), source)
    with pytest.raises(
        UserError, match="simclr takes 2 images or more, and synthetic:1:16 has 1; add images"
    ):
        requirements.check(config, encoder_for(config, 16), source, 1)
    assert config.smallest_batch() == Minimum(2)


# ---- encoders


@pytest.mark.parametrize(
    ("spec", "side"),
    [("alexnet_bn", 63), ("exemplar", 32), ("jule", 13), ("convnext_atto", 32)],
)
def test_encoder_names_its_smallest_image_size(spec, side):
    with pytest.raises(
        UserError, match=rf"needs images of {side} px or more, got {side - 1}; set --size {side}"
    ):
        encoders.build(spec, 3, side - 1)
    encoders.build(spec, 3, side)


def test_encoder_error_comes_without_warnings(recwarn):
    with pytest.raises(UserError):
        encoders.build("alexnet_bn", 3, 48)
    assert not recwarn.list


def test_transformer_refuses_sizes_that_its_patches_do_not_tile():
    spec = "vit_tiny_patch16_224:embed_dim=48,depth=1"
    with pytest.raises(
        UserError, match="patches of 16 px, which do not divide images of 50 px; set --size 48 or 64"
    ):
        encoders.build(spec, 3, 50)
    with pytest.raises(UserError, match="set --size 16, or"):
        encoders.build(spec, 3, 8)


def test_other_encoder_errors_quote_the_library():
    with pytest.raises(UserError, match=r"resnet_small:color=1.*unexpected keyword argument 'color'"):
        encoders.build("resnet_small:color=1", 3, 16)
    with pytest.raises(UserError, match="unknown encoder 'resnet_smal'"):
        encoders.build("resnet_smal", 3, 16)


def test_finding_the_smallest_side_leaves_the_rng_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert encoders.smallest_side("jule", 3, 4) == 13
    assert torch.equal(before, torch.get_rng_state())
