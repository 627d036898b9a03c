"""The smallest made-up images that a method can make its puzzle of."""

from pretask import encoders, methods, sources
from pretask.types import Source, UserError


def images_for(name: str) -> Source:
    """64 images of 16 px; larger ones for methods whose tiles would be too small in them."""
    config, side = methods.recipe(name)(), 16
    while True:
        source = sources.open(f"synthetic:64:{side}")
        try:
            config.build(encoders.build("resnet_small:width=8", 3, side), source)
        except UserError:
            assert side < 256, f"{name} takes no images of up to {side} px"
            side *= 2
        else:
            return source
