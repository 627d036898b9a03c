"""The catalog of methods, parsed from their files, equals what importing them gives, and is fast."""

import os
import subprocess
import sys

import pytest

from pretask import methods
from pretask.cli import catalog
from pretask.cli.main import main


@pytest.mark.parametrize("name", methods.names())
def test_the_catalog_equals_what_importing_the_methods_gives(name):
    module = methods.module(name)
    listed = {recipe.method: recipe for recipe in catalog.of_method(name)}
    made = {
        name if r == "default" else f"{name}:{r}": config for r, config in methods.recipes(module).items()
    }
    assert list(listed) == list(made)
    for recipe, config in made.items():
        one = listed[recipe]
        assert (one.asks, one.family, one.encoder, one.needs) == (
            methods.summary(config),
            config.family,
            config.encoder,
            sorted(config.needs),
        )
        assert one.source in (module.__doc__ or "")


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["list"], ["evaluate", "--help"], ["export", "--help"]]
)
def test_help_and_list_import_no_torch(words):
    code = f"import sys; from pretask.cli.main import main\ntry: main({words})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_reading_a_run_and_its_encoder_imports_neither_timm_nor_lightning(tmp_path):
    """Each takes longer to import than torch."""
    made = f"import pretask; pretask.pretrain('rotnet', 'synthetic:64:16', {str(tmp_path / 'r')!r}, steps=1, batch=16, "
    made += "encoder='resnet_small:width=8', quiet=True)\n"
    made += "import sys; assert 'torchmetrics' not in sys.modules"  # Lightning imports it if it may
    subprocess.run([sys.executable, "-c", made], check=True, stderr=subprocess.DEVNULL)
    code = f"import sys; from pretask.workflows import evaluate; from pretask.train import run; each = run.Run({str(tmp_path / 'r')!r}); each.encoder; each.untrained\n"
    code += "assert not {'timm', 'lightning_fabric', 'torchvision', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "4000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)]
)
def test_openmp_threads_sleep_soon_unless_the_user_sets_it(given, spins):
    """The variable is set before torch is loaded, which reads it only then."""
    code = "import os, sys; from pretask import __main__\n__main__.main = lambda *_: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n__main__.run([])"
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert done.stdout.split() == [str(spins), "False"]


@pytest.mark.parametrize("words", [["list"], ["list", "--recipes"]])
def test_list_has_a_line_for_each_method_under_its_family_in_80_columns(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    every = [recipe.method for recipe in catalog.recipes()]
    assert sorted(listed) == sorted(every if "--recipes" in words else [m for m in every if ":" not in m])
    assert [line for line in lines if line in catalog.FAMILIES] == [*catalog.FAMILIES]


def test_every_built_in_method_belongs_to_a_family():
    assert {recipe.family for recipe in catalog.recipes()} == {*catalog.FAMILIES}
