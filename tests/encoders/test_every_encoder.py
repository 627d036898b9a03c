"""Every encoder, classic or timm's: pixels in, named stages out, pooled features last."""

import pytest
import torch

from pretask import encoders
from pretask.encoders import classic
from pretask.transforms.color import lab_to_rgb, rgb_to_lab
from pretask.types import UserError

SMALL = {
    "alexnet_bn": 64,
    "caffenet": 96,
    "scene_alexnet": 64,
    "cfn": 64,
    "color_vgg16": 48,
    "context_alexnet": 96,
    "exemplar": 48,
}
"""image sides of the networks that need more than 32 px"""
NARROW = {"caffenet": "caffenet:fc6=64,fc7=64", "color_vgg16": "color_vgg16:width=8,wide=64"}
"""narrow versions of networks with fifty to a hundred million weights"""
TIMM = {
    "resnet18": 32,
    "resnet10t:stem_width=16": 48,
    "convnext_atto": 64,
    "mobilenetv3_small_050": 64,
    "vit_tiny_patch16_224:patch_size=8,depth=8": 32,
}
SPECS = {**{NARROW.get(name, name): SMALL.get(name, 32) for name in classic.NETS}, **TIMM}
ONE_SIZE = {"mlp", "alexnet_bn", "vit_tiny_patch16_224:patch_size=8,depth=8"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS)
def test_stages_and_pooled_features_have_their_shapes(spec, channels):
    size = SPECS[spec]
    encoder = encoders.build(spec, channels, size).eval()
    with torch.no_grad():
        stages = encoder(torch.rand(2, channels, size, size))
    assert list(stages)[-1] == "pool" and stages["pool"].shape == (2, encoder.dim)
    assert {name: x.shape[1] for name, x in stages.items()} == encoder.widths
    assert encoder.sides == {name: x.shape[-1] for name, x in stages.items() if x.ndim == 4}
    assert len(stages) >= 3
    sides = [x.shape[-1] for x in stages.values() if x.ndim == 4]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("spec", SPECS)
def test_side_is_a_fraction_unless_the_input_size_is_fixed(spec):
    encoder = encoders.build(spec, 3, SPECS[spec])
    side = encoder.side(0.75)
    assert side == (SPECS[spec] if spec in ONE_SIZE else round(0.75 * SPECS[spec]))
    assert encoder.side(1.0) == SPECS[spec] and encoder.training
    encoder(torch.rand(2, 3, side, side))


@pytest.mark.parametrize("spec", SPECS)
def test_equal_seeds_give_equal_weights_and_images_do_not_mix(spec):
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(encoders.build(spec, 3, SPECS[spec]).eval())
    assert all(map(torch.equal, made[0].state_dict().values(), made[1].state_dict().values()))
    image = torch.rand(4, 3, SPECS[spec], SPECS[spec])
    with torch.no_grad():
        whole, part = made[0](image)["pool"], made[1](image[2:])["pool"]
    torch.testing.assert_close(whole[2:], part, atol=1e-4, rtol=1e-3)


def test_pixels_are_normalized_by_the_networks_own_statistics():
    encoder = encoders.build("resnet18", 3, 32).eval()
    config = encoder.net.pretrained_cfg
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(config[k]).view(-1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(encoder(image)["pool"], encoder.net((image - mean) / std))


@pytest.mark.parametrize("spec", ["resnet18", "resnet_small:width=8", "timm:resnet10t"])
@pytest.mark.parametrize("sees", encoders.SEES)
def test_an_encoder_with_sees_ignores_the_rest_of_the_image(spec, sees):
    """Colors of the same lightness or mean give the same features; the reduced input can also be passed directly."""
    encoder = encoders.build(encoders.with_sees(spec, sees), 3, 32).eval()
    assert next(encoder.net.parameters()).shape[1] == 1 and encoder.channels == 3
    image = 0.3 + 0.4 * torch.rand(2, 3, 32, 32)
    light = rgb_to_lab(image)
    other = {
        "lightness": lab_to_rgb(torch.cat([light[:, :1], 0.8 * light[:, 1:]], 1)),
        "mean": image + 0.1 * torch.tensor([1.0, -2.0, 1.0]).view(3, 1, 1),
    }[sees]
    with torch.no_grad():
        expected = encoder(image)["pool"]
        torch.testing.assert_close(encoder(other)["pool"], expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(encoder.forward_input(encoders.SEES[sees](image))["pool"], expected)
        assert (encoder(image.flip(0))["pool"] - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("resnt18", "did you mean resnet18"),
        ("resnet_smal", "did you mean resnet_small"),
        ("resnet18:stem", "should read key=value"),
        ("resnet_small:deep=3", "deep"),
        ("resnet18:no_such_argument=1", "does not take"),
        ("resnet18:sees=red", "sees must be one of lightness, mean"),
    ],
)
def test_invalid_specs_are_user_errors_with_a_hint(spec, hint):
    with pytest.raises(UserError, match=hint):
        encoders.build(spec, 3, 32)


def test_a_wrong_number_of_channels_is_not_broadcast():
    for spec, channels in (("resnet_small:width=8", 1), ("resnet_small:width=8,sees=mean", 3)):
        with pytest.raises(ValueError, match=f"channels, got {channels}"):
            encoders.build(spec, 3, 32).forward_input(torch.rand(2, channels, 32, 32))


def test_sees_requires_color_images():
    with pytest.raises(UserError, match="sees the lightness of color images; these have 1 channel"):
        encoders.build("resnet18:sees=lightness", 1, 32)
