"""Published weights: every release's layout, adaptation to size and channels, strictness, and refusals."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from pretask import encoders
from pretask.encoders import architectures, files, layouts, origins, saved, weights
from pretask.errors import UserError

VIT = "vit_tiny_patch16_224:embed_dim=32,depth=2,num_heads=2,patch_size=8"
DINOV2 = "vit_small_patch14_dinov2:embed_dim=32,depth=2,num_heads=2,patch_size=8"
REGISTERS = "vit_small_patch14_reg4_dinov2:embed_dim=32,depth=2,num_heads=2,patch_size=8"
DINOV3 = "vit_small_patch16_dinov3:embed_dim=32,depth=2,num_heads=2,patch_size=8"
DINOV3_BIAS = "vit_small_patch16_dinov3_qkvb:embed_dim=32,depth=2,num_heads=2,patch_size=8"
RESNET = "resnet10t"


def network(spec, size=32, channels=3):
    """An encoder whose tensors are all random: no gain of 1 and no bias of 0 hides an error."""
    made = encoders.build(spec, channels, size).eval()
    fill(made.net)
    return made


@torch.no_grad()
def fill(net):
    for name, x in net.state_dict().items():
        if x.is_floating_point():
            x.copy_(torch.rand(x.shape) + 0.5 if name.endswith("running_var") else 0.2 * torch.randn(x.shape))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def state_of(encoder):
    return {name: x.clone() for name, x in encoder.net.state_dict().items()}


def prefixed(state, prefix):
    return {prefix + name: x for name, x in state.items()}


HEAD = {"0.weight": torch.ones(4, 32), "0.bias": torch.zeros(4)}


def noise(state):
    return {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}


def dino(s):
    student = prefixed(noise(s), "module.backbone.") | prefixed(HEAD, "module.head.mlp.")
    teacher = prefixed(s, "backbone.") | prefixed(HEAD, "head.mlp.")
    args = argparse.Namespace(arch="vit_small", out=Path("runs"))
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"student": student, "teacher": teacher, "optimizer": optimizer, "epoch": 3, "args": args,
            "dino_loss": {"center": torch.zeros(1, 4)}}  # fmt: skip


def dinov2(s):
    return {
        "teacher": prefixed(s | {"mask_token": torch.zeros(1, 32)}, "backbone.")
        | prefixed(HEAD, "dino_head.mlp.")
    }


def registers(s):
    first = torch.randn(1, 1, 32)
    changed = {"cls_token": s["cls_token"] - first, "pos_embed": torch.cat([first, s["pos_embed"]], 1)}
    changed |= {"register_tokens": s["reg_token"], "mask_token": torch.zeros(1, 32)}
    return {name: x for name, x in s.items() if name != "reg_token"} | changed


def dinov3(s):
    new = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, x in s.items():
        for own, released in (
            ("gamma_1", "ls1.gamma"),
            ("gamma_2", "ls2.gamma"),
            ("reg_token", "storage_tokens"),
        ):
            name = name.replace(own, released)
        new[name] = x
    for name in [name for name in new if name.endswith("attn.q_bias")]:
        block = name.removesuffix("q_bias")
        q, v = new.pop(name), new.pop(f"{block}v_bias")
        new[f"{block}qkv.bias"] = torch.cat([q, torch.zeros(32), v])
        new[f"{block}qkv.bias_mask"] = torch.ones(96)
    return new


def mae(s):
    decoder = {"decoder_embed.weight": torch.ones(8, 32), "decoder_pos_embed": torch.ones(1, 17, 8),
               "decoder_blocks.0.norm1.weight": torch.ones(8), "decoder_pred.bias": torch.ones(8)}  # fmt: skip
    return {"model": s | decoder | {"mask_token": torch.zeros(1, 1, 8)}}


def moco_v2(s):
    q, k = s | prefixed(HEAD, "fc."), noise(s) | prefixed(HEAD, "fc.")
    bank = {"module.queue": torch.ones(4, 8), "module.queue_ptr": torch.zeros(1)}
    state = prefixed(q, "module.encoder_q.") | prefixed(k, "module.encoder_k.") | bank
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}


def moco_v3(s):
    state = prefixed(s | prefixed(HEAD, "head."), "module.base_encoder.")
    state |= prefixed(noise(s) | prefixed(HEAD, "head."), "module.momentum_encoder.")
    return {"epoch": 300, "state_dict": state | prefixed(HEAD, "module.predictor.")}


def swav(s):
    return prefixed(
        s | prefixed(HEAD, "projection_head.") | {"prototypes.weight": torch.ones(3, 4)}, "module."
    )


def barlow_twins(s):
    state = prefixed(s, "module.backbone.") | prefixed(HEAD, "module.projector.")
    return {
        "epoch": 1000,
        "model": state | {"module.bn.running_mean": torch.zeros(4)},
        "optimizer": {"state": {}},
    }


def ibot(s):
    return {"state_dict": s | {"masked_embed": torch.zeros(1, 32)}}


def ijepa(s):
    wrapped = {"encoder": prefixed(noise(s), "module."), "target_encoder": prefixed(s, "module.")}
    return wrapped | {
        "predictor": prefixed(HEAD, "module.predictor_blocks."),
        "opt": {"state": {}},
        "epoch": 1,
    }


def lightning(s):
    state = prefixed(s, "model.") | prefixed(HEAD, "projector.")
    return {"state_dict": state, "pytorch-lightning_version": "2.5", "loops": {"fit": {"x": torch.ones(1)}}}


def timm_training(s):
    measured = {"metric": np.float64(71.5), "args": argparse.Namespace(model="resnet10t")}
    return {"epoch": 9, "state_dict": noise(s), "state_dict_ema": s, **measured}


RELEASES = {
    "DINO": (VIT, dino),
    "DINOv2": (DINOV2, dinov2),
    "DINOv2 with registers": (REGISTERS, registers),
    "DINOv3": (DINOV3, dinov3),
    "DINOv3 with biases": (DINOV3_BIAS, dinov3),
    "MAE": (VIT, mae),
    "iBOT": (VIT, ibot),
    "I-JEPA": (VIT, ijepa),
    "MoCo v2": (RESNET, moco_v2),
    "MoCo v3": (VIT, moco_v3),
    "SwAV": (RESNET, swav),
    "Barlow Twins, VICReg": (RESNET, barlow_twins),
    "torchvision": (RESNET, lambda s: s | {"fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}),
    "Lightning": (RESNET, lightning),
    "DDP of a compiled network": (RESNET, lambda s: prefixed(s, "module._orig_mod.")),
    "timm's training": (RESNET, timm_training),
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_read_in_its_own_layout(name, tmp_path):
    spec, wrap = RELEASES[name]
    published = network(spec)
    state = wrap(state_of(published))
    if spec == DINOV3:
        assert not any(name.endswith("qkv.bias") for name in state)
    torch.save(state, tmp_path / "weights.pth")
    opened, loaded = origins.open_encoder(f"{spec}@{tmp_path / 'weights.pth'}", size=32)
    x = torch.rand(2, 3, 32, 32)
    for stage, expected in published(x).items():
        assert_close(opened(x)[stage], expected)
    assert loaded.tensors == loaded.of and not loaded.missing


def test_left_out_heads_are_listed_and_momentum_networks_are_summed_up(tmp_path):
    published = network(RESNET)
    torch.save(moco_v2(state_of(published)), tmp_path / "moco.pth.tar")
    text = f"{RESNET}@{tmp_path / 'moco.pth.tar'}"
    _, loaded = origins.open_encoder(text, size=32)
    tensors = sum(not name.endswith("num_batches_tracked") for name in state_of(published))
    others = len(state_of(published)) + 2
    assert str(loaded) == (
        f"loaded {tensors} of {tensors} encoder tensors from {text} (state_dict.module.encoder_q) "
        f"(left out: encoder_k ({others} tensors), queue, queue_ptr, fc (2 tensors))"
    )


@pytest.mark.parametrize(
    ("spec", "size"), [(VIT, 80), (REGISTERS, 48), ("swin_tiny_patch4_window7_224", 96), (DINOV2, 64)]
)
def test_positions_are_resampled_as_by_timm(spec, size):
    name, arguments = encoders.parse(spec)
    state = state_of(network(spec, 32 if "swin" not in name else 224))
    ours = encoders.build(spec, 3, size).eval()
    loaded = weights.load(ours, state, "there")
    theirs = timm.create_model(
        name, pretrained=True, num_classes=0, img_size=size,
        pretrained_cfg_overlay={"state_dict": dict(state)}, **arguments,
    ).eval()  # fmt: skip
    x = torch.rand(2, 3, size, size)
    assert_close(ours(x)["pool"], theirs(ours.normalized(x)))
    if spec == VIT:
        assert loaded.adapted == ("positions 4×4 → 10×10",)


@pytest.mark.parametrize(("spec", "channels"), [(RESNET, 1), (VIT, 1), (RESNET, 5), ("convnext_atto", 4)])
def test_input_channels_are_adapted_as_by_timm(spec, channels):
    name, arguments = encoders.parse(spec)
    state = state_of(network(spec))
    sized = {"img_size": 32} if spec == VIT else {}
    ours = encoders.build(spec, channels, 32).eval()
    loaded = weights.load(ours, state, "there")
    theirs = timm.create_model(
        name, pretrained=True, num_classes=0, in_chans=channels,
        pretrained_cfg_overlay={"state_dict": dict(state)}, **arguments, **sized,
    ).eval()  # fmt: skip
    x = torch.rand(2, channels, 32, 32)
    assert_close(ours(x)["pool"], theirs(ours.normalized(x)))
    assert f"input channels 3 → {channels}" in loaded.adapted


def test_larger_patches_are_resampled_and_said():
    state = state_of(network(VIT))
    ours = encoders.build(VIT.replace("patch_size=8", "patch_size=16"), 3, 32)
    assert "patches 8 → 16 px" in weights.load(ours, state, "there").adapted


# ---- strictness


def test_a_missing_tensor_that_timm_accepts_is_an_error():
    state = state_of(network(RESNET))
    del state["layer2.0.bn1.weight"]
    timm.create_model(
        RESNET, pretrained=True, num_classes=0, pretrained_cfg_overlay={"state_dict": dict(state)}
    )
    with pytest.raises(UserError, match=r"do not fit resnet10t: missing: layer2\.0\.bn1\.weight$"):
        weights.load(encoders.build(RESNET, 3, 32), state, "there")


def test_an_unexplained_tensor_is_an_error():
    state = state_of(network(RESNET)) | {"layer9.weight": torch.ones(2)}
    with pytest.raises(UserError, match=r"without a place in it: layer9\.weight$"):
        weights.load(encoders.build(RESNET, 3, 32), state, "there")


def test_another_shape_is_an_error_that_says_both():
    state = state_of(network(RESNET)) | {"layer2.0.bn1.weight": torch.ones(3)}
    with pytest.raises(UserError, match=r"other shape: layer2\.0\.bn1\.weight \(\(3,\), expected \(128,\)\)"):
        weights.load(encoders.build(RESNET, 3, 32), state, "there")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_an_error(bad):
    state = state_of(network(RESNET))
    state["layer2.0.bn1.weight"][5] = bad
    with pytest.raises(UserError, match=r"not finite: layer2\.0\.bn1\.weight"):
        weights.load(encoders.build(RESNET, 3, 32), state, "there")


def test_missing_tensors_keep_their_initial_values_when_that_is_allowed():
    state = state_of(network(RESNET))
    del state["layer2.0.bn1.weight"]
    ours = encoders.build(RESNET, 3, 32)
    loaded = weights.load(ours, state, "there", allow_missing=True)
    assert loaded.missing == ("layer2.0.bn1.weight",)
    assert loaded.tensors == loaded.of - 1
    assert "NOT loaded: layer2.0.bn1.weight" in str(loaded)
    assert (ours.net.layer2[0].bn1.weight == 1).all()
    assert_close(ours.net.layer1[0].bn1.weight, state["layer1.0.bn1.weight"])


def test_partial_loading_of_nothing_is_an_error():
    with pytest.raises(UserError, match="nothing in there fits resnet10t"):
        weights.load(
            encoders.build(RESNET, 3, 32), {"fc.weight": torch.ones(2, 2)}, "there", allow_missing=True
        )


def test_half_precision_is_read_and_counters_may_be_absent():
    published = network(RESNET)
    state = {n: x.half() for n, x in state_of(published).items() if not n.endswith("num_batches_tracked")}
    ours = encoders.build(RESNET, 3, 32)
    weights.load(ours, state, "there")
    assert ours.net.conv1[0].weight.dtype == torch.float32
    assert_close(ours.net.conv1[0].weight, published.net.conv1[0].weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["encoder.layers.encoder_layer_0.ln_1.weight"], "torchvision's vision transformer"),
        (["features.0.0.weight"], "torchvision's naming"),
        (["visual.transformer.resblocks.0.ln_1.weight"], "CLIP's naming"),
        (["vision_model.embeddings.class_embedding"], "CLIP or SigLIP"),
    ],
)
def test_another_layout_is_refused_with_the_place_of_the_same_weights(names, found):
    state = {name: torch.ones(3) for name in names}
    with pytest.raises(UserError, match=found):
        weights.load(encoders.build(RESNET, 3, 32), state, "there")


# ---- files


class Custom:
    pass


def test_a_file_with_code_is_not_read_and_says_how_to_save_the_weights(tmp_path):
    torch.save({"state_dict": state_of(network(RESNET)), "config": Custom()}, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"holds objects of \S*Custom, which could run code.*weights_only=False"
    ) as e:
        files.read(tmp_path / "x.pth")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_that_holds_no_weights_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"hello, this is a text")
    with pytest.raises(UserError, match="cannot be read as"):
        files.read(tmp_path / name)


@pytest.mark.parametrize("held", [torch.ones(3), [1, 2], {"epoch": 3}])
def test_a_file_without_named_tensors_is_refused(held, tmp_path):
    torch.save(held, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no named tensors"):
        files.read(tmp_path / "x.pth")


def test_values_of_numpy_paths_and_namespaces_are_read(tmp_path):
    held = {"a": torch.ones(2), "best": np.float32(0.5), "n": np.int64(3), "where": Path("runs/a"),
            "args": argparse.Namespace(lr=0.1, folds=np.array([1, 2]))}  # fmt: skip
    torch.save(held, tmp_path / "x.pth")
    assert [*files.read(tmp_path / "x.pth")] == ["a"]


# ---- where weights come from


def saved_file(tmp_path, spec=RESNET, name="weights.safetensors"):
    published = network(spec)
    save_file(state_of(published), tmp_path / name)
    return published, tmp_path / name


def test_a_file_alone_lists_the_architectures_that_fit(tmp_path):
    _, path = saved_file(tmp_path, "tf_efficientnet_lite0")
    with pytest.raises(UserError) as found:
        origins.open_encoder(path)
    assert str(found.value) == (
        f"{path} names no architecture; its tensors fit efficientnet_lite0, tf_efficientnet_lite0. "
        f"Give the right one, as in efficientnet_lite0@{path}"
    )


def test_architectures_that_the_list_lacks_are_added_once(tmp_path, monkeypatch):
    known = {"": ["resnet18"]}
    (tmp_path / "known.json").write_text(json.dumps(known))
    monkeypatch.setattr(architectures, "KNOWN", tmp_path / "known.json")
    monkeypatch.setattr(timm, "list_models", lambda: ["resnet10t", "resnet18"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = state_of(network(RESNET))
    assert architectures.fitting(found, progress=False) == [RESNET]
    monkeypatch.setattr(architectures, "make", None)  # the second time from the cache
    assert architectures.fitting(found, progress=False) == [RESNET]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_lite0"])
def test_the_list_of_architectures_is_that_of_timm(name):
    known = json.loads(architectures.KNOWN.read_text())
    ((key, _),) = architectures.make([name], progress=False).items()
    assert name in known[key]


def test_a_file_alone_needs_no_name_with_an_architecture(tmp_path):
    published, path = saved_file(tmp_path)
    ours = encoders.build(RESNET, 3, 32).eval()
    origins.load(ours, origins.locate(str(path), RESNET))
    x = torch.rand(2, 3, 32, 32)
    assert_close(ours(x)["pool"], published(x)["pool"])


def test_weights_of_another_architecture_are_refused_even_if_they_fit(tmp_path):
    _, path = saved_file(tmp_path, "efficientnet_lite0")
    ours = encoders.build("tf_efficientnet_lite0", 3, 32)
    with pytest.raises(
        UserError, match="are those of efficientnet_lite0, and the encoder is tf_efficientnet_lite0"
    ):
        origins.load(ours, origins.locate(f"efficientnet_lite0@{path}"))


def test_a_run_and_its_file_are_the_same_weights(tmp_path):
    made = network("resnet_small:width=16", 32)
    made.normalize_by([0.1, 0.2, 0.3], [0.4])
    saved.save_encoder(made, tmp_path)
    x = torch.rand(2, 3, 32, 32)
    for text in (tmp_path, tmp_path / "encoder.safetensors"):
        again, loaded = origins.open_encoder(text)
        assert loaded is None
        assert_close(again.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
        assert_close(again(x)["pool"], made(x)["pool"])


def test_mean_and_standard_deviation_can_be_given(tmp_path):
    _, path = saved_file(tmp_path)
    opened, _ = origins.open_encoder(f"{RESNET}@{path}", size=32, mean=(0.1, 0.2, 0.3), std=(0.5,))
    assert_close(opened.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert_close(opened.std.flatten(), torch.full((3,), 0.5))


def test_the_statistics_are_those_of_the_tag(tmp_path):
    published, path = saved_file(tmp_path, "vit_tiny_patch16_224")
    plain, _ = origins.open_encoder(f"vit_base_patch16_224.mae:embed_dim=192,depth=12,num_heads=3@{path}")
    assert_close(plain.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert_close(published.mean.flatten(), torch.full((3,), 0.5))


def cached(monkeypatch, tmp_path, repository, files_):
    """A cache of the Hugging Face Hub that holds these files of a repository."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for name, write in files_.items():
        write(snapshot / name)


