"""pretask preview METHOD --data PATH: draw the puzzles with their answers."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pretask.cli.flags import method_flags, opening, parse
from pretask.errors import UserError
from pretask.limits import Count, Seed, Share
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags:
    """Draw a method's puzzles with their answers."""

    data: str
    """images to make puzzles from"""
    out: Path | None = None
    """the picture (preview-METHOD.png)"""
    rows: Count = 8
    """images"""
    size: Count | None = None
    """side of the images, pixels"""
    seed: Seed = 0
    """of the puzzles"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    method, rest = opening(words, "preview", "METHOD")
    if method is None:
        parse(Flags, ["--help"], "preview METHOD")
        return
    chosen = parse(method_flags(method, Flags), rest, f"preview {method}")
    from pretask.datagen.mine_tracks import FILM
    from pretask.workflows import preview as selfhelp

    asked: Flags = chosen.run
    picture = selfhelp.preview(
        asked.data, chosen.method, method, asked.rows, asked.size, asked.seed, asked.max_bad
    )
    out = asked.out or Path(f"preview-{Path(method).stem.replace(':', '-')}.png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except ValueError as wrong:  # a suffix that Pillow does not know
        raise UserError(f"{out}: {wrong}; name a picture, such as puzzles.png") from None
    if (film := Path(asked.data).expanduser() / FILM).is_file():  # of a store of tracks
        shutil.copyfile(film, out.with_suffix(".gif"))
        say(f"wrote {out.with_suffix('.gif')}, tracks over frames")
    say(f"wrote {out}. Next: pretask check {quote(method)} --data {quote(asked.data)}")
