"""Shared fixtures: the location of real data, and a minimal run folder."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

# tests fork, which does not work with threads, and two processes are faster than two threads
os.environ["OMP_NUM_THREADS"] = "1"

GPU = bool(os.environ.get("PRETASK_TEST_GPU"))
if not GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit-exact tests need a CPU, on any machine

DATA = Path(os.environ.get("PRETASK_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data():
    """shared_data("cifar10", "cifar10_test.npz") -> its path; skips the test with that path if there is none."""

    def find(*parts: str) -> Path:
        path = DATA.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"real data not found at {path}; set PRETASK_DATA")
        return path

    return find


@pytest.fixture(scope="session")
def run_of():
    """run_of(encoder, folder) -> a run's folder with an encoder and a minimal card."""

    def made(encoder, folder: Path) -> Path:
        from cards import card

        from pretask.config import RunConfig
        from pretask.encoders.saved import save_encoder
        from pretask.train.run import write_card

        folder.mkdir(parents=True, exist_ok=True)
        place = f"synthetic:8:{encoder.size}"
        known = {"encoder": encoder.name, "channels": encoder.channels, "size": encoder.size, "data": place}
        write_card(folder, card(**known, settings=asdict(RunConfig(place))))
        save_encoder(encoder, folder)
        return folder

    return made
