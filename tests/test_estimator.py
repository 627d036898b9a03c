"""PretaskFeatures in scikit-learn: its estimator checks, its pipelines, and the features of the encoder."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from pretask import PretaskFeatures, data, encoders
from pretask.train.run import Run
from pretask.transforms import augment

NO_IMAGE = "its table has 2, 5 or 10 columns, which cannot be reshaped to a square image"
EXPECTED = {
    "check_estimators_overwrite_params": NO_IMAGE,
    "check_estimators_fit_returns_self": NO_IMAGE,
    "check_readonly_memmap_input": NO_IMAGE,
    "check_estimators_dtypes": NO_IMAGE,
    "check_dtype_object": NO_IMAGE,
    "check_fit2d_1sample": NO_IMAGE,
    "check_fit_idempotent": NO_IMAGE,
    "check_fit_check_is_fitted": NO_IMAGE,
    "check_n_features_in": NO_IMAGE,
}


def small(channels, size):
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=4", channels, size)


@pytest.fixture(scope="module")
def gray(run_of, tmp_path_factory):
    return str(run_of(small(1, 8), tmp_path_factory.mktemp("runs") / "gray"))


@pytest.fixture(scope="module")
def run(run_of, tmp_path_factory):
    return str(run_of(small(3, 32), tmp_path_factory.mktemp("runs") / "color"))


@pytest.fixture(scope="module")
def photos():
    """(N, H, W, 3) uint8 and the class of each: one of four shapes."""
    source = data.open_labeled("synthetic:40:32")
    return source.images.image.permute(0, 2, 3, 1).numpy(), source.label.numpy()


class OnTables(PretaskFeatures):
    """Turns any table into images, so that the input of the estimator checks reaches the encoder."""

    def _images(self, X, encoder):
        rows = np.zeros((len(X), 64))
        rows[:, : X.shape[1]] = X / (1 + X)
        return rows.reshape(-1, 8, 8)


def test_all_estimator_checks_pass_if_tables_are_turned_into_images(gray):
    ran = check_estimator(OnTables(gray), on_skip=None)
    assert len(ran) > 40
    assert {c["check_name"] for c in ran if c["status"] != "passed"} <= {
        "check_array_api_input"
    }  # off by default


def test_only_estimator_checks_without_images_fail(gray):
    ran = check_estimator(PretaskFeatures(gray), expected_failed_checks=EXPECTED, on_skip=None)
    assert {c["check_name"] for c in ran if c["status"] == "xfail"} == set(EXPECTED)
    assert len([c for c in ran if c["status"] == "passed"]) > 25


def test_rows_equal_the_features_of_the_encoder(run, photos):
    x = augment.to_float(torch.from_numpy(photos[0]).permute(0, 3, 1, 2))
    with torch.no_grad():
        stages = Run(run).encoder(x)
    pool = PretaskFeatures(run, batch=16).fit_transform(photos[0])
    np.testing.assert_allclose(pool, stages["pool"].numpy(), atol=1e-5)
    maps = PretaskFeatures(run, stage="stage1", grid=1).fit_transform(photos[0])
    np.testing.assert_allclose(maps, stages["stage1"].mean((2, 3)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.astype(np.float64) / 255,
        lambda x: x.astype(np.int64),
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255,
        lambda x: x.reshape(len(x), -1),
        lambda x: x.reshape(len(x), -1) / 255,
    ],
)
def test_the_same_pixels_in_any_form_give_the_same_features(run, photos, form):
    expected = PretaskFeatures(run).fit_transform(photos[0])
    assert np.array_equal(PretaskFeatures(run).fit_transform(form(photos[0])), expected)


def test_images_are_converted_to_the_channels_and_size_of_the_encoder(run, gray, photos):
    digits = photos[0][:, ::2, ::2, 0]  # (N, 16, 16)
    assert PretaskFeatures(run).fit_transform(digits).shape == (40, 16)
    assert PretaskFeatures(gray).fit_transform(photos[0]).shape == (40, 16)
    same = PretaskFeatures(gray).fit_transform(digits)
    assert np.array_equal(PretaskFeatures(gray).fit_transform(digits.reshape(40, -1)), same)


def test_it_works_in_pipelines_grid_search_and_cross_validation(run, photos):
    pipe = make_pipeline(PretaskFeatures(run), LogisticRegression(max_iter=50))
    pipe.fit(*photos)
    again = pickle.loads(pickle.dumps(pipe))
    assert np.array_equal(again.predict(photos[0]), pipe.predict(photos[0]))
    assert cross_val_score(clone(pipe), *photos, cv=2).shape == (2,)
    grid = {"pretaskfeatures__stage": ["stem", "pool"], "logisticregression__C": [0.1, 1.0]}
    search = GridSearchCV(pipe, grid, cv=2).fit(*photos)
    assert search.best_params_["pretaskfeatures__stage"] in ("stem", "pool")
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


def test_a_pickle_needs_no_run_folder(run_of, tmp_path, photos):
    folder = str(run_of(small(3, 32), tmp_path / "run"))
    fitted = PretaskFeatures(folder).fit(photos[0])
    kept, expected = pickle.dumps(fitted), fitted.transform(photos[0])
    (tmp_path / "run").rename(tmp_path / "gone")
    assert np.array_equal(pickle.loads(kept).transform(photos[0]), expected)


def test_a_run_or_an_encoder_gives_the_same_features_as_a_folder(run, photos):
    expected = PretaskFeatures(run).fit_transform(photos[0])
    for given in (Run(run), Run(run).encoder):
        assert np.array_equal(clone(PretaskFeatures(given)).fit_transform(photos[0]), expected)


def test_pandas_output_has_named_columns(run, photos):
    features = PretaskFeatures(run).set_output(transform="pandas").fit(photos[0])
    frame = features.transform(photos[0])
    assert list(frame.columns) == [f"pretaskfeatures{i}" for i in range(16)]
    assert list(features.get_feature_names_out()) == list(frame.columns)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.reshape(len(x), -1)[:, :-1], "a row of 3071 numbers is not a square image"),
        (lambda x: np.where(x > 250, np.nan, x / 255), "NaN"),
    ],
)
def test_input_that_is_not_an_image_is_a_value_error(run, photos, change, said):
    with pytest.raises(ValueError, match=said):
        PretaskFeatures(run).fit_transform(change(photos[0]))


def test_user_errors_become_value_errors(run, photos):
    for estimator, said in (
        (PretaskFeatures(), "needs run="),
        (PretaskFeatures("nowhere"), "no weights at nowhere"),
        (PretaskFeatures(run, stage="pol"), "no stage 'pol'"),
    ):
        with pytest.raises(ValueError, match=said):
            estimator.fit(photos[0])
    with pytest.raises(NotFittedError):
        PretaskFeatures(run).transform(photos[0])
