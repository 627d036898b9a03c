"""Export the encoder of a run to timm, plain torch, onnxruntime or transformers.

Every export is loaded by its target library and run on images of the run. If its features differ or weights are
missing, the export fails and leaves no files.
"""

import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretask import encoders
from pretask.config import DEFAULT_READOUT, ReadoutConfig
from pretask.data import loader
from pretask.encoders import SEES, Encoder, Timm
from pretask.encoders.readout import Readout
from pretask.errors import install_command
from pretask.evals.head import Head
from pretask.rng import Rng
from pretask.runtime import files
from pretask.train.run import Run
from pretask.transforms import augment
from pretask.types import UserError
from pretask.workflows.predict import read_head
from pretask.workflows.readout import readout_of

Target = Literal["timm", "torch", "onnx", "hf"]
Loaded = Callable[[Tensor], Mapping[str, Tensor]]
"""pixels in [0, 1] -> stages, computed by another library"""

CLOSE = 1e-4
"""maximum difference of a feature that counts as rounding, as a fraction of the largest feature of its stage"""
PROBES = 5
"""number of images on which features are compared"""


@dataclass(frozen=True)
class Exported:
    path: Path
    difference: float
    """maximum difference of any feature, as a fraction of the largest feature of its stage"""
    compared: str
    """the images on which features were compared"""
    usage: str
    """Python lines that load the export"""


class Part(nn.Module):
    """(B, C, H, W) in [0, 1] -> one output of an encoder: the features of a stage, or what a head predicts from them."""

    def __init__(self, readout: Readout, head: Head | None = None, classes: Sequence[str] = ()):
        super().__init__()
        encoder = readout.encoder
        self.readout, self.head, self.classes = readout, head, classes
        self.name, self.channels, self.size = encoder.name, encoder.channels, encoder.size
        self.range, self.sees = encoder.range, encoder.sees
        self.widths = {"probability": len(classes)} if head else {"features": readout.width}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.readout(image)
        return {"features": x} if self.head is None else {"probability": self.head(x)}


Exportable = Encoder | Part


def export(
    what: Run | Encoder,
    to: Target,
    out: Path | None = None,
    which: ReadoutConfig = DEFAULT_READOUT,
    head: Path | None = None,
) -> Exported:
    """Write an encoder for another library, to `out` or to its run's folder, and compare its features.

    `which` other than the default writes only the features of that stage. `head` is a folder of `predict`, whose head is written
    with the encoder: from pixels to probabilities. If the library expects another suffix than that of `out`, it is appended.
    """
    target = FORMATS[to]
    absent = [package for package in target.packages if find_spec(package) is None]
    if absent:
        raise UserError(f"--to {to} needs {', '.join(absent)}: {install_command(to)}")
    is_run = isinstance(what, Run)
    encoder = part_of(what, which, head).cpu().eval()
    if target.timm_only and isinstance(encoder, Part):
        raise UserError(
            f"--to {to} takes whole encoders, so --stage, --grid and --head need --to torch or --to onnx"
        )
    if target.timm_only and not isinstance(encoder, Timm):
        raise UserError(
            f"{encoder.name} is not a timm model, so {to} cannot build it; use --to torch or --to onnx"
        )
    if encoder.sees and to == "hf":
        raise UserError(
            f"{encoder.name} sees the {encoder.sees} of images, which transformers' image processors cannot compute; "
            "use --to timm, torch or onnx"
        )
    home, suffix = head or (what.folder if is_run else Path()), Path(target.name).suffix
    out = out or home / (f"classifier{suffix}" if head else target.name)
    out = out if not suffix or out.suffix == suffix else out.with_name(out.name + suffix)
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    image, compared = probes(what) if is_run else noise(encoder.channels, encoder.size)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            made = Path(scratch, out.name)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.write(encoder, made)
                difference = largest_difference(target.load(made), encoder, image)
            if not difference <= CLOSE:  # also refuses NaN
                raise ValueError(f"its features differ from the run's by {difference:.1e} of the largest")
            for file in Path(scratch).iterdir():  # ONNX models of more than 2 GB have several files
                for each in (*file.rglob("*"), file):
                    files.sync(each)
                file.replace(out.parent / file.name)
    except Exception as wrong:  # exporters and loaders raise exceptions of many types
        if isinstance(wrong, OSError) and wrong.errno:  # an error of the operating system
            raise files.Unwritable(out, wrong) from None
        reason = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        raise UserError(
            f"{encoder.name} could not be exported to {to}: {reason}; nothing was written"
        ) from None
    return Exported(out, difference, compared, target.usage(out, encoder))


