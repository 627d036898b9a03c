"""Scores of schema 1, of every kind of data, are converted to schema 2."""

import json
from pathlib import Path

import pytest
from old_scores import convert

ROOT = Path(__file__).parents[2]


def row(name: str, of: str, stage: str = "", own: bool = False, **more) -> dict:
    staged = {"stage": stage} if stage else {}
    numbers = {
        "value": 50.5,
        "low": 49.0,
        "high": 52.0,
        "n": 60,
        "values": [50.0, 51.0],
        "chosen": [{"k": 10}, {}],
    }
    return {
        "features": name,
        "own": own,
        "eval": of,
        **staged,
        **numbers,
        "data": "test",
        "seeds": [0, 1],
        **more,
    }


def difference(minus: str, of: str) -> dict:
    return {"features": "rotnet", "minus": minus, "eval": of, "value": 1.5, "low": -1.0, "high": 4.0}


def scores(rows: list[dict], differences: list[dict] = [], task: str = "", **protocol: str) -> dict:  # noqa: B006
    data = {"train": "train", "n_train": 9, "test": "test", "n_test": 60, "classes": ["a", "b"]}
    data |= {"task": task} if task else {}
    return {"schema": 1, "data": data, "protocol": protocol, "rows": rows, "differences": differences,
            "skipped": ["why"], "seconds": {"rotnet": 1.5}, "records": {"test": {"found": 60}}}  # fmt: skip


EVALS = {
    "knn": {"metric": "knn"},
    "best linear": {"metric": "best linear"},
    "10-shot": {"metric": "few-shot", "shots": 10},
    "recall@8": {"metric": "recall", "k": 8},
    "text@10": {"metric": "text", "k": 10},
    "image@1": {"metric": "image", "k": 1},
    "partner@5": {"metric": "track recall", "k": 5},
    "finetune 100-shot": {"metric": "finetune", "shots": 100},
    "finetune": {"metric": "finetune"},
    "linear mAP": {"metric": "linear mAP"},
    "1000 images mAP": {"metric": "few-shot mAP", "shots": 1000},
    "finetune 100 images mAP": {"metric": "finetune mAP", "shots": 100},
    "finetune mAP": {"metric": "finetune mAP"},
}


@pytest.mark.parametrize("of", EVALS)
def test_the_name_of_an_evaluation_becomes_a_metric_with_its_number(of):
    (found,) = convert(scores([row("rotnet", of, own=True)]))["rows"]
    assert {key: found.get(key) for key in ("metric", "shots", "k")} == {"shots": None, "k": None} | EVALS[of]
    kept = {key: value for key, value in row("rotnet", of).items() if key not in ("features", "own", "eval")}
    assert {key: found[key] for key in kept} == kept
    assert not {"features", "own", "eval"} & found.keys()


def test_the_name_of_a_row_becomes_a_role():
    names = {"run": "rotnet", "published": "timm:resnet18", "untrained": "untrained resnet18", "pixels": "raw pixels",
             "patches": "k-means patches", "supervised": "supervised resnet18"}  # fmt: skip
    rows = [row(name, "knn", "pool", own=role in ("run", "published")) for role, name in names.items()]
    found = convert(scores(rows))["rows"]
    assert {each["role"]: each["name"] for each in found} == names
    with pytest.raises(ValueError, match="'a stranger', which is not a baseline"):
        convert(scores([row("a stranger", "knn")]))


def test_a_difference_gets_the_stage_and_the_role_of_its_baseline():
    given = [
        difference("untrained net", "knn"),
        difference("raw pixels", "best linear"),
        difference("k-means patches", "text@1"),
    ]
    found = convert(scores([], given))["differences"]
    assert [(d["metric"], d.get("stage"), d.get("k"), d["minus_role"]) for d in found] == [
        ("knn", "pool", None, "untrained"),
        ("best linear", None, None, "pixels"),
        ("text", "pool", 1, "patches"),
    ]
    assert all((d["name"], d["value"], d["low"], d["high"]) == ("rotnet", 1.5, -1.0, 4.0) for d in found)


def test_the_task_of_a_transfer_becomes_a_field_and_a_constant_prediction_the_floor():
    task = "fine-tuned depth"
    rows = [row("rotnet", f"{task} absrel", own=True), row("one depth everywhere", f"{task} absrel")]
    sentences = {task: "how", f"{task} absrel": "what", "interval": "95 %"}
    found = convert(scores(rows, [difference("one depth everywhere", f"{task} absrel")], task, **sentences))
    assert [(r["task"], r["metric"], r["role"]) for r in found["rows"]] == [
        (task, "absrel", "run"), (task, "absrel", "floor")
    ]  # fmt: skip
    assert found["protocol"] == {task: "how", "absrel": "what", "interval": "95 %"}
    assert (found["differences"][0]["metric"], found["differences"][0]["minus_role"]) == ("absrel", "floor")


