"""Score rows, their JSON, and files with another schema."""

import json

import pytest

from pretask.cli.main import main
from pretask.evals import scores
from pretask.evals.scores import Difference, Measurement, Row, Scores
from pretask.types import UserError
from pretask.workflows import study

ROW = Row("knn", "pool", name="rotnet", role="run", value=50.0, low=48.0, high=52.0, n=60, values=[50.0],
          chosen=[{"k": 10}], data="x", seeds=[0])  # fmt: skip
OTHER = Row("few-shot", "pool", 10, name="raw pixels", role="pixels", value=1.0, low=None, high=None, n=60, values=[1.0],
            chosen=[{}], data="x", seeds=[0])  # fmt: skip
LESS = Difference(
    "knn", "pool", name="rotnet", minus="raw pixels", minus_role="pixels", value=2.0, low=1.0, high=3.0
)
ALL = Scores({"test": "x"}, [ROW, OTHER], [LESS], ["why"], {"rotnet": 1.5}, {"knn": "cosine"})


def test_scores_are_read_as_they_were_written(tmp_path):
    path = ALL.write(tmp_path)
    assert scores.read(path) == ALL and scores.read_all(tmp_path) == [ALL]


def test_the_json_of_a_row_omits_fields_without_a_value():
    assert ROW.to_json() == {
        "metric": "knn", "stage": "pool", "name": "rotnet", "role": "run", "value": 50.0, "low": 48.0, "high": 52.0,
        "n": 60, "values": [50.0], "chosen": [{"k": 10}], "data": "x", "seeds": [0],
    }  # fmt: skip
    assert OTHER.to_json()["shots"] == 10 and OTHER.to_json()["low"] is None  # a number without an interval
    task = study.StudyRow(**vars(ROW), fraction=0.0, images=0).to_json()
    assert (task["fraction"], task["images"]) == (0.0, 0) and not {"axis", "at", "task"} & task.keys()


def test_rows_are_found_by_role_or_name_and_measurement():
    assert ALL.get("run", "knn") is ROW and ALL.get("pixels", "few-shot", shots=10) is OTHER
    assert ALL.get("pixels", "few-shot") is None and ALL.get("run", "knn", "stage1") is None
    assert (
        ALL.find("rotnet", Measurement("knn", "pool")) is ROW
        and ALL.find("rotnet", Measurement("knn")) is None
    )
    assert ALL.names == ["rotnet", "raw pixels"]


@pytest.mark.parametrize(
    ("what", "title"),
    [
        (Measurement("knn", "pool"), "knn"),
        (Measurement("few-shot", "pool", shots=5), "5-shot"),
        (Measurement("few-shot mAP", "pool", shots=100), "100 images mAP"),
        (Measurement("finetune", shots=10), "finetune 10-shot"),
        (Measurement("finetune mAP", shots=100), "finetune 100 images mAP"),
        (Measurement("finetune"), "finetune"),
        (Measurement("recall", "pool", k=4), "recall@4"),
    ],
)
def test_a_title_is_made_of_metric_and_number(what, title):
    assert what.title == title


@pytest.mark.parametrize(
    ("content", "found"),
    [({"schema": 1, "rows": []}, 1), ({"schema": 3}, 3), ({"rows": []}, None), ([], None)],
)
@pytest.mark.parametrize("folder", ["scores", "study"])
def test_another_schema_is_a_one_line_error_that_names_the_conversion(content, found, folder, tmp_path):
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        (scores.read_all if folder == "scores" else study.read)(tmp_path)
    assert str(error.value) == (
        f"{path} has schema {found}, expected 2; scripts/convert_runs.py RUN converts runs made earlier"
    )


def test_the_report_of_a_run_with_old_scores_is_a_one_line_error_with_code_2(tmp_path, capsys):
    run = str(tmp_path / "run")
    words = ["--encoder", "resnet_small:width=8", "--batch", "16", "--steps", "2", "--out", run]
    assert main(["pretrain", "rotnet", "--data", "synthetic:64:16", *words]) == 0
    path = ALL.write(tmp_path / "run")
    path.write_text(json.dumps({"schema": 1, "rows": []}))
    capsys.readouterr()
    assert main(["report", run]) == 2
    error_line = capsys.readouterr().err.strip()
    assert error_line.splitlines()[-1].startswith(f"pretask: {path} has schema 1, expected 2")