def no_network(*_, **__):
    raise AssertionError("the network was used")


def test_published_weights_come_from_the_cache_without_a_network(tmp_path, monkeypatch):
    published = network(RESNET)
    state = state_of(published) | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
    hub = timm.get_pretrained_cfg(RESNET).hf_hub_id
    cached(monkeypatch, tmp_path, hub, {"model.safetensors": lambda path: save_file(state, path)})
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    opened, loaded = origins.open_encoder(f"timm:{RESNET}", size=32)
    x = torch.rand(2, 3, 32, 32)
    assert_close(opened(x)["pool"], published(x)["pool"])
    assert str(loaded).endswith(f"from timm:{RESNET} (left out: fc.bias, fc.weight)")


def test_without_cache_and_network_one_line_says_so(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise OSError(-2, "Name or service not known")

    cached(monkeypatch, tmp_path, "someone/else", {})
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"timm:resnet18 could not be loaded .*; connect to the network once"):
        origins.open_encoder("timm:resnet18", size=32)
    with pytest.raises(UserError, match=r"timm:hf-hub:a/b could not be loaded"):
        origins.open_encoder("timm:hf-hub:a/b", size=32)


def test_a_gated_repository_names_timms_copy(tmp_path, monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    def refused(*_, **known):
        raise GatedRepoError("Access to model is restricted", response=None)  # type: ignore[arg-type]

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(
        UserError, match=r"is gated.*timm:vit_small_patch16_dinov3\.lvd1689m \(license: dinov3"
    ):
        origins.open_encoder("timm:hf-hub:facebook/dinov3-vits16-pretrain-lvd1689m")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("timm:resnet18x", "unknown encoder 'resnet18x'; did you mean resnet18"),
        ("timm:resnet18.nobody", r"no weights of resnet18\.nobody; it has resnet18\.a1_in1k"),
        ("timm:test_vit4", "publishes no weights"),
        ("nowhere", "no weights at nowhere; expected a run's folder, timm:NAME, ARCH@FILE"),
        ("resnet18@nowhere.pth", r"no weights at nowhere\.pth"),
    ],
)
def test_what_is_no_weights_is_refused(text, found):
    with pytest.raises(UserError, match=found):
        origins.open_encoder(text)


