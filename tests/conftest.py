"""Where the real data is, and small made-up data for everything else."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("PRETASK_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data():
    """shared_data("cifar10", "cifar10_test.npz") -> its path, or a skip that says where it was looked for."""

    def find(*parts: str) -> Path:
        path = DATA.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"real data not found at {path}; set PRETASK_DATA")
        return path

    return find
