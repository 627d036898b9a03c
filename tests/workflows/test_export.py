"""Exported encoders give the same features in other libraries, without this package, or are not exported at all."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pretask import data, encoders
from pretask.cli import main
from pretask.errors import install_command
from pretask.train.run import CARD, Run
from pretask.transforms.color import rgb_to_lightness
from pretask.types import UserError
from pretask.workflows import export as exporting

VIT = "vit_tiny_patch16_224:patch_size=4,depth=2,embed_dim=48,num_heads=3"
RESNET = "resnet10t:stem_width=16"
KINDS = {
    "gray": (RESNET, 1, 33),
    "light": (f"{RESNET},sees=lightness", 3, 33),
    "vit": (VIT, 3, 32),
    "classic": ("resnet_small:width=8", 1, 28),
}


@pytest.fixture(scope="module")
def runs(run_of, tmp_path_factory):
    """Runs whose encoders have other weights and running statistics than a new network."""
    made = {}
    for kind, (spec, channels, size) in KINDS.items():
        torch.manual_seed(1)
        encoder = encoders.build(spec, channels, size).train()
        for _ in range(3):
            encoder(torch.rand(8, channels, size, size))
        made[kind] = run_of(encoder, tmp_path_factory.mktemp(kind))
    return made


@pytest.fixture
def exported(runs, tmp_path):
    """exported(kind, to) -> the export, the run's encoder, 7 images, and the encoder's features of them."""

    def export(kind, to):
        run = Run(runs[kind])
        made = exporting.export(run, to, tmp_path / exporting.FORMATS[to].name)
        _, channels, size = KINDS[kind]
        image = data.open("synthetic:7", size=size, channels=channels).image.float() / 255
        with torch.no_grad():
            return made, run.encoder, image, run.encoder(image)

    return export


def lines(made, pixels, name="features", **known):
    """The variable `name` after the printed lines have run on `pixels`."""
    known["pixels"] = pixels
    with torch.no_grad():
        exec(made.usage, known)
    return torch.as_tensor(known[name])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_export_has_every_stage_and_takes_any_batch_size(exported, kind):
    made, _, image, expected = exported(kind, "torch")
    program = torch.export.load(made.path).module()
    for n in (1, 3, 7):
        given = program(image[:n])
        assert list(given) == list(expected)
        for stage in expected:
            assert_close(given[stage], expected[stage][:n], atol=1e-5, rtol=1e-4)
    assert_close(lines(made, image), expected["pool"], atol=1e-5, rtol=1e-4)


def test_torch_export_loads_without_pretask_and_timm(exported, tmp_path):
    made, _, image, expected = exported("vit", "torch")
    save_file({"image": image, "pool": expected["pool"].contiguous()}, tmp_path / "case.safetensors")
    script = f"""
import sys
sys.modules.update(pretask=None, timm=None)
from safetensors.torch import load_file
case = load_file({str(tmp_path / "case.safetensors")!r})
pixels = case["image"]
{made.usage}
assert (features - case["pool"]).abs().max() < 1e-5
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_export_has_every_stage_and_takes_any_batch_size(exported, kind):
    import onnxruntime

    made, _, image, expected = exported(kind, "onnx")
    session = onnxruntime.InferenceSession(made.path)
    names = [output.name for output in session.get_outputs()]
    assert names == list(expected)
    for n in (1, 3, 7):
        for stage, given in zip(names, session.run(None, {"image": image[:n].numpy()}), strict=True):
            assert_close(torch.from_numpy(given), expected[stage][:n], atol=1e-4, rtol=1e-4)
    assert_close(lines(made, image.numpy()), expected["pool"], atol=1e-4, rtol=1e-4)


