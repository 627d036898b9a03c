"""Where the real data is, and small made-up data for everything else."""

import json
import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = (
    "1"  # tests fork, which threads do not survive; and two processes beat two threads
)

GPU = bool(os.environ.get("PRETASK_TEST_GPU"))
if not GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is proved to the bit is proved on a CPU, on any machine

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


@pytest.fixture(scope="session")
def run_of():
    """run_of(encoder, folder) -> the folder of a run, as far as its encoder goes."""

    def made(encoder, folder: Path) -> Path:
        from pretask.train.run import CARD, save_encoder

        folder.mkdir(parents=True, exist_ok=True)
        settings = {"data": f"synthetic:8:{encoder.size}", "root": None}
        card = {"method": "rotnet", "recipe": "default", "config": {}, "train": {}, "settings": settings}
        card |= {
            "data": settings["data"],
            "encoder": encoder.name,
            "channels": encoder.channels,
            "size": encoder.size,
            "n": 8,
            "steps": 1,
        }
        (folder / CARD).write_text(json.dumps(card))
        save_encoder(encoder, folder)
        return folder

    return made
