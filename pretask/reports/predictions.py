"""The page of predicted labels: the surest and the least sure of each class, labels that may be wrong, the reliability diagram."""

from collections.abc import Iterator
from pathlib import Path

from pretask.reports.curation import Gallery, Section
from pretask.reports.panels import Panel, sample
from pretask.runtime import files
from pretask.viz import svg
from pretask.viz.page import load_template
from pretask.workflows import explore
from pretask.workflows.predict import Predicted, sentences

PAGE = "predictions.html"
SHOWN = 8
"""images of a class in each row"""
CLASSES = 30
"""classes that are shown"""


def write(found: Predicted) -> Path:
    lead, *meaning = sentences(found.summary)
    page = load_template("pretask.reports", "pictures.html.j2").render(
        kicker="pretask predict",
        title=found.images.source.name,
        lead=lead,
        meaning=meaning,
        features=str(found.images.readout),
        sections=[section for section in sections(found) if section.lines],
        panels=[reliability(found)],
    )
    files.write_text(found.folder / PAGE, page)
    columns = {name: list(found.predictions[name]) for name in ("label", "probability")}
    columns["sure"] = ["sure" if each else "unsure" for each in found.predictions["sure"]]
    columns["suspect"] = explore.column_of(
        found.images.names, {name: f"{label}?" for name, label, *_ in found.suspects.rows()}
    )
    explore.of_collection(found.folder / explore.PAGE, found.images, columns)
    return found.folder / PAGE


def sections(found: Predicted) -> Iterator[Section]:
    own = found.images
    gallery = Gallery.of(own.source, own.names, own.positions)
    by_class: dict[str, list[tuple[float, str, bool]]] = {}
    for name, label, probability, _, sure in found.predictions.rows():
        by_class.setdefault(label, []).append((probability, name, sure))
    largest = sorted(by_class.items(), key=lambda item: -len(item[1]))
    for title, about, surest in (
        ("Surest", "Of each class the images with the largest probability; sure ones are outlined.", True),
        (
            "Least sure",
            "Of each class the images with the smallest probability: look here for mistakes.",
            False,
        ),
    ):
        lines = []
        for label, images in largest[:CLASSES]:
            rows = sorted(images, reverse=surest)[:SHOWN]
            shown = gallery.shown([(name, f"{probability:.2f}", sure) for probability, name, sure in rows])
            lines.append((f"{label}: {len(images):,} images", shown))
        yield Section(title, about, lines, max(0, len(largest) - CLASSES))
    wrong = [
        (name, f"{label}, likelier {likelier}", False)
        for name, label, likelier, _ in found.suspects.rows()
        if name in gallery.position
    ]
    lines = [("", gallery.shown(wrong[:24]))] if wrong else []
    about = "Given labels that may be wrong, the likeliest first, by predictions that did not see them."
    yield Section("Labels to look at", about, lines, max(0, len(wrong) - 24))


def reliability(found: Predicted) -> Panel:
    """Share of right predictions over their probability, with exact intervals."""
    figure, axes = svg.blank_figure(4.6, 3.2)
    axes.plot([0, 100], [0, 100], color=svg.GRID, linewidth=1.2)
    for each in found.bins:
        axes.plot(
            [100 * each.probability] * 2,
            [100 * each.low, 100 * each.high],
            color=svg.ACCENT,
            linewidth=1.6,
            alpha=0.5,
        )
    x, y = ([100 * getattr(each, name) for each in found.bins] for name in ("probability", "accuracy"))
    axes.plot(x, y, color=svg.ACCENT, linewidth=1.8, marker="o", markersize=4)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    words = "; ".join(f"{100 * b.accuracy:.0f} % right at {100 * b.probability:.0f} %" for b in found.bins)
    caption = (
        "% right, over the probability in %, with intervals; on the diagonal probabilities mean what they say"
    )
    return Panel(
        "Are the probabilities right?",
        svg.to_svg(figure),
        caption,
        words,
        [(sample(svg.ACCENT), "out of fold")],
    )
