"""Self-contained HTML pages: templates, and pictures as data URIs."""

import base64
import io
from typing import Any

from PIL import Image

from pretask.viz.sheet import MAX_SIDE

MAX_PNG = 64
"""longer sides above this are stored as JPEG, pixels; smaller pictures are PNG, shown with visible pixels"""


def load_template(package: str, name: str) -> Any:
    """A Jinja template in a package's folder; all values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"data_uri": data_uri, "is_small": is_small}
    return engine.get_template(name)


def data_uri(picture: Image.Image, side: int = MAX_SIDE) -> str:
    """The picture as a data URI: PNG if it is small, otherwise a JPEG of at most `side` pixels."""
    buffer = io.BytesIO()
    if is_small(picture):
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def is_small(picture: Image.Image) -> bool:
    return max(picture.size) <= MAX_PNG
