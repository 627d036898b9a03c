"""pretask preview METHOD --data PATH: draw the pretext task on your images."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pretask.cli.flags import method_flags, opening, parse
from pretask.data.ledger import BAD
from pretask.errors import UserError
from pretask.limits import PositiveInt, Seed
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Draw the pretext task of a method on your images, with the answers, before any training."""

    data: str
    """images to draw"""
    out: Path | None = None
    """image file to write (default: preview-METHOD.png)"""
    rows: PositiveInt = 8
    """number of images"""
    size: PositiveInt | None = None
    """image side in pixels"""
    seed: Seed = 0
    """random seed of the puzzles"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    method, rest = opening(words, "preview", "METHOD")
    if method is None:
        parse(Flags, ["--help"], "preview METHOD")
        return
    chosen = parse(method_flags(method, Flags), rest, f"preview {method}")
    from PIL import Image

    from pretask.datagen.mine_tracks import ANIMATION
    from pretask.runtime import files
    from pretask.workflows import preview

    flags: Flags = chosen.run
    out = flags.out or Path(f"preview-{Path(method).stem.replace(':', '-')}.png")
    if (form := Image.registered_extensions().get(out.suffix.lower())) not in Image.SAVE:
        raise UserError(
            f"--out {out} is not an image format that can be written; use a name such as puzzles.png"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = preview.preview(
        flags.data,
        chosen.method,
        method,
        flags.rows,
        flags.size,
        flags.seed,
        flags.reading,
        bad=out.with_suffix(f".{BAD}"),
    )
    files.write(out, lambda file: picture.save(file, format=form))
    if (film := Path(flags.data).expanduser() / ANIMATION).is_file():  # of a store of tracks
        files.write(out.with_suffix(".gif"), lambda file: file.write(film.read_bytes()))
        say(f"wrote {out.with_suffix('.gif')}, tracks over frames")
    say(f"wrote {out}. Next: pretask check {quote(method)} --data {quote(flags.data)}")
