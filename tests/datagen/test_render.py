"""Rendering: maps match the formula, depth matches normals, and files are reproducible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data
from pretask.cli import main
from pretask.data import dense_maps, normals
from pretask.datagen import render, rooms
from pretask.datagen.rooms import place, solids
from pretask.errors import install_command
from pretask.types import UserError

mi = pytest.importorskip("mitsuba")
TINY = render.RenderConfig(size=32, samples=1, seed=3)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.suffix != ".npz"
    }


def unit(n: np.ndarray) -> np.ndarray:
    return n / np.linalg.norm(n, axis=2, keepdims=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three small scenes, rendered by the command."""
    out = tmp_path_factory.mktemp("made") / "rooms"
    words = ["render", "--scenes", "3", "--out", str(out), "--size", "32", "--samples", "1", "--seed", "3"]
    assert main.main([*words, "--workers", "1"]) == 0
    return out


# ---- against the formula


@pytest.mark.parametrize("roll", [0.0, 25.0])
def test_ball_in_front_of_a_wall_matches_the_formula(roll: float):
    mi = render.mitsuba()
    origin, target = np.array([0.5, 1.2, 0.3]), np.array([1.0, 0.9, 5.0])
    room = rooms.Room(mi, np.random.default_rng(0), 5, 3, 6, origin, target, 60.0, roll)
    gray = solids.matte(room, {"type": "rgb", "value": 0.5})
    room.add([solids.box(room, gray, (20, 20, 0.2))], 0, -8, 6.1)  # its face is the plane z = 6
    room.add([solids.ball(room, gray, 0.6)], 0.8, 1.0, 3.0)
    room.add([solids.ball(room, gray, 0.1) | {"emitter": solids.emitter([1, 1, 1], 500, 1)}], 0, 2.5, 0.2)
    size = 48
    (light, albedo), hits = render.trace(mi, room, render.RenderConfig(size, 1, 0), 0)
    assert (
        light.shape == albedo.shape == (size, size, 3) and (light.mean() > 0.01) and np.allclose(albedo, 0.5)
    )

    forward = (target - origin) / np.linalg.norm(target - origin)
    right = np.cross(forward, [0, 1, 0])
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    assert down[1] < -0.9  # y is down in the image, up in the room
    c, s = np.cos(np.radians(roll)), np.sin(np.radians(roll))
    right, down = c * right + s * down, c * down - s * right
    ray = normals.rays((size, size), normals.camera((size, size), np.radians(60)))
    center = np.array([0.8, 1.0, 3.0]) - origin
    seen = []
    for row in range(size):
        for column in range(size):
            d = ray[row, column] @ np.stack([right, down, forward])
            a, b, c = d @ d, d @ center, center @ center - 0.6**2
            if b * b > a * c:
                depth = (b - (b * b - a * c) ** 0.5) / a
                n, instance = (depth * d - center) / 0.6, 2
            else:
                depth, n, instance = (6 - origin[2]) / d[2], np.array([0, 0, -1.0]), 1
            edge = abs(b * b - a * c) < 0.05
            seen.append(instance)
            if not edge:
                assert hits.instance[row, column] == instance
                assert hits.depth[row, column] == pytest.approx(depth, abs=2e-3)
                expected = [n @ right, n @ down, n @ forward]
                assert np.abs(hits.normal[row, column] - expected).max() < 0.01
    assert 50 < seen.count(2) < size**2 / 2


def test_normals_from_rendered_depth_match_rendered_normals():
    """On smooth surfaces; at edges, planes are fitted to two surfaces."""
    settings = render.RenderConfig(96, 1, 0)
    off = []
    for i in (0, 1):
        scene = render.scene(settings, i)
        depth, n = scene["depth"] / 1000, unit(dense_maps.decode_normals(scene["normals"]))
        found = normals.normals(depth, render.intrinsics(settings, i))
        smooth = np.ones(depth.shape, bool)
        for by in ((0, 1), (0, -1), (1, 0), (-1, 0), (2, 0), (-2, 0), (0, 2), (0, -2)):
            other = np.roll(n, by, (0, 1))
            smooth &= ((other * n).sum(2) > 0.99) & (
                np.roll(scene["instances"], by, (0, 1)) == scene["instances"]
            )
        known = smooth & found.any(2)
        assert known.mean() > 0.4
        off.append(np.degrees(np.arccos((found * n).sum(2).clip(-1, 1)))[known])
    off = np.concatenate(off)
    assert np.median(off) < 1 and off.mean() < 2.5


