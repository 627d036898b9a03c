"""pretask track CLIPS --out TRACKS: mine pairs of patches that show the same moving thing a second apart."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pretask.cli.flags import subject
from pretask.datagen.tracking import Settings
from pretask.limits import Count
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags(Settings):
    """Find what moves in video clips and follow it: pairs of patches to learn from, with video_triplet. CLIPS is a video,
    or a folder of videos and of folders with frames. An interrupted command goes on when it is given again."""

    out: Path = Path("tracks")
    """the store's folder, which must not exist"""
    workers: Count | None = None
    """clips looked at at the same time (as many as there are cores)"""


def run(words: list[str]) -> None:
    clips, chosen = subject(words, "track", "CLIPS", Flags)
    from pretask.datagen import mine_tracks as mining

    made = mining.mine(Path(clips).expanduser(), chosen.out, chosen, chosen.workers)
    pace = f", {made.frames} frames at {made.frames / made.seconds:.0f} a second" if made.frames else ""
    say(
        f"wrote {made.out} ({made.tracks} tracks of {made.clips} clip{'s' * (made.clips != 1)}{pace}). Look at {made.out / mining.FILM}. "
        f"Next: pretask preview video_triplet --data {quote(str(made.out))}"
    )
