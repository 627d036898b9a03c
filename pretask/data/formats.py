"""Image formats that Pillow reads with a plugin, which is loaded when the first such file is read."""

from collections.abc import Callable
from functools import cache

from pretask.errors import install_command

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
"""that follow `ftyp`"""
JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
"""codestream and container"""


def kind(data: bytes) -> str | None:
    """The format of a file that needs a plugin, by its first bytes; None for all others."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return "HEIC"
    return "JPEG XL" if data.startswith(JXL) else None


def plug_in(name: str) -> None:
    """Load the plugin of a format. Raises ValueError if it is not installed."""
    try:
        PLUGINS[name]()
    except ImportError:
        raise ValueError(f"{name} ({install_command('formats')})") from None


@cache
def heif() -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()


@cache
def jpeg_xl() -> None:
    import pillow_jxl  # noqa: F401  registers itself


PLUGINS: dict[str, Callable[[], None]] = {"HEIC": heif, "JPEG XL": jpeg_xl}
