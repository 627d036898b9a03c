"""Where weights come from, in one syntax for all commands.

| text | weights |
|---|---|
| `runs/photos` | of the run in that folder, or of an encoder saved there |
| `timm:NAME`, `timm:NAME.TAG` | published by timm, from its cache or downloaded |
| `timm:hf-hub:USER/NAME` | of a repository on the Hugging Face Hub, in timm's or transformers' format |
| `ARCH@FILE` | in a file, for the architecture that is named |
| a folder with `config.json` | saved by timm or transformers |

A file alone names no architecture, so it needs one, by `ARCH@FILE` or by `--encoder`.
"""

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

from torch import Tensor

from pretask import encoders
from pretask.encoders import Encoder, architectures, files, saved, weights
from pretask.encoders.weights import Loaded
from pretask.errors import UserError, first_line

FORMS = "a run's folder, timm:NAME, ARCH@FILE, or a folder with the config.json of timm or transformers"
HUB = "hf-hub:"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""names of the file of weights beside a config.json"""
SIDE = 224
"""image side in pixels for architectures that state none"""
LISTED = 12
"""architectures listed in a message"""
COPIES = {"vits16": "vit_small", "vits16plus": "vit_small_plus", "vitb16": "vit_base", "vitl16": "vit_large",
          "vith16plus": "vit_huge_plus", "vit7b16": "vit_7b"}  # fmt: skip
"""sizes of DINOv3 in the names of Meta's gated repositories -> timm's names of the same networks"""


@dataclass(frozen=True)
class Origin:
    """Weights that are not read yet."""

    text: str
    """as given"""
    architecture: str
    """spec of the encoder they are for"""
    size: int
    """image side in pixels that they were trained with"""
    read: Callable[[], Mapping[str, Tensor]]
    mean: tuple[float, ...] | None = None
    """mean and standard deviation of the input; None: the architecture's"""
    std: tuple[float, ...] | None = None