def test_normals_face_the_camera_and_every_pixel_is_known():
    settings = render.RenderConfig(48, 1, 1)
    scene = render.scene(settings, 5)
    ray = normals.rays((48, 48), render.intrinsics(settings, 5))
    assert (scene["depth"] > 100).all() and (scene["depth"] < 12_000).all()
    assert ((dense_maps.decode_normals(scene["normals"]) * ray).sum(2) < 0.02).all()
    assert (scene["instances"] > 0).all()


def test_object_of_many_solids_is_one_instance():
    mi = render.mitsuba()
    for i in range(4):
        room = rooms.make_room(mi, np.random.default_rng([0, i]))
        assert len(room.shapes) > 1.5 * room.objects
        parts = [name.partition("_") for name in room.shapes]
        assert {int(instance) for instance, _, _ in parts} == set(range(1, room.objects + 1))
    names = ["00002_00", "00002_01", "00001_00"]
    room = rooms.Room(mi, np.random.default_rng(0), 5, 3, 6, np.zeros(3), np.array([0, 0, 1.0]), 60.0)
    hits = np.zeros((1, 3, 7))
    hits[..., 2], hits[..., 5], hits[0, :, 6] = 5, -1, [1, 2, 3]
    found = render.to_camera_axes(hits, names, room)
    assert found.instance.tolist() == [[2, 2, 1]] and found.solid.tolist() == [[1, 2, 3]]
    hits[0, 1, 5] = 1  # the inside of an open solid
    found = render.to_camera_axes(hits, names, room)
    assert (found.normal == (0, 0, -1)).all()


def test_camera_stands_in_no_object():
    mi = render.mitsuba()
    for i in range(8):
        room = rooms.make_room(mi, np.random.default_rng([7, i]))
        for x, z, radius in room.occupied:
            assert np.hypot(x - room.origin[0], z - room.origin[2]) > radius + place.CLEARANCE
        assert abs(room.origin[0]) < room.width / 2 and 0 < room.origin[2] < room.depth
        assert 1 <= room.origin[1] <= 1.8 < room.height
        assert abs(room.target[0]) < room.width / 2 and room.origin[2] < room.target[2] < room.depth


def test_half_of_the_cameras_show_a_nearby_object():
    mi = render.mitsuba()
    made = [rooms.make_room(mi, np.random.default_rng([5, i])) for i in range(40)]
    reach = [np.linalg.norm(room.target - room.origin) for room in made]
    near = [room for room, far in zip(made, reach, strict=True) if far < 2.6]
    assert 12 <= len(near) <= 30
    stands = []
    for room in near:
        x, z, radius = room.occupied[0]  # placed first
        stands.append(np.hypot(x - room.target[0], z - room.target[2]) < 1.5 * radius)
    assert sum(stands) > 0.7 * len(near)
    assert max(abs(room.roll) for room in made) <= rooms.MAX_ROLL and len({room.roll for room in made}) == 40


