"""Maps: similar features lie close together, whichever algorithm; many images say how long they take."""

import numpy as np
import pytest
import torch

from pretask.collection import layout
from pretask.rng import Rng


def groups(n: int = 300) -> tuple[torch.Tensor, np.ndarray]:
    group = torch.arange(n) % 3
    return 5 * torch.eye(3, 16)[group] + Rng(0, "groups").normal(n, 16), group.numpy()


def apart(at: np.ndarray, group: np.ndarray) -> float:
    """Distance between the means of groups, relative to their size."""
    means = np.stack([at[group == g].mean(0) for g in range(3)])
    spread = np.mean([at[group == g].std() for g in range(3)])
    return min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (0, 2), (1, 2))) / spread


def test_few_images_are_laid_out_by_t_sne():
    z, group = groups()
    at, how = layout.layout(z)
    assert how == "t-SNE" and at.shape == (300, 2) and apart(at, group) > 2


def test_many_images_are_laid_out_by_umap(monkeypatch):
    pytest.importorskip("umap")
    monkeypatch.setattr(layout, "FEW", 100)
    z, group = groups()
    at, how = layout.layout(z)
    assert how == "UMAP" and at.shape == (300, 2) and apart(at, group) > 2
    assert layout.umap(torch.ones(150, 8)).shape == (150, 2)  # collapsed features


def test_a_long_layout_says_how_long_and_what_is_faster(monkeypatch, capsys):
    monkeypatch.setattr(layout, "FEW", 100)
    monkeypatch.setattr(layout, "PER_IMAGE", 10)
    monkeypatch.setattr(layout, "find_spec", lambda _: None)
    layout.layout(groups()[0])
    assert "t-SNE of 300 images takes about 50 minutes; UMAP is faster: pip install" in " ".join(
        capsys.readouterr().err.split()
    )
