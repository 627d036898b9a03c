"""The pages are correct: commands parse, links resolve, every method and every hyperparameter is there."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image, ImageChops

from pretask import methods
from pretask.cli import commands, main
from pretask.limits import flag
from pretask.workflows import preview

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").rglob("index.md")),
]
RESULTS = ROOT / "docs" / "results"
PLANTED = "upside_down"
"""the tutorial's method, put into a folder that the registry walks: a new file with no edit elsewhere"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder with one more method, known to the registry."""
    folder = tmp_path_factory.mktemp("methods")
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    (folder / f"{PLANTED}.py").write_text(re.findall(r"```python\n(.*?)```", tutorial, re.DOTALL)[0])
    methods.__path__.append(str(folder))
    yield folder
    methods.__path__.remove(str(folder))


@pytest.fixture(scope="module")
def hooks(planted):
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(hooks, tmp_path_factory):
    """The built site, with the planted method in it."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    out = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        assume_fidelity(hooks.fidelity, patch)
        drawn = preview.preview  # one puzzle each, not eight; viz/test_puzzle.py draws more
        patch.setattr(preview, "preview", lambda data, config, title, rows: drawn(data, config, title, 1))
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out), strict=True))
    return out


class Unbuilt(Exception):
    """A fact needs a network."""


def assume_fidelity(fidelity, patch):
    """The pages show what test_fidelity.py finds, without building the large networks of the papers a second time: the recorded
    value, or another one where a reason for a difference is recorded."""
    plain = fidelity.ours

    def unbuilt(config):
        raise Unbuilt

    def ours(config, fact, entry):
        try:
            return plain(config, fact, entry)
        except Unbuilt:
            return "another value" if "why" in entry else fidelity.theirs(entry)

    patch.setattr(fidelity, "built", unbuilt)
    patch.setattr(fidelity, "ours", ours)
    patch.setattr(fidelity, "drawn", lambda config, entry: 1)


# ---- commands


def lines(text):
    """Every command line of pretask in a page's blocks, and every one between backticks that has flags or a subject."""
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [m[1] for line in joined if (m := re.match(r"\s*(?:\$ )?(?:torchrun .* -m )?pretask (.*)", line))]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return found + [" ".join(m.split()) for m in re.findall(r"`pretask\s([^`]+)`", prose)]


COMMANDS = [(page.name, line) for page in PAGES for line in lines(page.read_text())]


class Parsed(Exception):
    """The words were understood; nothing is done with them."""


@pytest.fixture
def understood(monkeypatch, tmp_path, planted):
    """Words -> whether the real command line parses them; it stops where a verb would begin its work."""
    import tyro

    real = tyro.cli

    def stop(*arguments, **options):
        real(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", stop)
    monkeypatch.chdir(tmp_path)
    Path("docs").symlink_to(ROOT / "docs")  # the pages speak from the root of a checkout
    for name in ("upside_down.py", "my_puzzle.py"):
        Path(name).write_text((planted / f"{PLANTED}.py").read_text())

    def check(line):
        words = [{"METHOD": "rotnet"}.get(word, word) for word in shlex.split(line, comments=True)]
        if len(words) == 1:
            return words[0] in commands.names()
        try:
            return main.main(words) == 0
        except Parsed:
            return True
        except SystemExit as end:
            return end.code == 0

    return check


def test_the_pages_show_enough_commands_to_be_worth_testing():
    assert {"README.md", "index.md", "scaling.md", "evaluation.md"} <= {page for page, _ in COMMANDS}
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "line"), dict.fromkeys(COMMANDS))
def test_a_command_on_a_page_is_one_that_pretask_knows(page, line, understood, capsys):
    assert understood(line), capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "pretrian rotnet --data x",
        "pretrain rotnet --data x --epoch 3",
        "list --jsn",
        "pretrai",
        "export r --to tf",
    ],
)
def test_a_command_with_a_mistake_is_seen(line, understood):
    assert not understood(line)


def test_the_commands_of_the_methods_own_pages_are_known(hooks, understood, capsys, monkeypatch):
    monkeypatch.setattr(
        hooks.fidelity, "table", lambda name: ""
    )  # has none, and builds every published network
    for name in methods.names():
        shown = lines(hooks.page(name))
        assert len(shown) >= 4
        assert all(map(understood, shown)), capsys.readouterr().err


