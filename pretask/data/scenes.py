"""Scenes with dense maps beside their images: `scenes:FOLDER`, or a folder that `pretask render` made.

`scenes:FOLDER+PHOTOGRAPHS` sets a photograph of any other source beside each: sample i is scene i mod N with photograph
i mod M, and there are max(N, M) of them. Scenes are cut to their central square; photographs are squeezed to one, as in
the released code of Ren & Lee 2018 (train.py:29). A scene one of whose maps is missing, unreadable or of another size
than its image is left out, counted and listed, as an unreadable image is.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from pretask.data import decode, store
from pretask.data import dense_maps as maps
from pretask.data import scene_layouts as layouts
from pretask.data.base import Asked, Images, Opened
from pretask.data.dense_maps import Planes
from pretask.data.encoded import Reader, median_side, opened
from pretask.data.folder import inside
from pretask.data.ledger import Ledger
from pretask.data.stream import Stream
from pretask.types import Batch, UserError

PREFIX = "scenes:"
CARD = "scenes.json"
"""what `pretask render` leaves in its folder"""


def understands(spec: str) -> bool:
    return spec.startswith(PREFIX) or (Path(spec).expanduser() / CARD).is_file()


def load(spec: str, asked: Asked) -> Opened:
    folder, photographs = split(spec)
    if store.understands(str(folder)):
        scenes = store.load(str(folder), asked).images
    else:
        scenes = of_files(inside(folder, asked.split), asked)
    if not photographs:
        return Opened(scenes)
    return Opened(Paired(scenes, beside(photographs, scenes, asked)))


def split(spec: str) -> tuple[Path, str]:
    """A folder, whose name may have a + in it, and what follows the + behind it."""
    path = spec.removeprefix(PREFIX)
    ends = [i for i, letter in enumerate(path) if letter == "+"] + [len(path)]
    for end in ends:
        if (folder := Path(path[:end]).expanduser()).is_dir():
            return folder, path[end + 1 :]
    raise UserError(
        f"{path[: ends[0]]} is no folder; expected scenes:FOLDER or scenes:FOLDER+PHOTOGRAPHS; "
        "pretask render makes such a folder"
    )


def of_files(root: Path, asked: Asked) -> Images:
    layout, bad = layouts.find(root)
    if not layout.provides:
        raise UserError(f"{root} has color/ alone; expected depth/, normals/ or instances/ beside it")
    name = root.resolve().name
    reader = SceneReader(layout, asked.size or median_side(name, layout), asked.channels or 3)
    return opened(name, reader, asked, ledger=Ledger(bad)).images


class SceneReader(Reader):
    """Decodes an image and its maps into one canvas."""

    def __init__(self, layout: layouts.House | layouts.SceneNet | layouts.Hypersim, size: int, channels: int):
        super().__init__(layout, size, channels)
        self.layout, self.planes = layout, Planes(channels, tuple(layout.provides))

    def one(self, i: int) -> np.ndarray:
        with decode.readable():
            path = self.items.read(i)
            assert isinstance(path, Path)
            image = decode.opened(path)
            width, height = image.size
            pixels = decode.canvas(image, self.size, self.planes.channels)
            fitted = {}
            for kind, x in self.layout.maps(path).items():
                if x.shape[:2] != (height, width):
                    raise decode.Unreadable(
                        f"{kind}: {x.shape[1]} x {x.shape[0]} pixels; its image has {width} x {height}"
                    )
                fitted[kind] = maps.fit(kind, x, self.size)
            return self.planes.pack(pixels, fitted)


# ---- with photographs


def beside(spec: str, scenes: Images, asked: Asked) -> Images:
    from pretask import data as sources

    alike = replace(
        asked, size=scenes.size, channels=scenes.channels, split=None, labels="none", stretch=True
    )
    found = sources.opened(spec, alike).images
    if isinstance(found, Stream):
        raise UserError(
            f"{spec} is a stream, whose images have no places; write it to disk with pretask prepare"
        )
    return found


class Paired:
    """Scenes, each with a photograph beside it as `photographs`; the shorter of the two starts over."""

    def __init__(self, scenes: Images, photographs: Images):
        self.scenes, self.photographs = scenes, photographs
        self.name = f"{scenes.name}+{photographs.name}"
        self.size, self.channels = scenes.size, scenes.channels
        self.provides = scenes.provides | {"photographs"}
        self.ledger = Ledger()
        self.ledger.gather(scenes.ledger, photographs.ledger)

    def __len__(self) -> int:
        return max(len(self.scenes), len(self.photographs))

    def __getitems__(self, index: Tensor) -> Batch:
        scene = self.scenes.__getitems__(index % len(self.scenes))
        photograph = self.photographs.__getitems__(index % len(self.photographs))
        self.ledger.gather(self.scenes.ledger, self.photographs.ledger)
        return Batch(index, scene.image, {**scene.aux, "photographs": photograph.image})

    def files(self, index: Tensor) -> list[str]:
        """Both names; of a pair one of which is unreadable that one's, under which it is listed."""
        pairs = zip(
            self.scenes.files(index % len(self.scenes)),
            self.photographs.files(index % len(self.photographs)),
            strict=True,
        )
        return [next((one for one in pair if one in self.ledger.bad), " + ".join(pair)) for pair in pairs]