def test_timm_usage_lines_describe_a_lightness_input(exported):
    made, _, image, expected = exported("light", "timm")
    assert "the lightness of images, (B, 1, 33, 33)" in made.usage
    assert_close(lines(made, rgb_to_lightness(image)), expected["pool"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gray", "vit"])
def test_timm_export_loads_strictly_and_as_a_local_folder(exported, kind):
    import timm

    made, encoder, image, expected = exported(kind, "timm")
    assert_close(lines(made, image), expected["pool"], atol=1e-5, rtol=1e-4)
    model = timm.create_model(f"local-dir:{made.path}", pretrained=True).eval()
    assert model.pretrained_cfg["input_size"] == (encoder.channels, encoder.size, encoder.size)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert_close(model((image - mean) / std), expected["pool"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gray", "vit"])
def test_transformers_export_and_its_image_processor_give_the_same_features(exported, kind, monkeypatch):
    from torchvision.transforms.functional import to_pil_image

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made, _, image, expected = exported(kind, "hf")
    features = lines(made, None, picture=to_pil_image(image[0]))
    assert_close(features, expected["pool"][:1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("to", exporting.FORMATS)
def test_missing_or_changed_weights_are_an_error_and_leave_no_files(runs, tmp_path, monkeypatch, to):
    """Planted fault: one weight is missing from the export, or changed."""
    form = exporting.FORMATS[to]

    def damaging(encoder, path):
        if to in ("timm", "hf"):
            form.write(encoder, path)
            weights = load_file(path / "model.safetensors")
            weights.pop(
                next(name for name in weights if name.endswith("norm.weight") or "bn1.weight" in name)
            )
            save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        else:
            with torch.no_grad():
                last = list(encoder.net.parameters())[-1]
                last += 1
                form.write(encoder, path)
                last -= 1

    monkeypatch.setitem(exporting.FORMATS, to, dataclasses.replace(form, write=damaging))
    with pytest.raises(UserError, match=r"could not be exported to .*nothing was written"):
        exporting.export(Run(runs["vit"]), to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nan_features_and_differences_above_rounding_are_refused(runs):
    encoder = Run(runs["classic"]).encoder
    image = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        gap = exporting.largest_difference(lambda x: {"pool": encoder(x)["pool"] * torch.nan}, encoder, image)
        assert not gap <= exporting.CLOSE
        for fraction, accepted in ((1e-6, True), (1e-3, False)):

            def near(x, fraction=fraction):
                return {"pool": encoder(x)["pool"] * (1 + fraction)}

            assert (exporting.largest_difference(near, encoder, image) <= exporting.CLOSE) is accepted


def test_an_export_is_compared_on_noise_if_the_images_are_missing(runs, tmp_path):
    import shutil

    folder = shutil.copytree(runs["classic"], tmp_path / "run")
    card = json.loads((folder / CARD).read_text())
    card["settings"]["data"] = "gone/away"
    (folder / CARD).write_text(json.dumps(card))
    assert "noise" in exporting.export(Run(folder), "torch").compared
    assert (folder / "encoder.pt2").exists()


@pytest.mark.parametrize(
    ("kind", "to", "said"),
    [
        ("classic", "timm", "is not a timm model, so timm cannot build it; use --to torch or --to onnx"),
        ("classic", "hf", "use --to torch or --to onnx"),
        ("light", "hf", "sees the lightness of images"),
        ("vit", "keras", "keras"),
        ("vit", "torch", "exists; choose another --out"),
    ],
)
def test_user_errors_are_one_line_and_leave_no_files(runs, tmp_path, capsys, kind, to, said):
    (tmp_path / "out.pt2").write_text("mine")
    out = tmp_path / "out.pt2" if "exists" in said else tmp_path / "new"
    assert main.main(["export", str(runs[kind]), "--to", to, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.pt2"]


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxruntime"), ("hf", "transformers")])
def test_a_missing_extra_names_its_install_command(runs, monkeypatch, to, package):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(UserError, match=re.escape(f"needs {package}: {install_command(to)}")):
        exporting.export(Run(runs["vit"]), to)


def test_the_command_prints_python_lines_that_load_the_export(runs, tmp_path, capsys):
    out = tmp_path / "it.pt2"
    bare = str(tmp_path / "it")  # the suffix of PyTorch programs is appended
    assert main.main(["export", str(runs["classic"]), "--to", "torch", "--out", bare]) == 0
    shown = capsys.readouterr()
    assert f'torch.export.load("{out}")' in shown.out
    assert f"wrote {out}" in shown.err
    assert "5 images of synthetic" in shown.err
