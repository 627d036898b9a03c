"""Words that the project has retired in favor of the field's own terms."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pretask", "docs", "tests", "bench", "scripts")
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
TEXTS = (".py", ".md", ".j2", ".yml", ".toml")

RETIRED = {
    r"foresee\w*|foreseen": "predict",
    r"knobs?": "hyperparameter, config",
    r"told": "given, reported, named",
    r"taught|unteach\w*": "trained",
    r"judge|judges|judged|judging": "evaluate, score; discriminator",
    r"sharp": "temperature; sharper and sharpen are words of the field",
    r"clues?": "shortcut",
    r"riddles?": "puzzle",
    r"rivals?": "neighboring cluster",
    r"partner@K|partners?": "match, counterpart, paired image",
    r"beheld|wherein|whereof|thereof": "where, of which",
    r"what (it|that|they|features) (is|was|are|were) worth": "how much it improves accuracy",
    r"a thing of": "an object",
    r"as it were": "",
    r"cost nothing but themselves": "are skipped and do not stop the run",
    r"luck of the draw": "choice of labeled examples",
    r"sisters?": "runs with other seeds",
    r"teacher_of|OfTwoViews|OfCrops|told_by|without_clue\w*": "ema_copy, TwoViewMethod, MultiCropMethod",
    r"data sets?": "dataset",
    r"pip install '?pretask(?!\[scenes\] @)": "pip install '.[EXTRA]' or errors.install_command; the name on the index is not ours",
}
"""pattern of whole words -> what to write instead"""

EXCEPTIONS = {
    "tests/test_vocabulary.py": "this list",
    "scripts/": "the names that older runs were written with",
    "tests/scripts/": "documents of older runs",
    "tests/old_runs/": "older runs",
}
"""file or folder -> why it may hold retired words"""
STREAMS = re.compile(r'"clues?"')
"""names of random streams: another name would change every number"""


def texts() -> list[Path]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + [
        ROOT / name for name in PAGES
    ]
    return [
        path
        for path in paths
        if path.suffix in TEXTS and not path.relative_to(ROOT).as_posix().startswith(tuple(EXCEPTIONS))
    ]


def found(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, retired word and what to write instead. Parts of identifiers count as words: `judge_pair`, `Judge`."""
    for number, line in enumerate(text.splitlines(), 1):
        line = STREAMS.sub("", line)
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", line)
        for pattern, instead in RETIRED.items():
            for searched in {line, words}:
                if match := re.search(rf"\b(?:{pattern})\b", searched, re.IGNORECASE):
                    yield number, match[0], instead
                    break


def test_no_retired_word_is_left():
    left = [
        f"{path.relative_to(ROOT)}:{number}: {word!r}; write {instead}"
        for path in texts()
        for number, word, instead in found(path.read_text(encoding="utf-8"))
    ]
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "line",
    [
        "def judge_pairs():",
        "class Judge:",
        "what the network is told",
        "isTold()",
        "two knobs",
        "A THING OF",
        "pip install 'pretask[hf]'",
    ],
)
def test_retired_words_are_found_in_prose_and_identifiers(line: str):
    assert list(found(line))


@pytest.mark.parametrize(
    "line", ["a sharper image", "sharpening", "soldered", 'rng.child("clue")', "datasets"]
)
def test_other_words_are_allowed(line: str):
    assert not list(found(line))