def part_of(what: Run | Encoder, which: ReadoutConfig, head: Path | None) -> Exportable:
    """What to export. Raises UserError."""
    if head is not None:
        if which != DEFAULT_READOUT:
            raise UserError("a head has its own stage and grid; leave out --stage and --grid")
        return Part(*read_head(head, what))
    if which != DEFAULT_READOUT:
        return Part(readout_of(what, which))
    return what.encoder if isinstance(what, Run) else what


def probes(run: Run) -> tuple[Tensor, str]:
    """A few of the run's images (B, C, H, W) in [0, 1], or noise if they are missing or have changed."""
    try:
        source = run.images(progress=False, cache_mb=0)
        image = loader.sample(source, PROBES).image
        return augment.to_float(image), f"{len(image)} images of {source.name}"
    except UserError:
        image, compared = noise(run.card["channels"], run.card["size"])
        return image, f"{compared}, since the run's images are missing or have changed"


def noise(channels: int, size: int) -> tuple[Tensor, str]:
    return Rng(0, "export").uniform(PROBES, channels, size, size), f"{PROBES} noise images"


def largest_difference(loaded: Loaded, encoder: Exportable, image: Tensor) -> float:
    """The maximum difference of any feature, relative to the largest of its stage, in a batch and in a batch of one."""
    worst = torch.zeros(())
    for batch in (image, image[:1]):
        expected, given = encoder(batch), loaded(batch)
        for stage, values in given.items():
            if values.shape != expected[stage].shape:
                raise ValueError(
                    f"{stage} has shape {tuple(values.shape)}, not {tuple(expected[stage].shape)}"
                )
            gap = (values - expected[stage]).abs().amax() / expected[stage].abs().amax().clamp(min=1e-12)
            worst = torch.maximum(worst, gap)  # keeps NaN
    return worst.item()


def example(encoder: Exportable) -> Tensor:
    """Two blank images; exporters would treat a batch size of 1 as a constant."""
    return torch.zeros(2, encoder.channels, encoder.size, encoder.size)


def shape_of(encoder: Exportable) -> str:
    return f"(B, {encoder.channels}, {encoder.size}, {encoder.size})"


def main_output(encoder: Exportable) -> tuple[str, int]:
    """Name and width of the last output."""
    return list(encoder.widths.items())[-1]


def about_classes(encoder: Exportable) -> str:
    """A line that names the classes of a head."""
    return (
        f"\nclasses = {list(encoder.classes)!r}  # in this order"
        if isinstance(encoder, Part) and encoder.head
        else ""
    )


def range_note(encoder: Exportable) -> str:
    """How values of more than 8 bits were mapped to pixels; "" for bytes."""
    return f", mapped from {encoder.range} and clipped" if encoder.range.rescales() else ""


# ---- torch


def write_torch(encoder: Exportable, path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(encoder, (example(encoder),), dynamic_shapes=({0: batch},))
    content = io.BytesIO()  # if the disk is full, torch would abort the process
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def load_torch(path: Path) -> Loaded:
    return torch.export.load(path).module()


def use_torch(path: Path, encoder: Exportable) -> str:
    name, width = main_output(encoder)
    made = "features" if name == "pool" else name
    return f"""\
import torch

encoder = torch.export.load("{path}").module()
{made} = encoder(pixels)["{name}"]  # pixels {shape_of(encoder)} in [0, 1]{range_note(encoder)} -> (B, {width}){about_classes(encoder)}"""


# ---- onnx


class Stages(nn.Module):
    """The outputs as a tuple, since ONNX names them separately."""

    def __init__(self, encoder: Exportable):
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(image).values())


