"""Every encoder, classic or timm's, keeps one form: pixels in, named stages out, rows of `pool` last."""

import pytest
import torch

from pretask import encoders
from pretask.encoders import classic
from pretask.transforms import augment as images
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
"""sides, of those that cannot do with 32 px"""
NARROW = {"caffenet": "caffenet:fc6=64,fc7=64", "color_vgg16": "color_vgg16:width=8,wide=64"}
"""in place of those with a hundred million weights, or half as many"""
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
def test_pixels_become_stages_and_rows(spec, channels):
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
def test_a_net_of_one_size_says_so_and_others_take_a_share(spec):
    encoder = encoders.build(spec, 3, SPECS[spec])
    share = encoder.side(0.75)
    assert share == (SPECS[spec] if spec in ONE_SIZE else round(0.75 * SPECS[spec]))
    assert encoder.side(1.0) == SPECS[spec] and encoder.training
    encoder(torch.rand(2, 3, share, share))


@pytest.mark.parametrize("spec", SPECS)
def test_equal_seeds_make_equal_weights_and_images_do_not_mix(spec):
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(encoders.build(spec, 3, SPECS[spec]).eval())
    assert all(map(torch.equal, made[0].state_dict().values(), made[1].state_dict().values()))
    image = torch.rand(4, 3, SPECS[spec], SPECS[spec])
    with torch.no_grad():
        whole, part = made[0](image)["pool"], made[1](image[2:])["pool"]
    torch.testing.assert_close(whole[2:], part, atol=1e-4, rtol=1e-3)


def test_pixels_are_normalised_by_the_nets_own_statistics():
    encoder = encoders.build("resnet18", 3, 32).eval()
    config = encoder.net.pretrained_cfg
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(config[k]).view(-1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(encoder(image)["pool"], encoder.net((image - mean) / std))


@pytest.mark.parametrize("spec", ["resnet18", "resnet_small:width=8", "timm:resnet10t"])
@pytest.mark.parametrize("sees", encoders.SEES)
def test_a_net_that_sees_one_channel_is_blind_to_the_rest(spec, sees):
    """Colours that have the same lightness or mean are the same to it; what it sees can be given to it as well."""
    encoder = encoders.build(encoders.seeing(spec, sees), 3, 32).eval()
    assert next(encoder.net.parameters()).shape[1] == 1 and encoder.channels == 3
    image = 0.3 + 0.4 * torch.rand(2, 3, 32, 32)
    light = images.lab(image)
    other = {
        "lightness": images.from_lab(torch.cat([light[:, :1], 0.8 * light[:, 1:]], 1)),
        "mean": image + 0.1 * torch.tensor([1.0, -2.0, 1.0]).view(3, 1, 1),
    }[sees]
    with torch.no_grad():
        expected = encoder(image)["pool"]
        torch.testing.assert_close(encoder(other)["pool"], expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(encoder.look(encoders.SEES[sees](image))["pool"], expected)
        assert (encoder(image.flip(0))["pool"] - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("resnt18", "did you mean resnet18"),
        ("resnet_smal", "did you mean resnet_small"),
        ("resnet18:stem", "should read key=value"),
        ("resnet_small:deep=3", "deep"),
        ("resnet18:no_such_knob=1", "does not take"),
        ("resnet18:sees=red", "sees is one of lightness, mean"),
    ],
)
def test_a_mistake_in_a_name_is_the_users_to_mend(spec, hint):
    with pytest.raises(UserError, match=hint):
        encoders.build(spec, 3, 32)


def test_channels_that_do_not_fit_are_not_stretched_to_fit():
    for spec, channels in (("resnet_small:width=8", 1), ("resnet_small:width=8,sees=mean", 3)):
        with pytest.raises(ValueError, match=f"channels, not {channels}"):
            encoders.build(spec, 3, 32).look(torch.rand(2, channels, 32, 32))


def test_lightness_is_of_colour_images():
    with pytest.raises(UserError, match="sees the lightness of colour images; these have 1 channel"):
        encoders.build("resnet18:sees=lightness", 1, 32)
