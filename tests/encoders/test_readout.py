"""The features that are used are those that were scored: the same stage, on the same grid."""

import json

import pytest
import torch

from pretask import data, encoders
from pretask.cli import main
from pretask.config import ReadoutConfig
from pretask.encoders.readout import Readout, pool_map
from pretask.evals import features
from pretask.evals.scores import Row, Scores
from pretask.types import UserError
from pretask.workflows.readout import open_readout


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=8", 3, 32)


def test_rows_are_those_that_evaluate_scores(encoder):
    source = data.open_labeled("synthetic:20:32")
    scored = features.embed(encoder, source, progress=False)
    for stage, expected in scored.stages.items():
        found = Readout(encoder.train(), stage).rows(source.images.image)
        torch.testing.assert_close(found, expected.float(), atol=2e-3, rtol=2e-3)
        assert found.shape[1] == Readout(encoder, stage).width
    assert encoder.training


def test_a_grid_is_an_average_over_its_cells(encoder):
    image = data.open("synthetic:3:32").image
    fine = Readout(encoder, "stage2", 8)
    maps = fine.rows(image).view(3, -1, 8, 8)
    coarse = Readout(encoder, "stage2", 2).rows(image).view(3, -1, 2, 2)
    torch.testing.assert_close(coarse, maps.view(3, -1, 2, 4, 2, 4).mean((3, 5)))
    assert str(fine) == "stage2 of resnet_small:width=8, 8 x 8"
    assert str(Readout(encoder)) == "pool of resnet_small:width=8"
    x = encoder.eval()(image.float() / 255)["stage2"]
    torch.testing.assert_close(Readout(encoder, "stage2").eval()(image.float() / 255), pool_map(x))


@pytest.mark.parametrize(
    ("stage", "grid", "said"),
    [
        ("stage9", None, "has no stage 'stage9'; it has stem, stage1, stage2, stage3, pool"),
        ("pool", 2, "pool of resnet_small:width=8 is no map, so it has no --grid"),
        ("stage2", 99, "--grid 99 is finer than stage2"),
    ],
)
def test_what_cannot_be_read_out_is_one_line(encoder, stage, grid, said):
    with pytest.raises(UserError, match=said):
        Readout(encoder, stage, grid)


def scored(run, test: str, stage: str) -> None:
    row = Row(
        "best linear", name="run", role="run", value=1.0, low=None, high=None, n=1, values=[1.0], chosen=[{"stage": stage}],
    )  # fmt: skip
    Scores({"test": test}, [row], [], [], {}, {}).write(run)


def test_best_is_the_stage_that_the_last_evaluation_chose(encoder, run_of, tmp_path, capsys):
    run = run_of(encoder, tmp_path / "run")
    with pytest.raises(UserError, match="--stage best is known after pretask evaluate"):
        open_readout(run, ReadoutConfig("best"))
    with pytest.raises(UserError, match="published weights keep no scores; or name a stage"):
        open_readout(encoder, ReadoutConfig("best"))
    scored(run, "flowers", "stage1")
    assert open_readout(run, ReadoutConfig("best", 2)).stage == "stage1"
    scored(run, "birds", "pool")
    (run / "scores" / "birds.json").touch()
    assert open_readout(run, ReadoutConfig("best", 2)).stage == "pool"  # a vector needs no grid
    assert "stage pool, which scored best in" in capsys.readouterr().err
    out = tmp_path / "f.parquet"
    words = ["embed", str(run), "--data", "synthetic:8:32", "--stage", "best", "--out", str(out)]
    assert main.main(words) == 0 and f"8 rows of {encoder.dim}: pool of" in capsys.readouterr().err


def test_best_agrees_with_evaluate(encoder, run_of, tmp_path):
    run = run_of(encoder, tmp_path / "run")
    assert main.main(["evaluate", str(run), "--data", "synthetic:60:32", "--seeds", "1"]) == 0
    [path] = (run / "scores").glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    [row] = [row for row in rows if row["role"] == "run" and row["metric"] == "best linear"]
    assert open_readout(run, ReadoutConfig("best")).stage == row["chosen"][0]["stage"]