def open_encoder(
    text: str | Path,
    channels: int = 3,
    size: int | None = None,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[Encoder, Loaded | None]:
    """An encoder with the weights at `text`, in evaluation mode, and what was loaded; None for a run's, which are its own.

    `channels`, `size`, `mean` and `std` do not apply to runs. Raises UserError.
    """
    if folder := saved_encoder(text):
        return saved.load_encoder(folder).eval(), None
    origin = locate(str(text))
    encoder = encoders.build(origin.architecture, channels, size or origin.size)
    return encoder.eval(), load(encoder, origin, mean=mean, std=std)


def load(
    encoder: Encoder,
    origin: Origin,
    *,
    allow_missing: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Loaded:
    """Read the weights into an encoder of the same architecture, for any image size and number of channels. Raises UserError."""
    given, own = (base(spec) for spec in (origin.architecture, encoder.name))
    if given != own:
        raise UserError(
            f"the weights of {origin.text} are those of {given}, and the encoder is {own}; leave out --encoder"
        )
    loaded = weights.load(encoder, origin.read(), origin.text, allow_missing)
    encoder.normalize_by(mean or origin.mean, std or origin.std)
    return loaded


def base(spec: str) -> str:
    """The architecture of an encoder spec, without timm's tag of weights and without arguments."""
    return encoders.parse(spec)[0].partition(".")[0]


def absolute(text: str) -> str:
    """The same weights with an absolute path."""
    if text.startswith("timm:"):
        return text
    arch, at, file = text.partition("@")
    if at and not Path(text).exists():
        return f"{arch}@{os.path.abspath(file)}"
    return os.path.abspath(text)


def saved_encoder(text: str | Path) -> Path | None:
    """The folder of a run or of a saved encoder; None for other weights."""
    path = Path(text)
    folder = path.parent if path.name == saved.WEIGHTS else path
    return folder if (folder / saved.SHAPE).is_file() else None


def locate(text: str, architecture: str | None = None) -> Origin:
    """The weights at `text`; `architecture` is that of a file alone. Raises UserError."""
    path = Path(text)
    if folder := saved_encoder(text):
        return of_saved(text, folder)
    if (path / "config.json").is_file():
        return of_folder(text, path)
    if text.startswith(f"timm:{HUB}"):
        return of_hub(text, text.removeprefix(f"timm:{HUB}"))
    if text.startswith("timm:"):
        return of_timm(text)
    if path.is_file() and architecture:
        return of_file(text, architecture, path)
    if path.is_file():
        raise UserError(without_architecture(path))
    arch, at, file = text.partition("@")
    if arch and at:
        return of_file(text, arch, Path(file))
    if path.is_dir():
        raise UserError(f"{text} holds no trained encoder; expected {FORMS}")
    raise UserError(f"no weights at {text}; expected {FORMS}")


def of_saved(text: str, folder: Path) -> Origin:
    shape = saved.read_shape(folder)
    mean, std = tuple(shape["mean"]), tuple(shape["std"])
    path = folder / saved.WEIGHTS
    return Origin(text, shape["name"], shape["size"], lambda: files.read(path), mean, std)


def of_file(text: str, architecture: str, path: Path) -> Origin:
    return Origin(text, architecture, trained_side(architecture), lambda: files.read(path))


def trained_side(architecture: str) -> int:
    """Image side in pixels that timm states for an architecture."""
    import timm

    name, _ = encoders.parse(architecture)
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return known.input_size[-1] if known and known.input_size else SIDE


def without_architecture(path: Path) -> str:
    """The message for a file that names no architecture: those that it fits."""
    found = architectures.fitting(files.read(path))
    if not found:
        return f"{path} names no architecture, and fits none of timm's; give its name, as in ARCH@{path}"
    some = ", ".join(found[:LISTED]) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "")
    return (
        f"{path} names no architecture; its tensors fit {some}. Give the right one, as in {found[0]}@{path}"
    )


# ---- published weights


def of_timm(text: str) -> Origin:
    """Weights that timm publishes. Nothing is downloaded before they are read."""
    import timm

    name, _ = encoders.parse(text)
    if not timm.is_model(name):
        encoders.build(text)  # raises UserError with similar names
    published: Any = timm.get_pretrained_cfg(name, allow_unregistered=False) if known_tag(name) else None
    if published is None or not timm.is_model_pretrained(name):
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        offered = f"; it has {', '.join(tags[:LISTED])}" if tags else ""
        raise UserError(f"timm publishes no weights of {name}{offered}. Expected {FORMS}")
    return Origin(
        text, text.removeprefix("timm:"), published.input_size[-1], lambda: read_published(text, published)
    )


def known_tag(name: str) -> bool:
    import timm

    return "." not in name or name in timm.list_pretrained(f"{name.partition('.')[0]}.*")


def read_published(text: str, published: Any) -> Mapping[str, Tensor]:
    """timm's weights, from its cache or downloaded. Raises UserError."""
    import torch

    try:
        if published.hf_hub_id:
            names = (published.hf_hub_filename,) if published.hf_hub_filename else WEIGHTS
            return files.read(cached_or_downloaded(published.hf_hub_id, names))
        state = torch.hub.load_state_dict_from_url(published.url, map_location="cpu", weights_only=True)
        return files.flatten(state)
    except UserError:
        raise
    except Exception as wrong:  # errors of the hub, the network or the cache
        raise UserError(unreachable(text, wrong)) from None


def cached_or_downloaded(repository: str, names: tuple[str, ...]) -> Path:
    """The first of these files in a repository of the Hugging Face Hub that is cached, or else that exists there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    where, _, revision = repository.partition("@")
    for name in names:
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(where, name, revision=revision or None, local_files_only=True))
    require_network()
    for name in names[:-1]:
        with contextlib.suppress(EntryNotFoundError):
            return Path(hf_hub_download(where, name, revision=revision or None))
    return Path(hf_hub_download(where, names[-1], revision=revision or None))


def require_network() -> None:
    """OSError at once if the Hub's name cannot be resolved, which it would try for a minute."""
    from huggingface_hub import constants

    if not getproxies():
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)


