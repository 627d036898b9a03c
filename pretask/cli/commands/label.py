"""pretask label LIST --data PATH: a page to label images by hand."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import subject
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Write one offline page on which you label images by keyboard or mouse: one after the other, with undo, skip and unsure. It keeps
    your answers in the browser and saves them as a table of path and label, which every command takes as --labels. LIST is a table with
    a column path, as pretask select writes it."""

    data: str
    """images that the paths belong to"""
    classes: str = ""
    """names of the classes, separated by commas (default: the page shows groups of images that look alike and asks for names)"""
    multi: bool = False
    """an image may have several labels"""
    out: Path = Path("label.html")
    """page to write; more than 50 MB become several pages"""
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    images, chosen = subject(words, "label", "LIST", Flags)
    from pretask.workflows.label import MOST_KEYS, label

    classes = [name.strip() for name in chosen.classes.split(",") if name.strip()]
    made = label(
        images, chosen.data, classes=classes, multi=chosen.multi, out=chosen.out, reading=chosen.reading
    )
    if made.missing:
        say(
            f"{len(made.missing):,} images of {images} are missing or cannot be read, such as {made.missing[0]}"
        )
    if len(classes) > MOST_KEYS:
        say(
            f"only the first {MOST_KEYS} of {len(classes)} classes have a key; choose the others by mouse, or type their names"
        )
    say(
        f"wrote {', '.join(map(str, made.pages))} with {made.images:,} images; open it in a browser (no network needed)"
    )
