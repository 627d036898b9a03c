"""pretask track CLIPS --out TRACKS: mine tracks of moving objects from video clips."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pretask.cli.flags import subject
from pretask.datagen.tracking import TrackConfig
from pretask.limits import PositiveInt
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags(TrackConfig):
    """Track moving objects in video clips and store pairs of patches for video_triplet. CLIPS is a video, or a folder of videos
    and of folders of frames. Run an interrupted command again to continue."""

    out: Path = Path("tracks")
    """folder of the store; it must not exist"""
    workers: PositiveInt | None = None
    """clips processed in parallel (default: one per core)"""


def run(words: list[str]) -> None:
    clips, chosen = subject(words, "track", "CLIPS", Flags)
    from pretask.datagen import mine_tracks

    made = mine_tracks.mine(Path(clips).expanduser(), chosen.out, chosen, chosen.workers)
    pace = f", {made.frames} frames at {made.frames / made.seconds:.0f} a second" if made.frames else ""
    say(
        f"wrote {made.out} ({made.tracks} tracks of {made.clips} clip{'s' * (made.clips != 1)}{pace}). Look at {made.out / mine_tracks.ANIMATION}. "
        f"Next: pretask preview video_triplet --data {quote(str(made.out))}"
    )
