"""Scenes: three layouts, maps that match their image through cropping, workers, subsets and stores, and bad maps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pretask import data
from pretask.data import dense_maps, encoded, loader, normals, store
from pretask.data.dense_maps import Planes
from pretask.data.subset import draw_subset
from pretask.errors import install_command
from pretask.reading import Reading
from pretask.types import UserError

N, HEIGHT, WIDTH = 12, 24, 32


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def scene(folder: Path, i: int) -> None:
    """Color i; depth 1 m and i mm; a normal rotated by i; instance i + 1."""
    name, shape = f"{i:03d}", (HEIGHT, WIDTH)
    picture(folder / f"color/{name}.png", np.full((*shape, 3), i, np.uint8))
    picture(folder / f"depth/{name}.png", np.full(shape, 1000 + i, np.uint16))
    n = np.full((*shape, 3), direction(i), np.float32)
    picture(folder / f"normals/{name}.png", dense_maps.encode(n))
    picture(folder / f"instances/{name}.png", np.full(shape, i + 1, np.uint8))


def direction(i: int) -> tuple[float, float, float]:
    return (float(np.sin(i / N)), 0.0, -float(np.cos(i / N)))


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    for i in range(N):
        scene(tmp_path / "rooms", i)
    return tmp_path / "rooms"


def check_together(batch, names=("depth", "normals", "instances")):
    """All fields of a sample come from the same scene."""
    i = batch.image[:, 0, 0, 0].long()
    expected = {
        "depth": 1 + i.float() / 1000,
        "instances": i.int() + 1,
        "normals": torch.tensor([direction(k) for k in i.tolist()]),
    }
    for name in names:
        x = batch.aux[name]
        at_first = x[:, :, 0, 0].squeeze(1)
        assert torch.equal(x, x[:, :, :1, :1].expand_as(x))
        assert torch.allclose(at_first, expected[name], atol=0 if name == "instances" else 0.005), name
    assert batch.aux["depth"].dtype == torch.float32 and batch.aux["instances"].dtype == torch.int32
    return i


@pytest.mark.parametrize("cache", [64, 0], ids=["memory", "later"])
def test_every_image_comes_with_its_own_maps(cache: int, scene_folder: Path):
    source = data.open(f"scenes:{scene_folder}", size=16, cache_mb=cache)
    assert source.provides == {"depth", "normals", "instances"} and not source.ledger.bad
    assert (len(source), source.channels, source.size) == (N, 3, 16)
    index = torch.tensor([7, 3, 3, 0])
    assert torch.equal(check_together(source.__getitems__(index)), index)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for batch in loader.epoch(source, order, 4, workers=2):
        assert torch.equal(check_together(batch), batch.index)


def test_subset_and_store_keep_images_and_maps_together(scene_folder: Path, tmp_path: Path):
    for cache in (64, 0):
        source = data.open(f"scenes:{scene_folder}", size=16, cache_mb=cache)
        some = draw_subset(source, 0.5, seed=1)
        assert len(some) == N // 2
        assert len(set(check_together(some.__getitems__(torch.arange(6))).tolist())) == 6
    store.prepare(source, tmp_path / "store", progress=False)
    for spec in (tmp_path / "store", f"scenes:{tmp_path / 'store'}"):
        assert check_together(data.open(spec).__getitems__(torch.arange(N))).tolist() == list(range(N))


@pytest.mark.parametrize("kind", ["depth", "normals", "instances"])
def test_folder_provides_the_maps_that_it_has(kind: str, scene_folder: Path):
    for other in {"depth", "normals", "instances"} - {kind}:
        (scene_folder / other).rename(scene_folder / f"no-{other}")
    source = data.open(f"scenes:{scene_folder}", size=16)
    assert source.provides == {kind}
    assert source.__getitems__(torch.arange(2)).aux.keys() == {kind}


def test_map_is_cropped_and_resized_like_its_image(tmp_path: Path):
    column = np.tile(np.arange(WIDTH), (HEIGHT, 1))
    picture(tmp_path / "color/a.png", np.repeat(column[..., None], 3, 2).astype(np.uint8))
    picture(tmp_path / "depth/a.png", column.astype(np.uint16))
    picture(tmp_path / "instances/a.png", column.T.repeat(2, 1)[:HEIGHT, :WIDTH].astype(np.uint16))
    whole = data.open(f"scenes:{tmp_path}", size=HEIGHT).__getitems__(torch.tensor([0]))
    assert torch.equal((1000 * whole.aux["depth"]).round(), whole.image[:, :1].float())
    half = data.open(f"scenes:{tmp_path}", size=HEIGHT // 2).__getitems__(torch.tensor([0]))
    shift = (1000 * half.aux["depth"]).round() - half.image[:, :1].float()
    assert shift[..., 1:-1].abs().max() <= 1  # nearest is half a pixel off the mean of two
    assert half.aux["depth"][0, 0, 0].diff().min() > 0 and half.aux["depth"][0, 0, :, 0].unique().numel() == 1


def test_resized_normal_is_the_mean_direction_of_known_normals():
    n = np.zeros((4, 4, 3), np.float32)
    n[:2, :2] = [[(0, 0, -1), (0, -1, 0)], [(0, 0, 0), (0, 0, 0)]]
    n[:2, 2:] = (1, 0, 0)
    small = dense_maps.fit("normals", n, 2)
    assert np.allclose(small[0, 0], (0, -(0.5**0.5), -(0.5**0.5))) and np.allclose(small[0, 1], (1, 0, 0))
    assert not small[1].any()


def test_packed_maps_are_unpacked_exactly():
    rng = np.random.default_rng(0)
    n = rng.normal(size=(8, 8, 3))
    n /= np.linalg.norm(n, axis=2, keepdims=True)
    n[0] = 0
    given = {
        "depth": rng.integers(0, 65536, (8, 8)),
        "normals": n,
        "instances": rng.integers(0, 65536, (8, 8)),
    }
    image = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    planes = Planes(3, ("depth", "normals", "instances"))
    packed = torch.from_numpy(planes.pack(image, given))[None]
    assert packed.shape[1] == planes.count == 10
    back, numbers = planes.unpack(packed)
    assert torch.equal(back[0], torch.from_numpy(image))
    assert np.array_equal((numbers["depth"][0, 0].double() * 1000).round().numpy(), given["depth"])
    assert np.array_equal(numbers["instances"][0, 0].numpy(), given["instances"])
    found = numbers["normals"][0].permute(1, 2, 0).numpy()
    assert np.abs(found - n).max() < 0.01 and not found[0].any()
    assert np.allclose(np.linalg.norm(found[1:], axis=2), 1, atol=1e-6)


# ---- bad maps


def spoil(scene_folder: Path) -> dict[str, str]:
    (scene_folder / "depth/001.png").unlink()
    (scene_folder / "normals/003.png").write_bytes(b"no image")
    picture(scene_folder / "instances/005.png", np.ones((HEIGHT, WIDTH - 1), np.uint8))
    picture(scene_folder / "depth/007.png", np.ones((HEIGHT, WIDTH), np.uint8))
    (scene_folder / "color/009.png").write_bytes(b"")
    return {
        "color/001.png": "depth: no such file or directory",
        "color/003.png": "normals: not an image",
        "color/005.png": "instances: 31 x 24 pixels, but its image has 32 x 24",
        "color/007.png": "depth: PNG of mode L; expected 16 bit in millimeters",
        "color/009.png": "empty",
    }


def test_scene_with_a_bad_map_is_skipped_and_listed(scene_folder: Path):
    bad = spoil(scene_folder)
    source = data.open(f"scenes:{scene_folder}", size=16, reading=Reading(max_bad=0.5))
    assert source.ledger.bad == bad
    assert check_together(source.__getitems__(torch.arange(7))).tolist() == [0, 2, 4, 6, 8, 10, 11]
    with pytest.raises(UserError, match=r"5 of 12 images cannot be read .*depth: no such file.* --max-bad"):
        data.open(f"scenes:{scene_folder}", size=16)


def test_replacement_scene_has_its_own_maps(scene_folder: Path, monkeypatch):
    monkeypatch.setattr(encoded, "sample", lambda n: [0])
    bad = spoil(scene_folder)
    source = data.open(f"scenes:{scene_folder}", size=16, reading=Reading(max_bad=0.5), cache_mb=0)
    (batch,) = loader.epoch(source, torch.arange(N), N, workers=1)
    assert check_together(batch).tolist() == [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 11]
    assert source.ledger.bad == bad


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("photo.png", "contains no scenes; expected color/"),
        ("color/a.png", "has only color/; expected depth/"),
    ],
)
def test_folder_without_scenes_says_what_is_expected(made: str, message: str, tmp_path: Path):
    picture(tmp_path / made, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=message):
        data.open(f"scenes:{tmp_path}")


def test_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone is not a folder; expected scenes:FOLDER or"):
        data.open(f"scenes:{tmp_path}/gone+cifar10")
    scene(tmp_path, 0)
    with pytest.raises(UserError, match="has no labels"):
        data.open_labeled(f"scenes:{tmp_path}")


# ---- photographs


@pytest.mark.parametrize("cache", [64, 0], ids=["memory", "later"])
def test_shorter_of_scenes_and_photographs_is_repeated(cache: int, scene_folder: Path, tmp_path: Path):
    values = np.arange(100, 120, dtype=np.uint8)
    np.savez(tmp_path / "photo+s.npz", images=np.tile(values[:, None, None, None], (1, 16, 16, 3)))
    for i, value in enumerate(values[:5]):
        picture(tmp_path / f"few/{i}.png", np.full((16, 16, 3), value, np.uint8))
    for spec, m in ((tmp_path / "photo+s.npz", 20), (tmp_path / "few", 5)):
        source = data.open(f"scenes:{scene_folder}+{spec}", size=16, cache_mb=cache)
        assert source.provides == {"depth", "normals", "instances", "photographs"}
        assert len(source) == max(N, m) == len(set(source.files(torch.arange(len(source)))))
        for batch in loader.epoch(source, torch.arange(len(source)), 8, workers=1):
            assert torch.equal(check_together(batch), batch.index % N)
            assert torch.equal(batch.aux["photographs"][:, 0, 0, 0].long() - 100, batch.index % m)


@pytest.mark.parametrize("cache", [2048, 0], ids=["in memory", "later"])
def test_photographs_are_stretched_and_scenes_center_cropped(cache: int, scene_folder: Path, tmp_path: Path):
    """A panorama with a black and a white end: both are visible as a photograph, neither as a scene."""
    (tmp_path / "photos").mkdir()
    pixels = np.full((32, 128, 3), 128, np.uint8)
    pixels[:, :16], pixels[:, -16:] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    options = {"size": 16, "channels": 3, "cache_mb": cache}
    both = data.open(f"scenes:{scene_folder}+{tmp_path / 'photos'}", **options).__getitems__(torch.arange(1))
    row = both.aux["photographs"][0, 0, 8]
    assert row[0] < 10 and row[-1] > 245
    only = data.open(tmp_path / "photos", **options).__getitems__(torch.arange(1)).image
    assert (only == 128).all()


def test_unreadable_part_of_a_pair_is_listed_by_name(scene_folder: Path, tmp_path: Path):
    for i in range(20):
        picture(tmp_path / f"photos/{i:02}.png", np.full((16, 16, 3), i, np.uint8))
    (tmp_path / "photos/13.png").write_bytes(b"no image")
    (scene_folder / "depth/004.png").unlink()
    source = data.open(f"scenes:{scene_folder}+{tmp_path / 'photos'}", size=16, cache_mb=0)
    list(loader.epoch(source, torch.arange(len(source)), 8, workers=1))
    assert source.ledger.bad.keys() == {"color/004.png", "13.png"}
    named = source.files(torch.tensor([3, 4, 13, 16]))
    assert named == [f"color/{i % 12:03}.png + {j:02}.png" for i, j in ((3, 3), (4, 4), (13, 13), (16, 16))]
    assert source.readable(torch.tensor([3, 4, 13, 16])).tolist() == [True, False, False, False]
    store.prepare(source, tmp_path / "store", progress=False)
    assert len(data.open(tmp_path / "store")) == 17  # of 20 pairs


@pytest.mark.parametrize("photographs", ["pairs.jsonl", "text:articles", "hf:some/data", "photos.npz"])
def test_prefix_decides_for_any_photographs(photographs: str, scene_folder: Path):
    assert data.kind(f"scenes:{scene_folder}+{photographs}").__name__ == "pretask.data.scenes"


# ---- other layouts: a floor 1.5 m below the camera, by the formula


def floor(height: int, width: int, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) in meters and length of the ray; 0 from a little below the horizon up."""
    depth, length = np.zeros((height, width)), np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            x = (column + 0.5 - camera[0, 2]) / camera[0, 0]
            y = (row + 0.5 - camera[1, 2]) / camera[1, 1]
            if y > 0.2:  # near the horizon the rows of such a small image are meters from each other
                depth[row, column] = 1.5 / y
                length[row, column] = 1.5 / y * (1 + x * x + y * y) ** 0.5
    return depth, length