def write_onnx(encoder: Exportable, path: Path) -> None:
    program = torch.onnx.export(
        Stages(encoder).eval(),
        (example(encoder),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["image"],
        output_names=list(encoder.widths),
        verbose=False,
    )
    assert program is not None
    program.save(path)


def load_onnx(path: Path) -> Loaded:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def loaded(image: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {"image": image.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return loaded


def use_onnx(path: Path, encoder: Exportable) -> str:
    name, _ = main_output(encoder)
    made = "features" if name == "pool" else name
    return f"""\
import onnxruntime

session = onnxruntime.InferenceSession("{path}")
[{made}] = session.run(["{name}"], {{"image": pixels}})  # pixels {shape_of(encoder)} float32 in [0, 1]{range_note(encoder)}{about_classes(encoder)}"""


# ---- timm, and transformers, which wraps it and reads the same folder


def write_timm(encoder: Encoder, path: Path) -> None:
    """Write model.safetensors and config.json as on the hub; timm also reads them as local-dir:PATH."""
    from safetensors.torch import save_file

    net: Any = encoder.net
    path.mkdir()
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    published = net.pretrained_cfg
    size = [len(encoder.mean), encoder.size, encoder.size]
    config = {
        "architecture": timm_arguments(encoder)[0],
        "model_args": timm_arguments(encoder)[1],
        "model_type": "timm_wrapper",
        "num_classes": 0,
        "num_features": encoder.dim,
        "sees": encoder.sees,
        "pretrained_cfg": {
            "input_size": size,
            "fixed_input_size": bool(published.get("fixed_input_size")),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": statistics(encoder.mean),
            "std": statistics(encoder.std),
            "num_classes": 0,
        },
    }
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def timm_arguments(encoder: Encoder) -> tuple[str, dict[str, Any]]:
    """The timm name and the other arguments of `timm.create_model`."""
    name, arguments = encoders.parse(encoder.name)
    arguments.pop("sees", None)
    return name, {"in_chans": len(encoder.mean), **encoders.size_arguments(name, encoder.size), **arguments}


def statistics(values: Tensor) -> list[float]:
    """One number per channel, with the digits that float32 needs."""
    return [float(f"{value:.7g}") for value in values.flatten().tolist()]


def normalized(config: Mapping[str, Any], image: Tensor) -> Tensor:
    mean, std = (torch.tensor(config["pretrained_cfg"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    return ((SEES[config["sees"]](image) if config["sees"] else image) - mean) / std


def load_timm(path: Path) -> Loaded:
    import timm
    from safetensors.torch import load_file

    config = json.loads((path / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=0, **config["model_args"]).eval()
    model.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    return lambda image: {"pool": model(normalized(config, image))}


def use_timm(path: Path, encoder: Encoder) -> str:
    name, arguments = timm_arguments(encoder)
    pixels = (
        f"the {encoder.sees} of images, (B, 1, {encoder.size}, {encoder.size})"
        if encoder.sees
        else shape_of(encoder)
    )
    keywords = "".join(f", {key}={value!r}" for key, value in arguments.items())
    mean, std = statistics(encoder.mean), statistics(encoder.std)
    return f"""\
import timm, torch
from safetensors.torch import load_file

model = timm.create_model("{name}", num_classes=0{keywords}).eval()
model.load_state_dict(load_file("{path / "model.safetensors"}"), strict=True)
mean, std = torch.tensor({mean}).view(-1, 1, 1), torch.tensor({std}).view(-1, 1, 1)
features = model((pixels - mean) / std)  # pixels: {pixels} in [0, 1]{range_note(encoder)} -> (B, {encoder.dim})"""


def load_hf(path: Path) -> Loaded:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = AutoModel.from_pretrained(path, local_files_only=True, output_loading_info=True)
    lost = {what: names for what, names in info.items() if names}
    if lost:
        raise ValueError(f"transformers did not load all weights: {lost}")
    model.eval()
    config = json.loads((path / "config.json").read_text())
    return lambda image: {"pool": model(normalized(config, image)).pooler_output}


def use_hf(path: Path, encoder: Encoder) -> str:
    return f"""\
from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("{path}"), AutoModel.from_pretrained("{path}").eval()
features = model(**processor(picture)).pooler_output  # a PIL image of 8 bit{range_note(encoder)} -> (1, {encoder.dim})"""


# ---- the formats


@dataclass(frozen=True)
class Format:
    name: str
    """file or folder name inside the run's folder"""
    write: Callable[[Any, Path], None]
    load: Callable[[Path], Loaded]
    usage: Callable[[Path, Any], str]
    packages: tuple[str, ...] = ()
    timm_only: bool = False


FORMATS: dict[str, Format] = {
    "timm": Format("timm", write_timm, load_timm, use_timm, timm_only=True),
    "torch": Format("encoder.pt2", write_torch, load_torch, use_torch),
    "onnx": Format(
        "encoder.onnx", write_onnx, load_onnx, use_onnx, packages=("onnx", "onnxscript", "onnxruntime")
    ),
    "hf": Format("hf", write_timm, load_hf, use_hf, packages=("transformers",), timm_only=True),
}
