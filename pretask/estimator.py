"""A run's features as a scikit-learn transformer: images in, feature rows out."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from pretask import limits
from pretask.config import ReadoutConfig
from pretask.data import in_memory
from pretask.data.base import OpenOptions, canvas_fields
from pretask.data.npz import range_of
from pretask.encoders import Encoder
from pretask.encoders.readout import Readout
from pretask.limits import PositiveInt
from pretask.train.run import Run
from pretask.transforms.ranges import Range
from pretask.types import UserError
from pretask.workflows import embed
from pretask.workflows.readout import open_readout


class PretaskFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Frozen features of images, from a run or a pretrained timm model.

        make_pipeline(PretaskFeatures("runs/rotnet-photos-s0"), LogisticRegression()).fit(images, labels)

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W), or flat rows (N, H·W·C) of square ones; uint8, floats
    from 0 to 1, or other numbers, which are mapped by the run's range, or else by one that `fit` measures. They are
    resized to the encoder's size and channels. Otherwise `fit` only loads the encoder and stores the shape; a pickle
    contains the weights, so it does not need the run's folder.

    `run`: a run's folder, a loaded run, an encoder, "timm:NAME", "ARCH@FILE", or a folder of timm or transformers
    `stage`: stage of the encoder; "best": the one that scored best when the run was evaluated
    `grid`: side of the grid that the stage's map is averaged to; None: the finest one with 4,096 values, as in `evaluate`
    `batch`: images per forward pass
    """

    readout_: Readout
    range_: Range
    n_features_in_: int

    def __init__(
        self,
        run: str | Path | Run | Encoder | None = None,
        *,
        stage: str = "pool",
        grid: int | None = None,
        batch: int = 256,
    ) -> None:
        self.run = run
        self.stage = stage
        self.grid = grid
        self.batch = batch

    def fit(self, X: Any, y: Any = None) -> "PretaskFeatures":
        """Load the encoder; of the images only shape and range are used, and `y` is ignored."""
        X = self._valid(X, reset=True)
        if self.run is None:
            raise ValueError("PretaskFeatures needs run=, such as a run's folder or 'timm:resnet18'")
        try:
            limits.check_value("batch", self.batch, PositiveInt)
            if self.grid is not None:
                limits.check_value("grid", self.grid, PositiveInt)
            readout = open_readout(self.run, ReadoutConfig(self.stage, self.grid))
            held = in_memory.as_array(self._images(X, readout.encoder))
            self.range_ = range_of("the array", held, readout.encoder.range)
        except UserError as mistake:
            raise ValueError(str(mistake)) from None
        self.readout_ = readout
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(N, D) float32, in the order of the images."""
        check_is_fitted(self)
        X, encoder = self._valid(X, reset=False), self.readout_.encoder
        out = np.empty((len(X), self._n_features_out), np.float32)
        for start in range(0, len(X), self.batch):
            some = slice(start, start + self.batch)
            try:
                images = in_memory.as_array(self._images(X[some], encoder))
                source = in_memory.fit_array(
                    images, OpenOptions(**canvas_fields(encoder), progress=False), self.range_
                )
            except UserError as mistake:
                raise ValueError(str(mistake)) from None
            out[some] = embed.array(self.readout_, source, self.batch)
        return out

    @property
    def _n_features_out(self) -> int:
        return self.readout_.width

    def _valid(self, X: Any, reset: bool) -> np.ndarray:
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().numpy()
        return np.asarray(validate_data(self, X, reset=reset, allow_nd=True))

    def _images(self, X: np.ndarray, encoder: Encoder) -> np.ndarray:
        """Flat rows reshaped to square images with the encoder's channels, or else 1 or 3."""
        if X.ndim != 2:
            return X
        for channels in (encoder.channels, 1, 3):
            side = math.isqrt(X.shape[1] // channels)
            if side * side * channels == X.shape[1]:
                return X.reshape(len(X), side, side, channels)
        raise ValueError(
            f"a row of {X.shape[1]} numbers is not a square image; expected H·W or H·W·3, or images (N, H, W, C)"
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