def check_floor(source: data.Images, depth: np.ndarray):
    batch = source.__getitems__(torch.tensor([0]))
    h, w = depth.shape
    square = torch.from_numpy(depth[:, (w - h) // 2 : (w + h) // 2])
    assert torch.allclose(batch.aux["depth"][0, 0].double(), square, atol=0.002)
    n, known = batch.aux["normals"][0], square > 0
    assert (n.norm(dim=0) > 0).sum() >= 0.95 * known.sum()
    off = n[:, n.norm(dim=0) > 0] - torch.tensor([0.0, -1.0, 0.0])[:, None]
    assert off.abs().max() < 0.03
    assert source.provides == {"depth", "normals", "instances"}
    assert batch.aux["instances"].unique().tolist() == [0, 7]


def test_scenenet_depth_is_along_rays_and_normals_come_from_depth(tmp_path: Path):
    camera = np.array([[277.128 / 4, 0, 40], [0, 289.706 / 4, 30], [0, 0, 1]])  # 60 by 45 degrees, at 80 x 60
    depth, length = floor(60, 80, camera)
    for trajectory in ("0/0", "0/17"):
        at = tmp_path / trajectory
        picture(at / "photo/25.jpg", np.zeros((60, 80, 3), np.uint8))
        picture(at / "depth/25.png", (length * 1000).round().astype(np.uint16))
        picture(at / "instance/25.png", np.where(depth > 0, 7, 0).astype(np.uint16))
    source = data.open(f"scenes:{tmp_path}", size=60)
    assert source.files(torch.arange(2)) == ["0/0/photo/25.jpg", "0/17/photo/25.jpg"]
    check_floor(source, depth)


def test_hypersim_depth_is_along_rays_and_normals_have_other_axes(tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    camera = np.array([[886.81 / 16, 0, 32], [0, 886.81 / 16, 24], [0, 0, 1]])  # 1024 x 768, a sixteenth
    depth, length = floor(48, 64, camera)
    length[depth == 0] = np.nan
    n = np.zeros((48, 64, 3), np.float16)
    n[depth > 0] = (0, 1, 0)  # y is up in Hypersim
    images = tmp_path / "ai_001_001/images"
    picture(images / "scene_cam_00_final_preview/frame.0003.tonemap.jpg", np.zeros((48, 64, 3), np.uint8))
    instances = np.where(depth > 0, 7, -1).astype(np.int16)
    for kind, x in {"depth_meters": length, "normal_cam": n, "semantic_instance": instances}.items():
        path = images / f"scene_cam_00_geometry_hdf5/frame.0003.{kind}.hdf5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            file["dataset"] = x
    source = data.open(f"scenes:{tmp_path}", size=48)
    check_floor(source, depth)
    with h5py.File(path.with_name("frame.0003.normal_cam.hdf5"), "w") as file:
        file["dataset"] = np.full(
            (48, 64, 3), (0.6, 0.0, 0.8), np.float32
        )  # z is towards the viewer in Hypersim
    turned = data.open(f"scenes:{tmp_path}", size=48).__getitems__(torch.tensor([0])).aux["normals"]
    assert (turned - torch.tensor([0.6, 0.0, -0.8]).view(1, 3, 1, 1)).abs().max() < 0.01
    path.unlink()
    with pytest.raises(UserError, match="semantic_instance: no such file"):
        data.open(f"scenes:{tmp_path}", size=48)


def test_missing_h5py_names_the_install_command(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    picture(tmp_path / "a_final_preview/frame.0000.tonemap.jpg", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=re.escape(f"`h5py`: {install_command('scenes')}")):
        data.open(f"scenes:{tmp_path}")


# ---- normals from depth


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between unit vectors (…, 3)."""
    return np.degrees(np.arccos((a * b).sum(-1).clip(-1, 1)))


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.6, 0, -0.8), (0, -0.8, -0.6), (-0.48, 0.64, -0.6)])
def test_normal_of_a_plane_is_exact(normal: tuple[float, float, float]):
    camera = normals.camera((40, 60), np.radians(60))
    ray = normals.rays((40, 60), camera)
    depth = -2 / (ray @ np.array(normal))  # n·P = -2
    depth = np.where((depth > 0) & (depth < 5), depth, 0)
    found = normals.normals(depth, camera)
    known = found.any(2)
    assert known.sum() > 0.99 * (depth > 0).sum() > 0.5 * 40 * 60
    assert angle(found[known], np.array(normal)).max() < 0.1


def test_normals_of_a_sphere_are_exact_up_to_its_edge():
    camera = normals.camera((96, 96), np.radians(50))
    ray = normals.rays((96, 96), camera)
    center, radius = np.array([0.2, -0.1, 3.0]), 0.8
    depth, n = np.full((96, 96), 6.0), np.full((96, 96, 3), (0.0, 0.0, -1.0))
    for row in range(96):
        for column in range(96):
            d = ray[row, column]
            a, b, c = d @ d, d @ center, center @ center - radius**2
            if b * b > a * c:
                depth[row, column] = (b - (b * b - a * c) ** 0.5) / a
                n[row, column] = (depth[row, column] * d - center) / radius
    found = normals.normals(depth, camera)
    off = angle(found, n)
    assert np.allclose(np.linalg.norm(found[found.any(2)], axis=1), 1, atol=1e-5)
    steep = (n * ray / np.linalg.norm(ray, axis=2, keepdims=True)).sum(2) > -0.3
    assert off[~steep].mean() < 0.5 and np.quantile(off[~steep], 0.99) < 3


def test_unknown_depth_gives_no_normal():
    depth = np.ones((20, 20))
    depth[:, 8:12] = 0
    found = normals.normals(depth, normals.camera((20, 20), 1.0))
    assert (
        not found[:, 8:12].any()
        and found[:, :8].any(2).all()
        and not normals.normals(0 * depth, np.eye(3)).any()
    )


def test_normals_are_computed_if_there_is_a_camera(scene_folder: Path):
    for kind in ("normals", "instances"):
        (scene_folder / kind).rename(scene_folder / f"no-{kind}")
    assert data.open(f"scenes:{scene_folder}", size=16).provides == {"depth"}
    cameras = np.stack([normals.camera((HEIGHT, WIDTH), 1.0)] * N)
    np.savez(scene_folder / "cameras.npz", intrinsics=cameras)
    source = data.open(f"scenes:{scene_folder}", size=16)
    n = source.__getitems__(torch.arange(N)).aux["normals"]
    assert (F.cosine_similarity(n, torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)) > 0.9999).all()
    ramp = np.tile(1000 + 30 * np.arange(WIDTH), (HEIGHT, 1)).astype(np.uint16)
    picture(scene_folder / "depth/004.png", ramp)
    cameras[4, 0, 0] *= 2
    np.savez(scene_folder / "cameras.npz", intrinsics=cameras)
    n = data.open(f"scenes:{scene_folder}", size=HEIGHT).__getitems__(torch.tensor([4])).aux["normals"][0]
    own = normals.normals(ramp / 1000, cameras[4])[:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
    assert np.abs(n.permute(1, 2, 0).numpy() - own).max() < 0.01
    np.savez(scene_folder / "cameras.npz", intrinsics=cameras[:3])
    with pytest.raises(UserError, match=r"intrinsics \(3, 3, 3\); expected \(3, 3\) or \(12, 3, 3\)"):
        data.open(f"scenes:{scene_folder}")


# ---- real and synthetic scenes


def test_real_kitchen_scenes_have_normals_consistent_with_depth(shared_data):
    source = data.open(f"scenes:{shared_data('rgbd', 'seven_scenes')}", size=64, progress=False)
    assert len(source) == 63 and source.provides == {"depth", "normals"} and not source.ledger.bad
    batch = source.__getitems__(torch.arange(0, 63, 9))
    depth, n = batch.aux["depth"], batch.aux["normals"]
    known = depth > 0
    assert 0.6 < known.float().mean() < 0.99 and 0.5 < depth[known].median() < 5
    length = n.norm(dim=1)
    assert torch.allclose(length[length > 0], torch.ones(()), atol=1e-5)
    camera = np.array([[292.5, 0, 120], [0, 292.5, 120], [0, 0, 240 / 64]]) * 64 / 240
    ray = torch.from_numpy(normals.rays((64, 64), camera)).permute(2, 0, 1)
    towards = (n * ray).sum(1) < 0
    assert towards[length > 0].float().mean() > 0.99


def test_synthetic_objects_have_the_depth_of_their_foot():
    size = 64
    batch = data.open(f"synthetic:32:{size}").__getitems__(torch.arange(32))
    depth, n, instance = (batch.aux[name] for name in ("depth", "normals", "instances"))
    assert depth.shape == instance.shape == (32, 1, size, size) and n.shape == (32, 3, size, size)
    assert torch.allclose(n.norm(dim=1), torch.ones(()), atol=1e-5)
    assert instance.dtype == torch.int32 and instance.unique().tolist() == [1, 2, 3]
    for i in range(32):
        below = (instance[i, 0] == 3).nonzero()[:, 0].max() + 1  # the row of ground under the foot
        column = (instance[i, 0, below - 1] == 3).nonzero().median()
        stands, ground = (1 / depth[i, 0, row, column].item() for row in (below - 1, below))
        assert stands == pytest.approx(ground, abs=1.01 / size / 1.5)  # change of 1 / z from row to row
        camera = normals.camera((size, size), 2 * np.arctan(0.5))
        camera[1, 2] = size - 0.5 - size * 1.5 / depth[i, 0, -1, 0].item()  # the horizon, from the last row
        found = normals.normals(depth[i, 0].double().numpy(), camera)
        near = (instance[i, 0] == 2) & (depth[i, 0] < 8) & torch.from_numpy(found).any(2)
        assert near.sum() > 100 and np.median(angle(found[near], np.array([0, -1, 0]))) < 1
    photographs = batch.aux["photographs"]
    assert photographs.dtype == torch.uint8 and photographs.shape == batch.image.shape
    assert not torch.equal(photographs, batch.image)
    gray = data.open("synthetic:4:16", channels=1).__getitems__(torch.arange(4))
    assert gray.aux["photographs"].shape == gray.image.shape == (4, 1, 16, 16)
