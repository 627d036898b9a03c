"""The smallest made-up images that a method can make its puzzle of, and a small net of the kind that it trains."""

from pretask import data as sources
from pretask import methods
from pretask.types import Source, UserError

SMALL = {
    "mlp": "mlp:width=32",
    "resnet50": "resnet_small:width=16",
    "resnet18": "resnet_small:width=16",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2,global_pool=avg,fc_norm=False",
}
"""the same kind of net, narrower, so that a test takes a second"""


def small(encoder: str) -> str:
    name = encoder.split(":")[0]
    return SMALL.get(name, f"{name}:width=16")


def images_for(name: str) -> Source:
    """64 images of 16 px; larger ones for methods whose tiles would be too small in them."""
    config, side = methods.recipe(name)(), 16
    while True:
        source = sources.open(f"synthetic:64:{side}")
        try:
            config.build(config.draw(config.spec(small(config.encoder)), source), source)
        except UserError:
            assert side < 256, f"{name} takes no images of up to {side} px"
            side *= 2
        else:
            return source
