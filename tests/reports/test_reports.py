"""Curves, neighbors, map, attention maps, sentences about scores, and the report page in a real browser."""

import html as entities
import itertools
import json
import math
import os
import re
import shutil
import subprocess
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import cards
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pretask import data, encoders
from pretask.collection import layout
from pretask.config import RunConfig
from pretask.evals.scores import Difference, Role, Row, Scores
from pretask.methods import rotnet
from pretask.reports import attention, curves, features, html, report, verdict
from pretask.rng import Rng
from pretask.train import run as runs
from pretask.viz import draw, sheet, turing
from pretask.viz.page import data_uri
from pretask.viz.puzzle import Panel

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>{{ 7*7 }}$\\frac{'


def noise(*shape: int) -> Tensor:
    return Rng(0, "noise").uniform(*shape)


# ---- curves


def log(n: int) -> list[dict[str, float]]:
    return [{"step": i, "epoch": 0, "loss": 1 / (i + 1), "lr": 0.1, "accuracy": i / n} for i in range(n)]


def test_every_number_of_the_log_and_of_the_monitor_is_a_curve_with_its_last_value():
    monitor = [
        {"step": 0, "std": 0.1, "rank": 7.0, "state": "healthy"},
        {"step": 5, "state": "loss is not finite"},
    ]
    drawn = curves.plots(log(100), monitor)
    assert [p.title for p in drawn] == [
        "Loss", "accuracy", "Learning rate", curves.TITLES["std"], curves.TITLES["rank"],
    ]  # fmt: skip
    assert [p.last for p in drawn] == ["0.01", "0.99", "0.1", "0.1", "7"]
    assert curves.plots([]) == []


def test_thinning_a_long_log_keeps_its_spikes():
    y = np.zeros(100_000)
    y[54_321], y[77_777] = 9.0, -4.0
    x, kept = curves.thin(np.arange(100_000), y)
    assert len(x) <= curves.POINTS + 2
    assert {(54_321, 9.0), (77_777, -4.0)} <= set(zip(x.tolist(), kept.tolist(), strict=True))
    assert (x[0], x[-1]) == (0, 99_999)
    assert len(curves.picture(np.arange(100_000), noise(100_000).numpy())) < 60_000


def test_the_running_mean_equals_the_slow_formula_and_skips_gaps():
    y = noise(200).numpy().astype(float)
    y[50:53] = math.nan
    half = 200 // curves.SMOOTH // 2
    slow = [np.nanmean(y[max(0, i - half) : i + half + 1]) for i in range(200)]
    np.testing.assert_allclose(curves.smoothed(y), slow)


@pytest.mark.parametrize(
    "values", [[0.5], [math.nan], [1.0, math.nan, math.inf, 2.0], [None, 1.0], [3.0, 3.0]]
)
def test_short_logs_and_logs_without_numbers_are_plotted_with_a_warning(values):
    (plot,) = curves.plots(
        [{"step": i, "loss": v} for i, v in enumerate(values)] + [{"step": 9, "loss": 1.0}]
    )
    bad = [i for i, v in enumerate(values) if v is None or not math.isfinite(v)]
    warning = (
        f"not a number at {len(bad)} of {len(values) + 1} logged steps, first at step {bad[0]}" if bad else ""
    )
    assert plot.warning == warning
    assert plot.svg.startswith("<svg viewBox=")
    assert ("var(--wrong)" in plot.svg) == bool(bad)


def test_a_plot_takes_its_colors_from_the_page_and_contains_no_address():
    svg = curves.plots(log(50))[0].svg
    assert {"var(--accent)", "var(--muted)", "var(--line)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert not re.search(r"https?:|<\?xml|<!DOCTYPE|<metadata|<style|DejaVu|#0[1-4]0[1-4]0[1-4]", svg)


# ---- neighbors and map


def test_neighbors_equal_a_slow_search_and_exclude_the_query():
    z = noise(40, 6) - 0.5
    queries = torch.tensor([3, 17])
    cosine, found = features.neighbors(z, queries, k=5)
    for row, query in enumerate(queries.tolist()):
        slow = sorted(
            ((torch.cosine_similarity(z[query], z[i], 0).item(), i) for i in range(40) if i != query),
            reverse=True,
        )[:5]
        assert found[row].tolist() == [i for _, i in slow]
        np.testing.assert_allclose(cosine[row], [c for c, _ in slow], rtol=1e-5)


def test_queries_come_from_every_class_and_neighbors_are_compared_by_class():
    label = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    z = torch.nn.functional.one_hot(label, 3).float() + 0.01 * noise(30, 3)
    lines = features.neighbor_rows(z, noise(30, 3, 8, 8), label, ["ant", "bee", "cat"], count=6)
    assert [line[0].name for line in lines] == ["ant", "bee", "cat"] * 2
    assert all(len(line) == 1 + features.NEIGHBORS and line[0].same is None for line in lines)
    assert all(one.same and one.name == line[0].name for line in lines for one in line[1:])
    assert html.hits(lines) == "48 of 48 neighbors share a class with their query"
    mixed = features.neighbor_rows(z.roll(1, 0), noise(30, 3, 8, 8), label, ["ant", "bee", "cat"], count=6)
    compared = [(one.same, one.name == line[0].name) for line in mixed for one in line[1:]]
    assert set(compared) == {(True, True), (False, False)}


def test_the_sheet_of_neighbors_has_a_row_for_each_query():
    drawn = features.neighbor_sheet(noise(30, 4), noise(30, 3, 32, 32), count=3)
    assert drawn.width == 2 * sheet.MARGIN + 9 * 128 + 8 * 2 * sheet.GAP
    assert drawn.height > 3 * 128


def test_the_map_keeps_groups_together_and_is_reproducible():
    center = torch.eye(8)[:3].repeat_interleave(20, 0)
    z = center + 0.05 * noise(60, 8)
    at = layout.tsne(z, seed=1)
    group = np.repeat([0, 1, 2], 20)
    distance = np.linalg.norm(at[:, None] - at[None], axis=-1) + np.eye(60) * 1e9
    assert (group[distance.argmin(1)] == group).all()
    assert np.array_equal(at, layout.tsne(z, seed=1))


@pytest.mark.parametrize(
    "z", [torch.ones(50, 4), torch.zeros(12, 5), noise(1, 5), noise(3, 5), noise(20, 1) - 0.5]
)
def test_collapsed_few_or_one_dimensional_features_still_have_a_map(z):
    picture = features.map2d(layout.tsne(z), None, noise(len(z), 3, 8, 8))
    assert picture.axes
    assert layout.tsne(z).shape == (len(z), 2)


def test_thumbnails_do_not_overlap():
    at = np.array([[0.0, 0.0], [0.001, 0.001], [1.0, 1.0]])
    solid = torch.stack([torch.full((3, 4, 4), v) for v in (0.2, 0.5, 0.8)])
    canvas = np.asarray(features.mosaic(at, solid, 200, 200, 40))
    assert {tuple(c) for c in canvas.reshape(-1, 4)} == {
        (0, 0, 0, 0),
        (51, 51, 51, 255),
        (204, 204, 204, 255),
    }


# ---- attention maps


def test_an_attention_map_is_the_sum_of_powers_over_channels_scaled_to_0_and_1():
    features = 3 * Rng(1).normal(2, 5, 3, 4)
    for p in attention.POWERS:
        for image, found in zip(features.tolist(), attention.strength(features, p).tolist(), strict=True):
            summed = [[sum(abs(c[y][x]) ** p for c in image) for x in range(4)] for y in range(3)]
            low, high = min(map(min, summed)), max(map(max, summed))
            expected = [[(v - low) / (high - low) for v in row] for row in summed]
            assert found == [pytest.approx(row, abs=1e-5) for row in expected]
    assert not attention.strength(torch.ones(1, 5, 3, 4), 2).any()


@pytest.mark.parametrize(
    ("encoder", "size", "chosen"),
    [
        ("alexnet_bn", 224, {"conv1": 1, "conv3": 2, "conv5": 4}),  # fig. 3
        ("resnet_small:width=4", 16, {"stem": 1, "stage2": 2, "stage3": 4}),
        ("exemplar", 32, {"conv1": 1, "conv2": 2, "conv3": 4}),  # its last map has one position
        ("mlp", 8, {}),
    ],
)
def test_the_first_middle_and_last_feature_maps_are_shown(encoder, size, chosen):
    built = encoders.build(encoder, 3, size)
    assert attention.stages(built.sides) == chosen
    cells = attention.cells(built, (255 * noise(2, 3, size, size)).to(torch.uint8))
    assert len(cells) == (2 if chosen else 0)
    for cell in cells:
        assert [name for name, _ in cell.pictures] == ["image", *(f"{s}, p = {p}" for s, p in chosen.items())]
    assert built.training


def test_one_or_two_feature_maps_are_shown_once_each():
    assert attention.stages({"a": 4}) == {"a": 1}
    assert attention.stages({"a": 4, "b": 2, "c": 1}) == {"a": 1, "b": 2}


def test_an_attention_map_is_bright_where_the_features_of_its_image_are_strong():
    net = nn.Sequential(OrderedDict(map=nn.AvgPool2d(4)))
    encoder = encoders.Classic("brightness", net, 3, 32, (0.0,) * 3, (1.0,) * 3)
    image = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    places = [(4, 20), (24, 8), (12, 12)]
    for one, (y, x) in zip(image, places, strict=True):
        one[:, y : y + 4, x : x + 4] = 200
    for cell, (y, x) in zip(attention.cells(encoder, image), places, strict=True):
        shown = np.asarray(dict(cell.pictures)["map, p = 1"]).sum(2, dtype=int)
        top = np.unravel_index(shown.argmax(), shown.shape)
        assert y <= top[0] < y + 4
        assert x <= top[1] < x + 4


# ---- the page


def card(**more) -> dict:
    train = {"epochs": 2, "batch": 32, "milestones": []}
    about = {
        "config": {"crop": 0.3, "views": {"blur": [0.1, 2.0]}},
        "train": train,
        "data": "synthetic:64:16",
        "n": 64,
    }
    more = {
        "steps": 100,
        "epochs": 2,
        "versions": {"torch": "2.8"},
        "commit": "0123abc",
        "command": "pretask pretrain rotnet",
    } | more
    return cards.card(**about | more)


def test_passes_are_images_seen_over_images_whatever_the_epochs_of_a_timed_run(tmp_path):
    assert ("Passes over the images", "50.0") in html.facts(tmp_path, card(epochs=9))


def scored(
    name: str, value: float, role: Role = "pixels", metric: str = "linear", stage: str = "pool", **more
) -> Row:
    known = {"value": value, "low": value - 1, "high": value + 1, "values": [value], "chosen": [{}]}
    return Row(metric, stage, name=name, role=role, n=2000, data="made-up", **known, **more)


SCORES = [
    scored("rotnet", 56.1, "run"),
    scored("raw pixels", 39.0),
    scored("untrained encoder", 42.8, "untrained"),
]


def difference(
    minus: str, value: float, low: float, high: float, role: Role = "pixels", metric: str = "linear"
) -> Difference:
    return Difference(
        metric, "pool", name="rotnet", minus=minus, minus_role=role, value=value, low=low, high=high
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a run with everything that a report may show, and hostile names everywhere."""
    run = tmp_path_factory.mktemp("runs") / "turned & <b>bold"
    run.mkdir()
    rows = [row | {HOSTILE: 1.0, "images_per_s": 500.0, "data_wait": 0.01} for row in log(100)]
    rows[70]["loss"] = math.nan
    monitor = [{"step": s, "std": 0.1, "cosine": 0.2, "rank": 9.0, "state": "healthy"} for s in (0, 50, 99)]
    for name, content in ((runs.LOG, rows), (runs.MONITOR, monitor)):
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (run / "bad.csv").write_text(
        f'file,reason\n"{HOSTILE.replace(chr(34), chr(34) * 2)}.png",empty\na.jpg,cut off\n'
    )
    Scores(
        {"test": "linear"}, [*SCORES, scored(HOSTILE, 1.0)], [difference(HOSTILE, 4.2, 1.0, 7.4)], [], {}, {}
    ).write(run)
    (run / runs.DONE).write_text("598.2 s\n")
    return run


@pytest.fixture(scope="module")
def parts() -> dict:
    """A small untrained method, its encoder, and labeled images with hostile class names."""
    labeled = data.open_labeled("synthetic:64:16")
    labeled.classes = [f"{name} {HOSTILE}" for name in labeled.classes]
    encoder = encoders.build("resnet_small:width=8", 3, 16)
    method = rotnet.Config().build(encoder, labeled)
    return {
        "method": method,
        "encoder": encoder,
        "source": labeled,
        "labeled": report.LabeledImages(labeled),
        "about": HOSTILE,
    }


@pytest.fixture(scope="module")
def page(folder, parts) -> Path:
    hostile = card(command=f"pretask {HOSTILE}", data=HOSTILE, config={HOSTILE: HOSTILE})
    return report.compose(folder, hostile, **parts)


SECTIONS = ["scores", "puzzles", "neighbors", "map", "attention", "curves", "skipped", "repeat", "next"]


def test_a_page_without_content_has_no_empty_sections(tmp_path):
    text = html.write(
        tmp_path, html.Heading.of_run(tmp_path, card()), html.Verdict("good", "Fine.")
    ).read_text()
    assert re.findall(r'<section id="(\w+)"', text) == ["repeat", "next"]
    assert re.findall(r'href="#(\w+)"', text) == ["repeat", "next"]


def test_the_page_loads_nothing_and_runs_no_script(page):
    text = page.read_text()
    references = re.findall(
        r"""(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^)"']+)""", text
    )
    outside = [a or b for a, b in references if not (a or b).startswith(("#", "data:image/"))]
    assert [r for r in outside if r not in ("x",)] == []  # x: from the hostile text, which is escaped
    assert not re.search(r"<(script|iframe|object|embed|link|base)\b|@import|\son\w+=\"", text)


def test_the_page_says_what_the_method_does(page):
    (about,) = re.findall(r'<p class="about">(.*?)</p>', page.read_text(), re.DOTALL)
    assert entities.unescape(about) == HOSTILE


def test_hostile_names_stay_text_everywhere(page):
    text = page.read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "<b>bold" not in text
    assert text.count("&lt;script&gt;") >= 10  # classes, files, settings, scores, command, curve
    assert "{{ 7*7 }}" in text


def test_every_picture_has_a_text_alternative_and_headings_descend(page):
    text = page.read_text()
    pictures = re.findall(r"<img\b[^>]*>", text)
    assert len(pictures) >= 12
    assert all(re.search(r'alt="[^"]+"', tag) for tag in pictures)
    assert len(re.findall(r'<figure [^>]*role="img" aria-label="[^"]+"', text)) == text.count("<svg ")
    levels = [int(h) for h in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_each_score_is_in_its_column_and_row():
    rows = [*SCORES, scored("rotnet", 61.0, "run", stage="stage3"), scored("raw pixels", 30.0, metric="knn")]
    pooled, staged = html.tables(rows)
    assert (pooled.columns, staged.columns) == (["Linear probe", "kNN"], ["stage3"])
    assert [(r.name, r.own, [c.value for c in r.cells]) for r in pooled.rows] == [
        ("rotnet", True, ["56.1", "–"]),
        ("raw pixels", False, ["39.0", "30.0"]),
        ("untrained encoder", False, ["42.8", "–"]),
    ]
    assert [(r.name, [c.value for c in r.cells]) for r in staged.rows] == [("rotnet", ["61.0"])]
    assert pooled.rows[0].cells[0].spread == "±1.0"


def test_related_scores_share_a_table():
    kinds = {
        "Frozen features": {
            "knn": {},
            "best linear": {"stage": ""},
            "svm": {"stage": ""},
            "text@1": {"k": 1},
        },
        "Linear probe on few labels per class": {"1-shot": {"shots": 1}, "100-shot": {"shots": 100}},
        "Linear probe on few labeled images": {"100 images mAP": {"shots": 100}},
        "Clustering and retrieval": {"nmi": {}, "acc": {}, "recall@1": {"k": 1}},
        "Nonlinear probes on the best feature map": {"mlp": {}, "conv": {}},
        "Fine-tuning": {"finetune 10-shot": {"shots": 10}, "finetune": {}},
        "Transfer: fine-tuned depth": {"rmse": {"task": "fine-tuned depth"}},
        "Label-free measures": {"rankme": {}, "std": {}},
    }
    named = {"1-shot": "few-shot", "100-shot": "few-shot", "100 images mAP": "few-shot mAP",
             "recall@1": "recall", "text@1": "text", "finetune 10-shot": "finetune"}  # fmt: skip
    columns = [(title, more) for some in kinds.values() for title, more in some.items()]
    tables = html.tables(
        [scored("rotnet", 0.1234, "run", named.get(title, title), **more) for title, more in columns]
    )
    assert {t.title: t.columns for t in tables} == {
        title: [html.HEADINGS.get(metric, metric) for metric in some] for title, some in kinds.items()
    }
    assert tables[-1].rows[0].cells[1].value == "0.1234"


def test_the_verdict_names_the_problem_its_first_step_and_a_remedy():
    healthy = [{"step": 0, "state": "healthy"}]
    collapsed = [
        *healthy,
        {"step": 40, "state": "complete collapse"},
        {"step": 80, "state": "complete collapse"},
    ]
    found = report.verdict(card(), log(100), collapsed, SCORES)
    assert found.tone == "bad"
    assert found.sentence.startswith("Complete collapse since step 40; ")
    assert report.verdict(card(), log(100), healthy, SCORES) == html.Verdict(
        "good", "Healthy; linear probe 56.1 ±1.0, untrained 42.8."
    )
    assert report.verdict(card(), log(100), healthy, []).sentence == "Healthy; no scores yet."
    tracks = [replace(SCORES[0], metric="track recall", k=1)]
    assert report.verdict(card(), log(100), healthy, tracks).sentence == "Healthy; no linear probe yet."
    assert report.verdict(card(), log(30), healthy, []).sentence.startswith(
        "Healthy; not finished, at step 30 of 100"
    )
    same = [scored("rotnet", 43.0, "run"), SCORES[2]]
    assert report.verdict(card(), log(100), healthy, same).tone == "warn"


def test_a_run_is_compared_with_its_best_baseline_and_better_only_above_0():
    def sentences(*differences: Difference, own: float = 56.1) -> list[str]:
        rows = [scored("rotnet", own, "run"), scored("rotnet", 61.0, "run", stage="stage3")]
        return [*verdict.sentences(Scores({}, rows, differences, [], {}, {}))]

    weak, strong = (
        difference("raw pixels", 17.1, 15.0, 19.0),
        difference("k-means patches", 4.2, 1.0, 7.4, "patches"),
    )
    assert sentences(weak, strong) == [
        "Linear probe 56.1 %: better than k-means patches, the best baseline, by 4.2 points [1.0, 7.4]."
    ]
    close = difference("k-means patches", 1.2, -0.4, 2.8, "patches")
    assert sentences(weak, close) == [
        "Linear probe 56.1 %: not better than k-means patches, the best baseline (+1.2 points [-0.4, +2.8])."
    ]
    supervised = difference("supervised net", -9.0, -11.0, -7.0, "supervised")
    assert sentences(weak, supervised)[0].startswith("Linear probe 56.1 %: better than raw pixels")
    assert (
        sentences(supervised) == sentences(difference("raw pixels", 1.0, 0.5, 1.5, metric="few-shot")) == []
    )


def test_durations_are_readable():
    assert [html.duration(s) for s in ("41.4 s", "598.2 s", "11100 s", "60 s")] == [
        "41 s", "9 min 58 s", "3 h 5 min", "1 min 0 s",
    ]  # fmt: skip


def test_commands_quote_the_run_folder(tmp_path):
    steps = dict(html.Heading.of_run(tmp_path / "my run; rm -rf", card()).next)
    assert all(f"'{tmp_path}/my run; rm -rf'" in command for command in steps.values())
    assert any("--resume" in command for command in steps.values())


def test_the_puzzles_are_answered_by_the_method_unchanged(parts):
    method, source = parts["method"], parts["source"]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    cells = report.puzzles(method.train(), source, seed=0)
    assert len(cells) == report.MAX_PUZZLES
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    batch = source.__getitems__(Rng(0, "report", "which").permutation(64)[: report.NUM_IMAGES])
    pretext = method.pretext(batch, Rng(0, "report"))
    with torch.no_grad():
        answers = method.logits(pretext).argmax(1)
    order = [
        4 * b + (b + lap) % 4 for lap in range(4) for b in range(report.NUM_IMAGES)
    ]  # as rotnet shows them
    for cell, i in zip(cells, order, strict=True):
        shown = draw.render_panel(Panel("rotated", pretext.image[i]), sheet.MAX_SIDE)
        assert np.array_equal(np.asarray(cell.pictures[0][1]), np.asarray(shown))
        assert cell.captions[0].answer == f"{90 * pretext.rotation[i]}°"
        assert cell.captions[0].predicted == f"{90 * answers[i]}°"


def test_embedded_images_are_spread_over_a_sorted_source(parts):
    index, z, x = report.embed(parts["encoder"], parts["source"], seed=0)
    assert index.sort().values.tolist() == list(range(64))
    assert index[:32].float().mean() > 20  # the map shows the first ones, which must not be of one class
    assert torch.equal(x, parts["source"].__getitems__(index).image)
    with torch.no_grad():
        torch.testing.assert_close(z, parts["encoder"](x / 255)["pool"])


def test_the_gallery_of_a_method_has_a_row_for_each_image(folder, parts, tmp_path):
    from pretask import encoders
    from pretask.methods import sdae

    source = parts["source"]
    method = sdae.Config().build(encoders.build("mlp:width=16", 3, 16), source)
    method.stage.fill_(2)
    shown = report.pictures(method, source, seed=0)
    assert shown is not None
    assert len(shown.rows) == report.NUM_IMAGES
    batch = source.__getitems__(Rng(0, "report", "which").permutation(64)[: report.NUM_IMAGES])
    for cell, picture in zip(shown.rows, sheet.pictures(batch.image), strict=True):
        assert np.array_equal(np.asarray(cell.pictures[0][1]), np.asarray(picture))
        assert len(cell.pictures) == 1 + sdae.SAMPLES
    again = report.pictures(method, source, seed=0)
    assert again is not None
    assert np.array_equal(*(np.asarray(each.rows[3].pictures[2][1]) for each in (shown, again)))
    assert report.pictures(parts["method"], source, seed=0) is None  # rotnet has no gallery
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    text = report.compose(run, card(), method=method, source=source).read_text()
    section = text[text.index('<section id="gallery"') :].partition("</section>")[0]
    assert section.count("<img") == report.NUM_IMAGES * (1 + sdae.SAMPLES)
    assert 'alt="sample 6 of image 8"' in section


def test_a_run_without_its_data_still_has_curves(folder, tmp_path):
    run = tmp_path / "left-over"
    shutil.copytree(folder, run)
    settings = asdict(RunConfig("/nowhere/at/all"))
    runs.write_card(run, cards.card(data="/nowhere/at/all", settings=settings))
    text = report.report(run).read_text()
    assert "/nowhere/at/all" in text
    assert '<section id="curves"' in text
    assert '<section id="puzzles"' not in text


# ---- in a real browser

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def browse(tmp_path: Path, file: Path, *flags: str) -> str:
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH; set CHROMIUM to its path")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *flags, file.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def framed(page: Path, tmp_path: Path, width: int, height: int) -> Path:
    """The page, without scripts, in a frame of that width (windows have a minimum width), which measures it."""
    source = entities.escape(page.read_text())
    file = tmp_path / f"framed-{width}.html"
    measure = (
        "onload = () => { const d = document.querySelector('iframe').contentDocument.documentElement;"
        "document.body.dataset.measured = [d.scrollWidth, d.clientWidth, d.scrollHeight].join(' '); };"
    )
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0"><script>{measure}</script>'
        f'<iframe sandbox="allow-same-origin" style="border:0;width:{width}px;height:{height}px" '
        f'srcdoc="{source}"></iframe>'
    )
    return file


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_width_and_is_not_blank_in_a_real_browser(page, tmp_path, width):
    file = framed(page, tmp_path, width, 1600)
    dom = browse(tmp_path, file, "--dump-dom", f"--window-size={max(width, 500)},1600")
    measured = re.search(r'data-measured="(\d+) (\d+) (\d+)"', dom)
    assert measured is not None
    needed, given, height = map(int, measured.groups())
    assert given == width
    assert needed <= given, f"the page needs {needed} px of {given}"
    assert height > 2500

    shot = tmp_path / "shot.png"
    browse(tmp_path, file, f"--screenshot={shot}", f"--window-size={max(width, 500)},1600")
    seen = np.asarray(Image.open(shot).convert("RGB"))[:, :width]
    bands = [seen[top : top + 200].reshape(-1, 3) for top in range(0, 1600, 200)]
    assert all(len(np.unique(band, axis=0)) > 20 for band in bands), "a stretch of the page is blank"


def test_a_real_browser_finds_all_sections_and_no_script(page, tmp_path):
    dom = browse(tmp_path, page, "--dump-dom")
    assert re.findall(r'<section id="(\w+)"', dom) == SECTIONS
    assert "<script" not in dom
    assert "onerror=" not in re.sub(r">[^<]*<", "><", re.sub(r'"[^"]*"', "", dom))
    assert dom.count("<svg ") == 10  # nine curves and the map
    assert "Healthy; linear probe 56.1 ±1.0, untrained 42.8." in dom
    assert dom.index("Linear probe 56.1 %: better than") < dom.index("<table")
    diagnostics = dom[dom.index("<details>") : dom.index("</details>")]
    assert diagnostics.count("<svg ") == 9  # all curves are folded


def test_a_real_browser_counts_the_guesses_of_a_visitor(tmp_path):
    """Nine pairs; the visitor always chooses the left one. Nothing is loaded, and images are not swapped."""
    rng = np.random.default_rng(0)
    pairs = [
        tuple(Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)) for _ in "ab") for _ in range(9)
    ]
    page = turing.write(tmp_path / "turing.html", pairs, "run <on> photos", 0)
    text = page.read_text()
    known = json.loads(re.search(r"const pairs = (.*);", text)[1])
    left = [one["colorized"] == 0 for one in known]
    assert 0 < sum(left) < 9
    for one, (real, colorized) in zip(known, pairs, strict=True):
        assert one["images"][one["colorized"]] == data_uri(colorized)
        assert one["images"][1 - one["colorized"]] == data_uri(real)
    assert "run &lt;on&gt; photos" in text and "http" not in text

    visit = """<script>
    for (let i = 0; i < 9; i++) {
      const left = document.querySelector('#pair button'), next = document.getElementById('next');
      if (!left.firstElementChild.src.startsWith('data:') || !next.hidden) throw i;
      left.click(); left.click();
      if (next.hidden !== (i === 8)) throw i;
      next.click();
    }
    document.body.dataset.visit = 'over';
    </script></body>"""
    file = tmp_path / "visited.html"
    file.write_text(text.replace("</body>", visit))
    dom = browse(tmp_path, file, "--dump-dom")
    assert 'data-visit="over"' in dom and f'data-tally="{9 - sum(left)} of 9"' in dom
    assert f"in {9 - sum(left)} of 9 pairs" in dom and "That was the last pair" in dom


def test_the_page_follows_the_preferred_color_scheme(page, tmp_path):
    def brightness(preferred: int) -> float:
        shot = tmp_path / f"{preferred}.png"
        flag = f"--blink-settings=preferredColorScheme={preferred}"
        browse(tmp_path, page, flag, f"--screenshot={shot}", "--window-size=800,500")
        return float(np.median(np.asarray(Image.open(shot).convert("L"))))

    assert brightness(0) < 60 < 200 < brightness(1)
