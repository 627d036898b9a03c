"""What papers and released code say of each recipe, held against what is built."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from pretask import methods

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("fidelity", ROOT / "docs" / "fidelity.py")
fidelity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fidelity)


@pytest.mark.parametrize("name", methods.names())
def test_every_fact_is_met_or_its_difference_has_a_reason(name):
    wrong = [
        f"{line.recipe}: {line.fact} is {line.ours}, theirs {fidelity.theirs(line.entry)}"
        for line in fidelity.lines(name)
        if line.compared and line.same == ("why" in line.entry)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", methods.names())
def test_every_field_of_a_published_recipe_has_an_entry(name):
    for recipe, config in fidelity.published(name).items():
        entries = fidelity.golden(name).get(recipe, {})
        missing = {fact for fact, _ in fidelity.fields(config())} - set(entries)
        assert not missing, f"tests/golden/{name}.json lacks {sorted(missing)} of {recipe}"
        assert any(fact.startswith("encoder") for fact in entries), (
            f"{name}: nothing of the encoder of {recipe}"
        )


@pytest.mark.parametrize("path", sorted(fidelity.GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_an_entry_has_a_source_and_what_was_read_there(path):
    for recipe, entries in json.loads(path.read_text()).items():
        assert recipe in fidelity.published(path.stem)
        for fact, entry in entries.items():
            assert set(entry) <= {"paper", "released", "source", "why", "note"}, fact
            if fidelity.read(entry):
                assert {"paper", "released"} & set(entry), fact
            else:
                assert set(entry) == {"source"}, fact


def test_a_wrong_number_is_seen_and_a_stale_reason_as_well(monkeypatch):
    right = {
        "train.lr": {"released": 0.1, "source": "here"},
        "crop": {"paper": 0.5, "source": "here", "why": "so"},
    }
    for change, seen in [({}, 0), ({"train.lr": {"released": 0.2, "source": "here"}}, 1),
                         ({"crop": {"paper": 1.0, "source": "here", "why": "so"}}, 1)]:  # fmt: skip
        monkeypatch.setattr(fidelity, "golden", lambda name, now=right | change: {"paper": now})
        found = [line for line in fidelity.lines("rotnet") if line.same == ("why" in line.entry)]
        assert len(found) == seen


def test_the_smallest_crops_are_magnified_as_often_as_the_page_says():
    """MAE: a fifth of the area. DINO: views of 224 px of 0.4, and of 96 px of 0.05 of the area (main_dino.py:108, 115)."""
    assert fidelity.magnified(methods.recipe("mae:paper")()) == {"crops": pytest.approx(math.sqrt(5))}
    assert fidelity.magnified(methods.recipe("dino:paper")()) == {
        "crops": pytest.approx(math.sqrt(2.5)),
        "small crops": pytest.approx(96 / (224 * math.sqrt(0.05))),
    }
    assert fidelity.magnified(methods.recipe("jigsaw:paper")()) == {}
    page = fidelity.crops()
    assert "| mae | 2.2 |  |" in page and "| dino | 1.6 | 1.9 |" in page and "cross_domain" not in page
