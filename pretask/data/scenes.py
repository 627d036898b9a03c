"""Scenes: images with dense maps, `scenes:FOLDER` or a folder made by `pretask render`.

`scenes:FOLDER+PHOTOGRAPHS` pairs each scene with a photograph of any other source: sample i is scene i mod N with
photograph i mod M, for i < max(N, M). Scenes are center-cropped to a square; photographs are resized to a square without
keeping the aspect ratio, as in the released code of Ren & Lee 2018 (train.py:29). A scene with a map that is missing,
unreadable or of a different size than its image is skipped like an unreadable image.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from pretask.data import decode, dense_maps, fingerprint, scene_layouts, store
from pretask.data.base import Images, Opened, OpenOptions, canvas_fields
from pretask.data.dense_maps import Planes
from pretask.data.encoded import Reader, median_side, open_encoded
from pretask.data.fingerprint import Fingerprint
from pretask.data.folder import part_of
from pretask.data.ledger import Ledger
from pretask.data.stream import Stream
from pretask.types import Batch, UserError

PREFIX = "scenes:"
CARD = "scenes.json"
"""file that `pretask render` writes to its folder"""


def understands(spec: str) -> bool:
    return spec.startswith(PREFIX) or (Path(spec).expanduser() / CARD).is_file()


def load(spec: str, options: OpenOptions) -> Opened:
    folder, photographs = split(spec)
    if store.understands(str(folder)):
        scenes = store.load(str(folder), options).images
    else:
        scenes = open_scenes(part_of(folder, options.split) if options.split else folder, options)
    if not photographs:
        return Opened(scenes)
    return Opened(Paired(scenes, open_photographs(photographs, scenes, options)))


def split(spec: str) -> tuple[Path, str]:
    """FOLDER+PHOTOGRAPHS -> the folder, whose name may contain a +, and the spec of the photographs."""
    path = spec.removeprefix(PREFIX)
    ends = [i for i, letter in enumerate(path) if letter == "+"] + [len(path)]
    for end in ends:
        if (folder := Path(path[:end]).expanduser()).is_dir():
            return folder, path[end + 1 :]
    raise UserError(
        f"{path[: ends[0]]} is not a folder; expected scenes:FOLDER or scenes:FOLDER+PHOTOGRAPHS; "
        "make one with pretask render"
    )


def open_scenes(root: Path, options: OpenOptions) -> Images:
    layout, bad = scene_layouts.find(root)
    if not layout.provides:
        raise UserError(f"{root} has only color/; expected depth/, normals/ or instances/ next to it")
    name = root.resolve().name
    reader = SceneReader(layout, options.size or median_side(name, layout), options.channels or 3)
    return open_encoded(name, reader, options, ledger=Ledger(bad)).images


class SceneReader(Reader):
    """Decodes an image and its maps into one array."""

    def __init__(
        self,
        layout: scene_layouts.PretaskLayout | scene_layouts.SceneNet | scene_layouts.Hypersim,
        size: int,
        channels: int,
    ):
        super().__init__(layout, size, channels)
        self.layout, self.planes = layout, Planes(channels, tuple(layout.provides))

    def one(self, i: int) -> np.ndarray:
        with decode.readable():
            path = self.items.read(i)
            assert isinstance(path, Path)
            data = decode.read(path)
            width, height = decode.size_of(data)
            pixels = decode.canvas(data, self.size, self.planes.channels, known=self.range)
            fitted = {}
            for kind, x in self.layout.maps(path).items():
                if x.shape[:2] != (height, width):
                    raise decode.Unreadable(
                        f"{kind}: {x.shape[1]} x {x.shape[0]} pixels, but its image has {width} x {height}"
                    )
                fitted[kind] = dense_maps.fit(kind, x, self.size)
            return self.planes.pack(pixels, fitted)


# ---- photographs


def open_photographs(spec: str, scenes: Images, options: OpenOptions) -> Images:
    from pretask import data as sources

    same_format = replace(options, **canvas_fields(scenes), split=None, labels="none", stretch=True)
    found = sources.open_spec(spec, same_format).images
    if isinstance(found, Stream):
        raise UserError(f"{spec} is a stream without random access; write it to disk with pretask prepare")
    return found


class Paired:
    """Scenes with a photograph each, in `photographs`; the shorter of the two sources is repeated."""

    def __init__(self, scenes: Images, photographs: Images):
        self.scenes, self.photographs = scenes, photographs
        self.name = f"{scenes.name}+{photographs.name}"
        self.size, self.channels, self.range = scenes.size, scenes.channels, scenes.range
        self.provides = scenes.provides | {"photographs"}
        self.ledger = Ledger()
        self.ledger.merge(scenes.ledger, photographs.ledger)

    def __len__(self) -> int:
        return max(len(self.scenes), len(self.photographs))

    def __getitems__(self, index: Tensor) -> Batch:
        scene = self.scenes.__getitems__(index % len(self.scenes))
        photograph = self.photographs.__getitems__(index % len(self.photographs))
        self.ledger.merge(self.scenes.ledger, self.photographs.ledger)
        return Batch(index, scene.image, {**scene.aux, "photographs": photograph.image})

    def files(self, index: Tensor) -> list[str]:
        """Names of scene and photograph, joined by +."""
        pairs = zip(
            self.scenes.files(index % len(self.scenes)),
            self.photographs.files(index % len(self.photographs)),
            strict=True,
        )
        return [" + ".join(pair) for pair in pairs]

    def readable(self, index: Tensor) -> Tensor:
        """Whether both images of a pair can be read."""
        scenes = self.scenes.readable(index % len(self.scenes))
        return scenes & self.photographs.readable(index % len(self.photographs))

    def fingerprint(self) -> Fingerprint:
        return fingerprint.of_parts(self.scenes.fingerprint(), self.photographs.fingerprint())