def test_every_flag_on_the_page_of_commands_is_one_that_a_command_has(capsys):
    for words in [["pretrain", "rotnet"], ["pretrain", "distill"], *([name] for name in commands.names())]:
        with contextlib.suppress(SystemExit):
            main.main([*words, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    shown = set(re.findall(r"--[a-z][a-z-]*", (ROOT / "docs" / "commands.md").read_text())) - {"--help"}
    assert len(shown) > 20
    assert shown <= known


def test_every_verb_is_on_the_pages():
    shown = {line.split()[0] for _, line in COMMANDS}
    assert shown >= set(commands.names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_can_be_read(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(block, page.name, "exec")


def test_the_example_of_keyed_randomness_holds():
    page = (ROOT / "docs" / "reproducibility.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(block, {})


# ---- links


GENERATED = {"methods/index.md", "fidelity.md", *(f"methods/{name}.md" for name in methods.names())}
"""pages of the site that docs/hooks.py makes"""


def broken(page):
    """Relative targets of a Markdown page that do not exist."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [t.partition("#")[0] for t in targets if not urlsplit(t).scheme]
    return [t for t in local if t and t not in GENERATED and not (page.parent / t).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_exist(page):
    assert broken(page) == []


def test_a_link_to_nowhere_is_seen(tmp_path):
    (tmp_path / "there.md").write_text("")
    (tmp_path / "page.md").write_text(
        "[a](there.md#x) [b](gone.md) ![c](gone.png) [d](https://example.org/gone) [e](methods/rotnet.md) [f](methods/gone.md)"
    )
    assert broken(tmp_path / "page.md") == ["gone.md", "gone.png", "methods/gone.md"]


class Targets(HTMLParser):
    """What a built page points to, and what can be pointed to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        self.links += [given[a] for a in ("href", "src") if given.get(a)]


def test_every_link_of_the_built_site_leads_somewhere(site):
    pages = {path: Targets(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    gone = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].ids
            ):
                gone.append((str(path.relative_to(site)), link))
    assert gone == []


def test_nothing_of_the_site_is_fetched_from_elsewhere(site):
    fetched = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?:')
    assert [p for p in site.rglob("*.html") if fetched.search(p.read_text())] == []


# ---- methods and hyperparameters


def test_every_method_has_its_page_picture_and_place_with_no_edit_elsewhere(site):
    home = (site / "index.html").read_text()
    assert PLANTED in methods.names()
    for name in methods.names():
        assert (site / "methods" / name / "index.html").is_file()
        assert (site / "methods" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"methods/{name}/" in home


@pytest.mark.parametrize("name", methods.names())
def test_the_readme_names_every_method(name):
    assert f"| `{name}` |" in (ROOT / "README.md").read_text()


def fields(config):
    """Names and values of all fields, nested ones too."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield from fields(value) if dataclasses.is_dataclass(value) else [(field.name, value)]


def test_the_hyperparameter_table_has_value_and_description_of_every_field_of_every_recipe(hooks):
    for name in methods.names():
        rows = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in hooks.hyperparameters(name).splitlines()]
        table = {row[0].strip("`"): row[1:] for row in rows}
        for column, (_, config) in enumerate(methods.recipes(methods.module(name)).items()):
            for field, value in [*fields(config()), *fields(config.train), ("encoder", config.encoder)]:
                shown, meaning = table[flag(field)][column], table[flag(field)][-1]
                written = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                assert shown.strip("*") == (written or "none")
                assert len(meaning) > 3, f"{name} does not describe {field}"


def test_a_recipes_own_description_is_shown_beside_the_inherited_one(hooks):
    [row] = [row for row in hooks.hyperparameters("rotnet").splitlines() if row.startswith("| `--crop`")]
    assert "smallest fraction of the image's area" in row
    assert "*paper*: the whole image" in row
    assert "**1.0**" in row
    assert "**0.3**" not in row


# ---- results


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(RESULTS))
    return importlib.import_module("page")


def generated(folder):
    """Relative path -> content of all pages of results, and the texts in the charts, whose other content depends on matplotlib."""
    pages = {path.relative_to(folder): path.read_text() for path in folder.rglob("index.md")}
    charts = folder.rglob("*.svg")
    return pages | {
        path.relative_to(folder): re.findall("<!-- (.*) -->", path.read_text()) for path in charts
    }


def test_the_pages_of_results_show_what_their_folders_hold(page, tmp_path):
    written = shutil.ignore_patterns("index.md", "*.svg", "*.py", "__pycache__")
    shutil.copytree(RESULTS, tmp_path, ignore=written, dirs_exist_ok=True)
    page.write(tmp_path)
    found = generated(tmp_path)
    assert found == generated(RESULTS)
    assert len(found) > 100


def test_every_experiment_is_in_one_table_of_results_and_every_chart_is_shown():
    text = (RESULTS / "index.md").read_text()
    experiments = [path.parent.name for path in RESULTS.glob("*/scores.json")]
    linked = re.findall(r"^\| \[[^]]+\]\(([^)/]+)/index.md\)", text, re.MULTILINE)
    assert sorted(linked) == sorted(experiments)
    charts = re.findall(r"\((charts/[^)]+)\)", text)
    assert sorted(charts) == sorted(f"charts/{path.name}" for path in (RESULTS / "charts").iterdir())
    assert len(charts) == len(re.findall("^## ", text, re.MULTILINE)) - 1  # "Other studies" has none


def test_experiments_in_one_table_share_their_protocol():
    """Written out here, from the stored files, independently of the grouping."""
    sections = (RESULTS / "index.md").read_text().split("\n## ")[1:-1]
    seen = []
    for section in sections:
        shared = set()
        for name in re.findall(r"\]\(([^)/]+)/index.md\) \| \d", section):
            data = json.loads((RESULTS / name / "scores.json").read_text())["data"]
            card = json.loads((RESULTS / name / "run-s0.json").read_text())
            of_data = [data.get(key) for key in ("task", "train", "n_train", "test", "n_test")]
            shared.add((*of_data, *(card[key] for key in ("threads", "precision", "device"))))
        (one,) = shared
        seen.append(one)
    assert len(set(seen)) == len(seen)


def test_the_table_of_the_readme_is_what_evaluate_prints():
    """The first two blocks of the table, for the runs in the results."""
    from rich.console import Console

    from pretask.evals import scores
    from pretask.reports import table

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table.render(scores.read(RESULTS / "simclr-cifar10" / "scores.json")))
    printed = [line.rstrip() for line in console.export_text().splitlines()]
    blocks = "\n".join(printed).split("\n\n")[:2]
    (shown,) = re.findall(r"```text\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown == "\n\n".join(blocks)


def test_the_chart_of_the_readme_is_drawn_from_the_results(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    bars = importlib.import_module("bars")
    drawn = bars.PICTURE.read_text()
    monkeypatch.setattr(bars, "PICTURE", tmp_path / "accuracy.svg")
    bars.main()
    numbers = [re.findall(r"<!-- (\d+) -->", text) for text in (drawn, bars.PICTURE.read_text())]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) >= 16


def test_what_is_said_of_recognized_paintings_is_what_was_measured():
    found = json.loads((RESULTS / "recognition" / "imagenette.json").read_text())
    table = []
    for row in found["rows"]:
        above = "{value:.1f} [{low:.1f}, {high:.1f}]".format(**row["above_gray"]).replace("-", "−")
        cells = [row["images"], f"{row['top1']['value']:.1f}", "" if above == "0.0 [0.0, 0.0]" else above]
        table.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    assert "\n".join(table) in (ROOT / "docs" / "colorize.md").read_text()


# ---- what the project says of itself


def test_version_license_and_authors_agree():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert str(cited["version"]) == project["version"]
    assert cited["license"] == project["license"]
    assert [author["name"] for author in cited["authors"]] == [
        author["name"] for author in project["authors"]
    ]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_file_has_what_its_format_asks_for():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    known = {"cff-version", "message", "type", "title", "version", "license", "authors", "keywords"}
    assert set(cited) <= known  # the format allows no others but those it names


def test_the_picture_of_the_readme_is_small_and_shows_six_puzzles_on_photographs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    poster = importlib.import_module("poster")
    drawn = poster.render_poster()
    kept = Image.open(poster.HERE)
    assert poster.HERE.stat().st_size < 300_000
    assert len({shown.method for shown in poster.EXAMPLES}) == 6
    assert kept.size == drawn.size
    assert kept.width >= 1200
    apart = ImageChops.difference(kept.convert("L"), drawn.convert("L"))
    assert np.asarray(apart).mean() < 3  # as the file keeps it
    edge = np.asarray(drawn)[:, -poster.MARGIN :]
    assert (edge == 255).all()  # no caption is longer than its row
    for page in ("README.md", "docs/index.md"):
        (words,) = re.findall(r"!\[([^]]+)\]\([^)]*puzzles.webp\)", (ROOT / page).read_text())
        assert len(words) > 100
