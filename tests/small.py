"""Small synthetic images that suit a method, and a small encoder of the kind that it trains."""

from pretask import data, methods
from pretask.train import requirements
from pretask.types import Source, UserError

SMALL = {
    "mlp": "mlp:width=32",
    "resnet50": "resnet_small:width=16",
    "resnet18": "resnet_small:width=16",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2,global_pool=avg,fc_norm=False",
}
"""narrower networks of the same kind, so that a test takes a second"""


def small(encoder: str) -> str:
    name = encoder.split(":")[0]
    return SMALL.get(name, f"{name}:width=16")


def images_for(name: str) -> Source:
    """64 images of 16 px, or larger ones for methods whose tiles would be too small."""
    config, side = methods.recipe(name)(), 16
    while True:
        source = data.open(f"synthetic:64:{side}")
        try:
            requirements.check(
                config, config.build_encoder(config.spec(small(config.encoder)), source), source
            )
        except UserError:
            assert side < 256, f"{name} takes no images of up to {side} px"
            side *= 2
        else:
            return source
