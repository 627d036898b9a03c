"""Commands that install an extra, by how pretask was installed."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest

from pretask import errors
from pretask.workflows import export

ROOT = Path(__file__).parents[1]
REQUIRES = [
    "torch>=2.6",
    "h5py>=3; extra == 'scenes'",
    'mitsuba>=3.7; extra == "scenes"',
    'av>=14; extra == "video"',
]


class Installed:
    """Package metadata with a direct_url.json (PEP 610), or without one."""

    requires = REQUIRES

    def __init__(self, origin: dict | None):
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


def install_command(monkeypatch: pytest.MonkeyPatch, origin: dict | None) -> str:
    monkeypatch.setattr(errors, "distribution", lambda name: Installed(origin))
    return errors.install_command("scenes")


def test_a_checkout_or_a_wheel_is_installed_again_with_the_extra(monkeypatch, tmp_path):
    checkout, wheel = tmp_path / "my code", tmp_path / "pretask-1.0-py3-none-any.whl"
    checkout.mkdir()
    wheel.touch()
    editable = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    assert install_command(monkeypatch, editable) == f"pip install -e '{checkout}[scenes]'"
    assert install_command(monkeypatch, editable | {"dir_info": {}}) == f"pip install '{checkout}[scenes]'"
    archive = {"url": wheel.as_uri(), "archive_info": {}}
    assert install_command(monkeypatch, archive) == f"pip install '{wheel}[scenes]'"
    git = {"url": "https://example.org/pretask.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    assert (
        install_command(monkeypatch, git)
        == "pip install 'pretask[scenes] @ git+https://example.org/pretask.git@abc'"
    )


@pytest.mark.parametrize("origin", [None, {"url": "file:///gone/pretask.whl", "archive_info": {}}])
def test_without_a_known_origin_the_packages_are_named(monkeypatch, origin):
    assert install_command(monkeypatch, origin) == "pip install 'h5py>=3' 'mitsuba>=3.7'"


def test_a_checkout_that_is_not_installed_is_named(monkeypatch):
    def distribution(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(errors, "distribution", distribution)
    assert errors.install_command("hf") == f"pip install '{ROOT}[hf]'"


def test_every_extra_that_is_offered_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [path.read_text() for path in (ROOT / "pretask").rglob("*.py")]
    offered = {name for text in sources for name in re.findall(r"install_command\([\"'](\w+)[\"']\)", text)}
    offered |= {name for name, target in export.FORMATS.items() if target.packages}
    assert len(offered) > 5 and offered <= extras.keys()
