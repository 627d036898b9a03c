"""Every recipe against the facts recorded from papers and released code."""

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
def test_every_fact_matches_or_its_difference_has_a_reason(name):
    wrong = [
        f"{line.recipe}: {line.fact} is {line.ours}, theirs {fidelity.theirs(line.entry)}"
        for line in fidelity.known(name)
        if line.compared and line.same == ("why" in line.entry)
    ]
    assert not wrong, "\n".join(wrong)
    shown = fidelity.table(name)
    for line in filter(fidelity.read, (line.entry for line in fidelity.known(name))):
        assert line["source"].replace("|", "\\|") in shown


@pytest.mark.parametrize("name", methods.names())
def test_every_field_of_a_published_recipe_has_an_entry(name):
    for recipe, config in fidelity.published(name).items():
        entries = fidelity.golden(name).get(recipe, {})
        needed = {fact for fact, value in fidelity.fields(config()) if fidelity.needs_source(fact, value)}
        missing = needed - set(entries)
        assert not missing, f"tests/golden/{name}.json lacks {sorted(missing)} of {recipe}"
        assert any(fact.startswith("encoder") for fact in entries), (
            f"{name}: no fact about the encoder of {recipe}"
        )
        assert "groups" in entries, f"{name}: no fact about the parameter groups of {recipe}"


@pytest.mark.parametrize("path", sorted(fidelity.GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_every_entry_has_a_source_and_what_was_read_there(path):
    for recipe, entries in json.loads(path.read_text()).items():
        assert recipe in fidelity.published(path.stem)
        for fact, entry in entries.items():
            assert set(entry) <= {"paper", "released", "of", "source", "why", "note"}, fact
            if fidelity.read(entry):
                assert {"paper", "released"} & set(entry), fact
            else:
                assert set(entry) == {"source"}, fact


def test_wrong_values_and_stale_reasons_are_detected(monkeypatch):
    right = {
        "train.lr": {"released": 0.1, "source": "here"},
        "crop": {"paper": 0.5, "source": "here", "why": "so"},
    }
    for change, seen in [({}, 0), ({"train.lr": {"released": 0.2, "source": "here"}}, 1),
                         ({"crop": {"paper": 1.0, "source": "here", "why": "so"}}, 1)]:  # fmt: skip
        monkeypatch.setattr(fidelity, "golden", lambda name, now=right | change: {"paper": now})
        found = [line for line in fidelity.lines("rotnet") if line.same == ("why" in line.entry)]
        assert len(found) == seen


def test_the_page_has_the_magnification_of_the_smallest_crops():
    """MAE: a fifth of the area. DINO: 0.4 of the area at 224 px, and 0.05 at 96 px (main_dino.py:108, 115)."""
    assert fidelity.magnified(methods.recipe("mae:paper")()) == {"crops": pytest.approx(math.sqrt(5))}
    assert fidelity.magnified(methods.recipe("dino:paper")()) == {
        "crops": pytest.approx(math.sqrt(2.5)),
        "small crops": pytest.approx(96 / (224 * math.sqrt(0.05))),
    }
    assert fidelity.magnified(methods.recipe("jigsaw:paper")()) == {}
    page = fidelity.crops()
    assert "| mae | 2.2 |  |" in page and "| dino | 1.6 | 1.9 |" in page and "cross_domain" not in page


def test_parameter_groups_layers_and_initial_weights_are_compared(monkeypatch):
    """For rotnet: a missing group, other layers and other initial weights are detected; the true ones match."""
    decayed = {"lr": 0.1, "weight_decay": 5e-4}
    conv1 = {"of": "encoder.net.conv1.0.0.weight", "source": "here"}
    begins = (
        ["conv", "bn", "relu"] * 3
        + ["pool"]
        + ["conv", "bn", "relu"] * 3
        + ["mean"]
        + ["conv", "bn", "relu"] * 6
    )
    facts = {
        "groups": (
            [{"of": "matrices"} | decayed],
            [{"of": "matrices"} | decayed, {"of": "vectors"} | decayed],
        ),
        "encoder.layers": (begins[1:], begins),
        "init.conv": (0.1, (3 * 75) ** -0.5),
    }
    for fact, (wrong, right) in facts.items():
        for value in (wrong, right):
            entry = {"released": value, "source": "here"} | (conv1 if fact == "init.conv" else {})
            monkeypatch.setattr(fidelity, "golden", lambda name, now=entry, fact=fact: {"paper": {fact: now}})
            [line] = fidelity.lines("rotnet")
            assert line.compared
            assert line.same == (value is right), fact
    wrong = [{"of": "vectors", "lr": 0.2, "weight_decay": 5e-4}, {"of": "all"} | decayed]
    monkeypatch.setattr(
        fidelity, "golden", lambda name: {"paper": {"groups": {"released": wrong, "source": "here"}}}
    )
    [line] = fidelity.lines("rotnet")
    assert not line.same
    assert line.ours == [{"of": "vectors"} | decayed, {"of": "all"} | decayed]
