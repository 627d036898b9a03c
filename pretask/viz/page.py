"""Pages that need no network: templates, and pictures as data: addresses."""

import base64
import io
from typing import Any

from PIL import Image

from pretask.viz.sheet import LARGEST

PHOTO = 64
"""pixels from which a picture is stored as JPEG; smaller ones stay exact and are drawn with hard edges"""


def template(package: str, name: str) -> Any:
    """One of the .j2 files in a package's folder; whatever is filled in is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"uri": uri, "small": small}
    return engine.get_template(name)


def uri(picture: Image.Image, side: int = LARGEST) -> str:
    """The picture as a data: address: small ones exact, photographs as JPEG of at most `side` pixels."""
    buffer = io.BytesIO()
    if small(picture):
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def small(picture: Image.Image) -> bool:
    return max(picture.size) <= PHOTO