def test_rows_of_a_study_get_a_role_by_their_question():
    about = {
        key: row("x", "knn", "pool")[key]
        for key in ("value", "low", "high", "n", "values", "chosen", "stage")
    }
    own = {"features": "rotnet", "own": True, "eval": "knn", **about}
    other = {"features": "supervised net", "own": False, "eval": "linear", **about}
    fresh = {"features": "untrained net", "own": False, "eval": "finetune", **about}
    old = {"schema": 1, "method": "rotnet", "data": {"test": "test"}, "protocol": {}, "cautions": [], "answers": {
        "labels": {"rows": [{"share": 0.0, "images": 0} | fresh], "skipped": [], "seeds": [3], "seconds": 1.0},
        "supervised": {"rows": [{"axis": "images", "at": 9} | each for each in (own, other)], "skipped": [], "seeds": [3], "seconds": 1.0},
    }}  # fmt: skip
    new = convert(old)
    (few,), (run, supervised) = (new["answers"][question]["rows"] for question in ("labels", "supervised"))
    assert (few["role"], few["metric"], few["fraction"], few["images"]) == ("untrained", "finetune", 0.0, 0)
    assert (run["role"], supervised["role"], run["axis"], run["at"]) == ("run", "supervised", "images", 9)
    assert all((each["data"], each["seeds"]) == ("test", [3]) for each in (few, run, supervised))
    assert new["schema"] == 2 and new["method"] == "rotnet"


def test_other_fields_and_the_input_are_unchanged():
    old = scores([row("rotnet", "knn", "pool", own=True)], [difference("raw pixels", "knn")], knn="cosine")
    before = json.dumps(old)
    new = convert(old)
    assert json.dumps(old) == before and new["schema"] == 2
    rest = ("data", "protocol", "skipped", "seconds", "records")
    assert {key: new[key] for key in rest} == {key: old[key] for key in rest}
    assert convert(new) == new


@pytest.mark.parametrize("document", [{"schema": 3, "rows": []}, {"rows": []}, {"schema": 1, "findings": []}])
def test_documents_without_scores_of_the_old_schema_are_refused(document):
    with pytest.raises(ValueError, match="expected scores or a study of schema 1"):
        convert(document)


def test_converted_scores_are_read_by_the_package(tmp_path):
    from pretask.evals import scores as kept

    old = scores([row("rotnet", "5-shot", "pool", own=True)], [difference("raw pixels", "knn")])
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "test.json").write_text(json.dumps(convert(old)))
    (found,) = kept.read_all(tmp_path)
    assert found.get("run", "few-shot", shots=5) == found.rows[0]
    assert json.loads(found.to_json()) == convert(old)


REAL = sorted((Path(__file__).parent / "documents").glob("*.json"))
"""written by older versions, from docs/results; shortened"""


def numbers(x: object) -> list[float]:
    if isinstance(x, dict | list):
        return [n for each in (x.values() if isinstance(x, dict) else x) for n in numbers(each)]
    return [x] if isinstance(x, int | float) and not isinstance(x, bool) else []


@pytest.mark.parametrize("path", REAL, ids=[path.stem for path in REAL])
def test_real_documents_of_every_kind_are_read_and_no_number_is_lost(path, tmp_path):
    from pretask.evals import scores as kept
    from pretask.workflows import study

    old = json.loads(path.read_text())
    new = convert(old)
    folder = tmp_path / ("study" if "answers" in old else "scores")
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps(new))
    if "answers" in old:
        (read,) = study.read(tmp_path)
        pairs = [
            (old["answers"][question]["rows"], [row.to_json() for row in answer.rows])
            for question, answer in read.answers.items()
        ]
    else:
        (scored,) = kept.read_all(tmp_path)
        pairs = [
            (old[part], [row.to_json() for row in getattr(scored, part)]) for part in ("rows", "differences")
        ]
        assert scored.rows[0].role == "run" and json.loads(scored.to_json())["rows"] == new["rows"]
    assert not any("partner" in key for key in new["protocol"])
    for before, after in pairs:
        assert len(before) == len(after) > 0
        for one, other in zip(before, after, strict=True):
            added = [other[key] for key in ("shots", "k") if key in other]
            added += other["seeds"] if "answers" in old else []
            assert sorted(numbers(one) + added) == sorted(numbers(other))
            assert one["features"] == other["name"] and one["value"] == other["value"]