def of_hub(text: str, repository: str) -> Origin:
    """A repository of the Hugging Face Hub, whose config.json names the architecture."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["config.json", "preprocessor_config.json", *WEIGHTS]
    where, _, revision = repository.partition("@")
    try:
        try:
            folder = snapshot_download(
                where, revision=revision or None, allow_patterns=wanted, local_files_only=True
            )
        except LocalEntryNotFoundError:
            require_network()
            folder = snapshot_download(where, revision=revision or None, allow_patterns=wanted)
    except Exception as wrong:
        raise UserError(gated(repository) or unreachable(text, wrong)) from None
    return of_folder(text, Path(folder))


def unreachable(text: str, wrong: Exception) -> str:
    return (
        f"the weights of {text} could not be loaded ({type(wrong).__name__}: {first_line(wrong)}); "
        "connect to the network once, so that they are cached, or give a file as ARCH@FILE"
    )


def gated(repository: str) -> str:
    """For Meta's gated repositories of DINOv3: timm's public copy of the same weights."""
    import timm

    named = re.fullmatch(r"facebook/dinov3-(\w+)-pretrain-(\w+)", repository)
    if not named or named[1] not in COPIES:
        return ""
    copy = f"{COPIES[named[1]]}_patch16_dinov3.{named[2]}"
    published = timm.get_pretrained_cfg(copy) if known_tag(copy) else None
    if not published:
        return ""
    return (
        f"{repository} is gated: Meta gives access on request. timm publishes the same weights: timm:{copy} "
        f"(license: {published.license})"
    )


# ---- folders with a config.json


def of_folder(text: str, folder: Path) -> Origin:
    """A model that timm or transformers saved."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as wrong:
        raise UserError(f"{folder / 'config.json'} is no JSON: {wrong}") from None
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} has a config.json but no weights; expected {' or '.join(WEIGHTS)}")
    read = lambda: files.read(found[0])  # noqa: E731
    if "architecture" in config:
        settings = config.get("pretrained_cfg", config)
        kept = {
            k: v
            for k, v in config.get("model_args", {}).items()
            if k not in ("img_size", "in_chans", "num_classes")
        }
        arguments = ",".join(f"{key}={value!r}" for key, value in kept.items())
        spec = f"{config['architecture']}:{arguments}" if arguments else config["architecture"]
        side = settings.get("input_size", (3, SIDE, SIDE))[-1]
        return Origin(text, spec, side, read, *statistics(settings, "mean", "std"))
    spec = transformers_spec(config)
    if not spec:
        raise UserError(
            f"{folder / 'config.json'} is that of {config.get('model_type', 'an unknown model')}; read are timm's models, and "
            "transformers' vit, dinov2, dinov2_with_registers and dinov3_vit"
        )
    processor = folder / "preprocessor_config.json"
    settings = json.loads(processor.read_text()) if processor.is_file() else {}
    return Origin(text, spec, config["image_size"], read, *statistics(settings, "image_mean", "image_std"))


def statistics(settings: Mapping[str, Any], mean: str, std: str) -> tuple[tuple[float, ...] | None, ...]:
    return tuple(tuple(settings[name]) if settings.get(name) else None for name in (mean, std))


def transformers_spec(config: Mapping[str, Any]) -> str:
    """timm's network of a config of transformers; "" for other models."""
    gated_mlp = config.get("use_swiglu_ffn") or config.get("use_gated_mlp")
    networks = {
        ("vit", False): "vit_base_patch16_224",
        ("dinov2", False): "vit_small_patch14_dinov2",
        ("dinov2", True): "vit_giant_patch14_dinov2",
        ("dinov2_with_registers", False): "vit_small_patch14_reg4_dinov2",
        ("dinov2_with_registers", True): "vit_giant_patch14_reg4_dinov2",
        ("dinov3_vit", False): "vit_small_patch16_dinov3_qkvb",
        ("dinov3_vit", True): "vit_small_plus_patch16_dinov3_qkvb",
    }
    kind = config.get("model_type")
    name = networks.get((str(kind), bool(gated_mlp)))
    if name is None:
        return ""
    arguments = {
        "patch_size": config["patch_size"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
    }
    if kind in ("vit", "dinov3_vit"):
        arguments["mlp_ratio"] = config["intermediate_size"] / config["hidden_size"]
    elif not gated_mlp:
        arguments["mlp_ratio"] = config["mlp_ratio"]
    else:  # timm counts both halves of the gated layer, whose width transformers rounds up to a multiple of 8
        half = -(-int(config["hidden_size"] * config["mlp_ratio"] * 2 / 3) // 8) * 8
        arguments["mlp_ratio"] = 2 * half / config["hidden_size"]
    if kind == "dinov2_with_registers":
        arguments["reg_tokens"] = config["num_register_tokens"]
    if kind == "dinov3_vit":
        arguments["num_reg_tokens"] = config["num_register_tokens"]
    return f"{name}:{','.join(f'{key}={value}' for key, value in arguments.items())}"