def test_denoising_keeps_textures_and_outlines():
    rng = np.random.default_rng(0)
    albedo = np.where((np.arange(40) // 5 % 2)[None, :, None] > 0, 0.8, 0.2) * np.ones((40, 40, 3))
    solid = np.ones((40, 40), int)
    solid[20:] = 2
    clean = albedo * np.where(solid == 2, 3.0, 1.0)[..., None]
    normal = np.full((40, 40, 3), (0, 0, -1.0))
    hits = render.RayHits(np.ones((40, 40)), normal, solid, solid)
    assert np.allclose(render.denoise(clean, albedo, hits), clean, rtol=0.08)
    noisy = clean * rng.gamma(4, 0.25, clean.shape[:2])[..., None]
    before, after = (np.abs(x - clean).mean() for x in (noisy, render.denoise(noisy, albedo, hits)))
    assert after < 0.5 * before


# ---- files


def test_rendered_folder_is_a_source(made: Path):
    card = json.loads((made / "scenes.json").read_text())
    assert card == {"scenes": 3, "size": 32, "samples": 1, "seed": 3}
    for spec in (str(made), f"scenes:{made}", f"{made}/"):
        source = data.open(spec)
        assert (len(source), source.size, source.ledger.bad) == (3, 32, {})
        assert source.provides == {"depth", "normals", "instances"}
    batch = source.__getitems__(torch.arange(3))
    whole = render.scene(TINY, 1)
    assert np.array_equal(batch.image[1].permute(1, 2, 0).numpy(), whole["color"])
    assert np.array_equal((batch.aux["depth"][1, 0].double() * 1000).round().numpy(), whole["depth"])
    assert np.array_equal(batch.aux["instances"][1, 0].numpy(), whole["instances"])
    assert np.load(made / "cameras.npz")["intrinsics"].shape == (3, 3, 3)
    assert Image.open(made / "scenes.png").width > 300
    colors = batch.image.float().mean((1, 2, 3)) / 255
    assert ((colors > 0.2) & (colors < 0.85)).all()  # neither too dark nor overexposed


def test_command_prints_result_and_next_step(made: Path, capsys):
    words = ["render", "--scenes", "3", "--out", str(made), "--size", "32", "--samples", "1", "--seed", "3"]
    assert main.main(words) == 0
    printed = capsys.readouterr()
    assert "(3 scenes of 32 px, 3 existed)" in printed.err and not printed.out
    assert f"Next: pretask preview cross_domain --data scenes:{made}+PHOTOGRAPHS" in printed.err


def test_two_workers_and_an_interrupted_command_render_the_same_files(made: Path, tmp_path: Path):
    for kind in ("depth", "color"):
        (tmp_path / "rooms" / kind).mkdir(parents=True)
    (tmp_path / "rooms/scenes.json").write_text((made / "scenes.json").read_text())
    for name in ("depth/000000.png", "depth/000001.png", "color/000001.png"):
        (tmp_path / "rooms" / name).write_bytes((made / name).read_bytes())
    for kind in ("normals", "instances"):  # scene 1 is complete, scene 0 has only its depth
        (tmp_path / "rooms" / kind).mkdir()
        (tmp_path / f"rooms/{kind}/000001.png").write_bytes((made / f"{kind}/000001.png").read_bytes())
    again = render.render(tmp_path / "rooms", 3, TINY, workers=2, progress=False)
    assert again.new == 2
    assert files(tmp_path / "rooms") == files(made)


def test_other_seeds_give_other_rooms():
    one, same, other = (render.scene(TINY, i)["depth"] for i in (1, 1, 2))
    seeded = render.scene(render.RenderConfig(32, 1, 4), 1)["depth"]
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other) and not np.array_equal(one, seeded)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--size", "48"], "was made with --size 32; give the same, or another --out"),
        (["--seed", "4", "--samples", "2"], "was made with --samples 1 --seed 3"),
        (["--size", "8"], "--size 8 is out of range; expected a whole number from 16 to 8192"),
        (["--scenes", "0"], "--scenes 0 is out of range"),
    ],
)
def test_conflicting_settings_are_one_line(change: list[str], expected: str, made: Path, capsys):
    words = ["render", "--scenes", "3", "--out", str(made), "--size", "32", "--samples", "1", "--seed", "3"]
    assert main.main([*words, *change]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


def test_folder_with_other_files_is_not_touched(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="contains other files; give another --out"):
        render.render(tmp_path, 1, TINY)
    (tmp_path / "letter.txt").rename(tmp_path / "scenes.json")
    with pytest.raises(UserError, match=r"scenes.json is damaged"):
        render.render(tmp_path, 1, TINY)


def test_without_mitsuba_the_error_names_the_install_command(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(render, "find_spec", lambda name: None)
    assert main.main(["render", "--scenes", "1", "--out", str(tmp_path / "rooms")]) == 2
    assert install_command("scenes") in capsys.readouterr().err
    assert not (tmp_path / "rooms").exists()


def test_help_works_without_mitsuba():
    words = [sys.executable, "-c", "import sys; sys.modules['mitsuba'] = None; from pretask.cli.main import main; main(['render', '--help'])"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0 and "--scenes" in done.stdout, done.stderr
