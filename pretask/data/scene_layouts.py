"""Three file layouts of rendered or measured scenes, detected from their folders.

The project's own; SceneNet RGB-D (McCormac et al., ICCV 2017, arXiv:1612.05079); Hypersim (Roberts et al., ICCV 2021,
arXiv:2011.02523). Each reads the maps of an image, given the path of its color file: `depth` (H, W) in millimeters along
the optical axis; `normals` (H, W, 3) towards the camera, x right, y down, z forward; `instances` (H, W). 0 is unknown.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pretask.data import decode, dense_maps, normals
from pretask.data.base import Texts
from pretask.data.folder import Files, scan
from pretask.errors import install_command
from pretask.types import UserError

Maps = dict[str, np.ndarray]

SCENENET_VIEW = np.radians(60), np.radians(45)
"""horizontal and vertical field of view (authors' code, camera_pose_and_intrinsics_example.py); depth is along the ray"""
HYPERSIM_VIEW = np.pi / 3
"""horizontal field of view (authors' issue 75; some scenes differ slightly); depth_meters is along the ray (issue 9)"""


@contextmanager
def named(kind: str) -> Iterator[None]:
    """Within the block, reasons of Unreadable start with the kind of map."""
    try:
        with decode.readable():
            yield
    except decode.Unreadable as error:
        raise decode.Unreadable(f"{kind}: {error}") from None


class PretaskLayout(Files):
    """color/NAME.jpg or .png, with any of depth/, normals/, instances/NAME.png; optionally cameras.npz.

    Missing normals are computed from the depth if cameras.npz has the camera `intrinsics`: (3, 3), or one per image,
    (N, 3, 3), in the order of the names.
    """

    def __init__(self, root: Path, paths: list[bytes]):
        super().__init__(str(root), Texts.of(paths))
        self.there = [kind for kind in dense_maps.BYTES if (root / kind).is_dir()]
        self.order = {Path(os.fsdecode(path)).stem: i for i, path in enumerate(paths)}
        self.computed = "normals" not in self.there and "depth" in self.there and self.cameras is not None
        self.provides = [
            kind for kind in dense_maps.BYTES if kind in self.there or (kind == "normals" and self.computed)
        ]

    @cached_property
    def cameras(self) -> np.ndarray | None:
        file = Path(self.root, "cameras.npz")
        if not file.is_file():
            return None
        try:
            found = np.load(file)["intrinsics"].astype(float)
        except Exception as error:
            raise UserError(f"{file} has no intrinsics ({decode.reason(error)}); fix or remove it") from None
        if found.shape not in ((3, 3), (len(self), 3, 3)):
            raise UserError(f"{file} has intrinsics {found.shape}; expected (3, 3) or ({len(self)}, 3, 3)")
        return found

    def maps(self, color: Path) -> Maps:
        found: Maps = {}
        for kind in self.there:
            with named(kind):
                found[kind] = dense_maps.of_png(Path(self.root, kind, f"{color.stem}.png"), kind)
        if self.computed:
            assert self.cameras is not None
            camera = self.cameras if self.cameras.ndim == 2 else self.cameras[self.order[color.stem]]
            found["normals"] = normals.normals(found["depth"] / 1000, camera)
        return found


class SceneNet(Files):
    """TRAJECTORY/photo/NUMBER.jpg, depth/NUMBER.png, instance/NUMBER.png; normals are computed from the depth."""

    provides = ("depth", "normals", "instances")

    def __init__(self, root: Path, paths: list[bytes]):
        super().__init__(str(root), Texts.of(paths))

    def maps(self, color: Path) -> Maps:
        trajectory = color.parent.parent
        with named("depth"):
            length = dense_maps.of_png(trajectory / "depth" / f"{color.stem}.png", "depth") / 1000
        with named("instance"):
            instances = dense_maps.of_png(trajectory / "instance" / f"{color.stem}.png", "instances")
        camera = normals.camera(length.shape, *SCENENET_VIEW)
        depth = normals.along_axis(length, camera)
        return {
            "depth": dense_maps.millimeters(depth),
            "normals": normals.normals(depth, camera),
            "instances": instances,
        }


class Hypersim(Files):
    """SCENE/images/scene_CAM_final_preview/frame.NNNN.tonemap.jpg; scene_CAM_geometry_hdf5/frame.NNNN.KIND.hdf5."""

    provides = ("depth", "normals", "instances")

    def __init__(self, root: Path, paths: list[bytes]):
        super().__init__(str(root), Texts.of(paths))
        self.h5py = hdf5()

    def maps(self, color: Path) -> Maps:
        length, n, instances = (
            self.array(color, kind) for kind in ("depth_meters", "normal_cam", "semantic_instance")
        )
        camera = normals.camera(length.shape, HYPERSIM_VIEW)
        with named("normal_cam"):
            n = facing(
                n.astype(float) * (1, -1, -1), camera
            )  # in Hypersim y is up and z is towards the viewer
        with named("semantic_instance"):
            instances = dense_maps.ids(instances)
        return {
            "depth": dense_maps.millimeters(normals.along_axis(length.astype(float), camera)),
            "normals": n,
            "instances": instances,
        }

    def array(self, color: Path, kind: str) -> np.ndarray:
        folder = color.parent.with_name(color.parent.name.replace("_final_preview", "_geometry_hdf5"))
        with named(kind):
            path = folder / f"{'.'.join(color.name.split('.')[:2])}.{kind}.hdf5"
            if not path.is_file():
                raise FileNotFoundError(2, "No such file")
            with self.h5py.File(path) as file:
                return np.asarray(file["dataset"])


def facing(n: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Normals (H, W, 3) of any length -> unit vectors towards the camera, zeros if unknown."""
    n = np.where(np.isfinite(n), n, 0)
    n = n / np.linalg.norm(n, axis=2, keepdims=True).clip(min=1e-6)
    away = (n * normals.rays(n.shape[:2], camera)).sum(2, keepdims=True) > 0
    return np.where(away, -n, n).astype(np.float32)


def hdf5() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError(f"Hypersim needs the package `h5py`: {install_command('scenes')}") from None
    return h5py


def find(root: Path) -> tuple[PretaskLayout | SceneNet | Hypersim, dict[str, str]]:
    """The layout of a folder, and its unreadable entries: path -> reason."""
    paths, ledger = scan(root)
    bad = ledger.bad
    if own := [path for path in paths if path.startswith(b"color/") and path.count(b"/") == 1]:
        return PretaskLayout(root, own), inside(bad, "color/")
    if photos := [path for path in paths if b"/photo/" in b"/" + path and path.split(b"/")[-2] == b"photo"]:
        return SceneNet(root, sorted(photos)), bad
    if frames := [path for path in paths if path.endswith(b".tonemap.jpg") and b"_final_preview/" in path]:
        return Hypersim(root, sorted(frames)), bad
    raise UserError(
        f"{root} contains no scenes; expected color/ with depth/, normals/ or instances/ next to it, or the folders of "
        "SceneNet RGB-D (photo/, depth/, instance/) or Hypersim (…_final_preview/, …_geometry_hdf5/)"
    )


def inside(bad: dict[str, str], folder: str) -> dict[str, str]:
    return {path: why for path, why in bad.items() if path.startswith(folder)}
