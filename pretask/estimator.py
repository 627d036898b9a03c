"""A run's features as a scikit-learn transformer: images in, rows out, nothing is fitted."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from pretask.data import in_memory as memory
from pretask.encoders import Encoder
from pretask.train.run import Run
from pretask.types import UserError
from pretask.workflows import embed as embedding


class PretaskFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Frozen features of images, from a run or a pretrained timm model.

        make_pipeline(PretaskFeatures("runs/rotnet-photos-s0"), LogisticRegression()).fit(images, labels)

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W), or flat rows (N, H·W·C) of square ones; uint8, or
    floats from 0 to 1. They are fitted to the encoder's size and channels. `fit` only loads the encoder and
    remembers the shape; a pickle holds the weights, so it needs no run folder.

    `run`: a run's folder, a loaded run, an encoder, or "timm:NAME"
    `stage`: of the encoder; a map is averaged over its places
    `batch`: images at once
    """

    encoder_: Encoder
    n_features_in_: int

    def __init__(
        self, run: str | Path | Run | Encoder | None = None, *, stage: str = "pool", batch: int = 256
    ) -> None:
        self.run = run
        self.stage = stage
        self.batch = batch

    def fit(self, X: Any, y: Any = None) -> "PretaskFeatures":
        """Load the encoder; the images tell their shape, no more, and `y` is not looked at."""
        X = self._valid(X, reset=True)
        if self.run is None:
            raise ValueError("PretaskFeatures needs run=, such as a run's folder or 'timm:resnet18'")
        try:
            encoder = embedding.encoder_of(self.run)
            embedding.check_stage(encoder, self.stage)
            self._images(X[:1], encoder)
        except UserError as mistake:
            raise ValueError(str(mistake)) from None
        self.encoder_ = encoder
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(N, D) float32, in the order of the images."""
        check_is_fitted(self)
        X = self._valid(X, reset=False)
        out = np.empty((len(X), self._n_features_out), np.float32)
        for start in range(0, len(X), self.batch):
            some = slice(start, start + self.batch)
            try:
                source = memory.held(
                    self._images(X[some], self.encoder_), self.encoder_.size, self.encoder_.channels
                )
            except UserError as mistake:
                raise ValueError(str(mistake)) from None
            out[some] = embedding.array(self.encoder_, source, self.stage, self.batch)
        return out

    @property
    def _n_features_out(self) -> int:
        return self.encoder_.widths[self.stage]

    def _valid(self, X: Any, reset: bool) -> np.ndarray:
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().numpy()
        return np.asarray(validate_data(self, X, reset=reset, allow_nd=True, ensure_non_negative=True))

    def _images(self, X: np.ndarray, encoder: Encoder) -> np.ndarray:
        """Flat rows folded to square images, of the encoder's channels or else of 1 or 3."""
        if X.ndim != 2:
            return X
        for channels in (encoder.channels, 1, 3):
            side = math.isqrt(X.shape[1] // channels)
            if side * side * channels == X.shape[1]:
                return X.reshape(len(X), side, side, channels)
        raise ValueError(
            f"a row of {X.shape[1]} numbers is no square image; expected H·W or H·W·3, or images (N, H, W, C)"
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.positive_only = True
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