# ---- folders of timm and transformers


def test_a_folder_of_timm(tmp_path):
    published = network(VIT)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0,
              "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": [32, 32]},
              "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state_of(published), tmp_path / "model.safetensors")
    opened, _ = origins.open_encoder(tmp_path)
    published.normalize_by([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    x = torch.rand(2, 3, 32, 32)
    assert_close(opened(x)["pool"], published(x)["pool"])


def test_a_folder_that_pretask_exported_for_timm(tmp_path):
    from pretask.workflows.export import FORMATS

    published = network(VIT)
    with torch.no_grad():
        FORMATS["timm"].write(published, tmp_path / "timm")
    opened, _ = origins.open_encoder(tmp_path / "timm")
    x = torch.rand(2, 3, 32, 32)
    assert_close(opened(x)["pool"], published(x)["pool"])


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
MODELS = {
    "vit": ("ViT", SMALL | {"intermediate_size": 64}),
    "dinov2": ("Dinov2", SMALL),
    "dinov2 giant": ("Dinov2", SMALL | {"use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegisters", SMALL),
    "dinov3_vit": ("DINOv3ViT", SMALL | {"intermediate_size": 64, "num_register_tokens": 4}),
    "dinov3_vit plus": (
        "DINOv3ViT",
        SMALL
        | {"intermediate_size": 64, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
}
OLD_NAMES = {  # transformers 4: what the published files hold
    "vit": {
        "layers.": "encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    "dinov2": {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    },
    "dinov3_vit": {"model.layer.": "layer."},
}


def transformers_model(kind):
    transformers = pytest.importorskip("transformers")
    name, arguments = MODELS[kind]
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**arguments)).eval()
    fill(model)
    return model


@torch.no_grad()
def assert_equal_tokens(model, encoder):
    x = encoder.normalized(torch.rand(2, 3, 32, 32))
    expected = model(pixel_values=x).last_hidden_state
    assert_close(encoder.net.forward_features(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_of_transformers(kind, tmp_path):
    model = transformers_model(kind)
    model.save_pretrained(tmp_path)
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    opened, loaded = origins.open_encoder(tmp_path)
    assert_close(opened.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert_equal_tokens(model, opened)
    assert loaded is not None and loaded.tensors == loaded.of


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3_vit"])
def test_names_of_transformers_4_and_of_its_classifiers(kind):
    model = transformers_model(kind)
    state = {}
    for name, x in model.state_dict().items():
        for new, old in OLD_NAMES[kind].items():
            name = name.replace(new, old)
        state[f"{kind}.{name}" if kind != "dinov3_vit" else name] = x
    state["classifier.weight"] = torch.ones(3, 32)
    config = MODELS[kind][1] | {"model_type": kind} | ({"mlp_ratio": 4} if kind == "dinov2" else {})
    ours = encoders.build(origins.transformers_spec(config), 3, 32).eval()
    loaded = weights.load(ours, state, "there")
    assert_equal_tokens(model, ours)
    assert "classifier.weight" in loaded.left_out


def test_another_model_of_transformers_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is that of beit; read are timm's models, and transformers' vit"):
        origins.open_encoder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(UserError, match=r"has a config\.json but no weights; expected model\.safetensors"):
        origins.open_encoder(tmp_path)


def test_no_wrapper_is_taken_off_a_network_that_has_a_part_of_that_name():
    state = {"encoder.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert layouts.unwrap(state, {"encoder"}).part == ""
    assert layouts.unwrap(state, {"weight"}).part == "encoder"
