"""Rendering: maps against the formula, depth against normals, and the same files however they come about."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.cli import main as cli
from pretask.data import dense_maps as maps
from pretask.data import normals as surfaces
from pretask.datagen import render as rendering
from pretask.datagen import rooms
from pretask.datagen.rooms import place, solids
from pretask.types import UserError

mi = pytest.importorskip("mitsuba")
TINY = rendering.Settings(size=32, samples=1, seed=3)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.suffix != ".npz"
    }


def unit(n: np.ndarray) -> np.ndarray:
    return n / np.linalg.norm(n, axis=2, keepdims=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three small scenes, by the command."""
    out = tmp_path_factory.mktemp("made") / "rooms"
    words = ["render", "--scenes", "3", "--out", str(out), "--size", "32", "--samples", "1", "--seed", "3"]
    assert cli.main([*words, "--workers", "1"]) == 0
    return out


# ---- against the formula


@pytest.mark.parametrize("roll", [0.0, 25.0])
def test_a_ball_before_a_wall_has_the_depth_and_normals_of_the_formula(roll: float):
    mi = rendering.mitsuba()
    origin, target = np.array([0.5, 1.2, 0.3]), np.array([1.0, 0.9, 5.0])
    room = rooms.Room(mi, np.random.default_rng(0), 5, 3, 6, origin, target, 60.0, roll)
    grey = solids.matte(room, {"type": "rgb", "value": 0.5})
    room.add([solids.box(room, grey, (20, 20, 0.2))], 0, -8, 6.1)  # its face is the plane z = 6
    room.add([solids.ball(room, grey, 0.6)], 0.8, 1.0, 3.0)
    room.add([solids.ball(room, grey, 0.1) | {"emitter": solids.light([1, 1, 1], 500, 1)}], 0, 2.5, 0.2)
    size = 48
    (light, albedo), met = rendering.traced(mi, room, rendering.Settings(size, 1, 0), 0)
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
    ray = surfaces.rays((size, size), surfaces.camera((size, size), np.radians(60)))
    centre = np.array([0.8, 1.0, 3.0]) - origin
    seen = []
    for row in range(size):
        for column in range(size):
            d = ray[row, column] @ np.stack([right, down, forward])
            a, b, c = d @ d, d @ centre, centre @ centre - 0.6**2
            if b * b > a * c:
                depth = (b - (b * b - a * c) ** 0.5) / a
                n, thing = (depth * d - centre) / 0.6, 2
            else:
                depth, n, thing = (6 - origin[2]) / d[2], np.array([0, 0, -1.0]), 1
            edge = abs(b * b - a * c) < 0.05
            seen.append(thing)
            if not edge:
                assert met.thing[row, column] == thing
                assert met.depth[row, column] == pytest.approx(depth, abs=2e-3)
                expected = [n @ right, n @ down, n @ forward]
                assert np.abs(met.normal[row, column] - expected).max() < 0.01
    assert 50 < seen.count(2) < size**2 / 2


def test_normals_from_the_rendered_depth_are_the_rendered_normals():
    """On what is smooth: at an edge a plane is fitted to two surfaces."""
    settings = rendering.Settings(96, 1, 0)
    off = []
    for i in (0, 1):
        scene = rendering.scene(settings, i)
        depth, n = scene["depth"] / 1000, unit(maps.decoded(scene["normals"]))
        found = surfaces.normals(depth, rendering.intrinsics(settings, i))
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


def test_a_normal_points_to_the_camera_and_every_pixel_is_known():
    settings = rendering.Settings(48, 1, 1)
    scene = rendering.scene(settings, 5)
    ray = surfaces.rays((48, 48), rendering.intrinsics(settings, 5))
    assert (scene["depth"] > 100).all() and (scene["depth"] < 12_000).all()
    assert ((maps.decoded(scene["normals"]) * ray).sum(2) < 0.02).all()
    assert (scene["instances"] > 0).all()


def test_a_thing_of_many_solids_has_one_number():
    mi = rendering.mitsuba()
    for i in range(4):
        room = rooms.room(mi, np.random.default_rng([0, i]))
        assert len(room.shapes) > 1.5 * room.things
        parts = [name.partition("_") for name in room.shapes]
        assert {int(thing) for thing, _, _ in parts} == set(range(1, room.things + 1))
    names = ["00002_00", "00002_01", "00001_00"]
    room = rooms.Room(mi, np.random.default_rng(0), 5, 3, 6, np.zeros(3), np.array([0, 0, 1.0]), 60.0)
    met = np.zeros((1, 3, 7))
    met[..., 2], met[..., 5], met[0, :, 6] = 5, -1, [1, 2, 3]
    found = rendering.in_camera(met, names, room)
    assert found.thing.tolist() == [[2, 2, 1]] and found.solid.tolist() == [[1, 2, 3]]
    met[0, 1, 5] = 1  # the inner side of something open
    found = rendering.in_camera(met, names, room)
    assert (found.normal == (0, 0, -1)).all()


def test_no_camera_stands_in_a_thing():
    mi = rendering.mitsuba()
    for i in range(8):
        room = rooms.room(mi, np.random.default_rng([7, i]))
        for x, z, radius in room.taken:
            assert np.hypot(x - room.origin[0], z - room.origin[2]) > radius + place.CLEAR
        assert abs(room.origin[0]) < room.width / 2 and 0 < room.origin[2] < room.depth
        assert 1 <= room.origin[1] <= 1.8 < room.height
        assert abs(room.target[0]) < room.width / 2 and room.origin[2] < room.target[2] < room.depth


def test_half_of_the_cameras_have_something_close_before_them():
    mi = rendering.mitsuba()
    made = [rooms.room(mi, np.random.default_rng([5, i])) for i in range(40)]
    reach = [np.linalg.norm(room.target - room.origin) for room in made]
    near = [room for room, far in zip(made, reach, strict=True) if far < 2.6]
    assert 12 <= len(near) <= 30
    stands = []
    for room in near:
        x, z, radius = room.taken[0]  # it is set down first
        stands.append(np.hypot(x - room.target[0], z - room.target[2]) < 1.5 * radius)
    assert sum(stands) > 0.7 * len(near)
    assert max(abs(room.roll) for room in made) <= rooms.ROLL and len({room.roll for room in made}) == 40


def test_smoothing_takes_noise_and_keeps_texture_and_outline():
    rng = np.random.default_rng(0)
    albedo = np.where((np.arange(40) // 5 % 2)[None, :, None] > 0, 0.8, 0.2) * np.ones((40, 40, 3))
    solid = np.ones((40, 40), int)
    solid[20:] = 2
    clean = albedo * np.where(solid == 2, 3.0, 1.0)[..., None]
    normal = np.full((40, 40, 3), (0, 0, -1.0))
    met = rendering.Met(np.ones((40, 40)), normal, solid, solid)
    assert np.allclose(rendering.smoothed(clean, albedo, met), clean, rtol=0.08)
    noisy = clean * rng.gamma(4, 0.25, clean.shape[:2])[..., None]
    before, after = (np.abs(x - clean).mean() for x in (noisy, rendering.smoothed(noisy, albedo, met)))
    assert after < 0.5 * before


# ---- files


def test_a_rendered_folder_is_a_source(made: Path):
    card = json.loads((made / "scenes.json").read_text())
    assert card == {"scenes": 3, "size": 32, "samples": 1, "seed": 3}
    for spec in (str(made), f"scenes:{made}", f"{made}/"):
        source = sources.open(spec)
        assert (len(source), source.size, source.ledger.bad) == (3, 32, {})
        assert source.provides == {"depth", "normals", "instances"}
    batch = source.__getitems__(torch.arange(3))
    whole = rendering.scene(TINY, 1)
    assert np.array_equal(batch.image[1].permute(1, 2, 0).numpy(), whole["color"])
    assert np.array_equal((batch.aux["depth"][1, 0].double() * 1000).round().numpy(), whole["depth"])
    assert np.array_equal(batch.aux["instances"][1, 0].numpy(), whole["instances"])
    assert np.load(made / "cameras.npz")["intrinsics"].shape == (3, 3, 3)
    assert Image.open(made / "scenes.png").width > 300
    colors = batch.image.float().mean((1, 2, 3)) / 255
    assert ((colors > 0.2) & (colors < 0.85)).all()  # neither black nor burnt out


def test_the_command_says_what_was_made_and_what_comes_next(made: Path, capsys):
    words = ["render", "--scenes", "3", "--out", str(made), "--size", "32", "--samples", "1", "--seed", "3"]
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert "(3 scenes of 32 px, 3 were there)" in told.err and not told.out
    assert f"Next: pretask preview cross_domain --data scenes:{made}+PHOTOGRAPHS" in told.err


def test_two_workers_and_an_interrupted_command_make_the_same_files(made: Path, tmp_path: Path):
    for kind in ("depth", "color"):
        (tmp_path / "rooms" / kind).mkdir(parents=True)
    (tmp_path / "rooms/scenes.json").write_text((made / "scenes.json").read_text())
    for name in ("depth/000000.png", "depth/000001.png", "color/000001.png"):
        (tmp_path / "rooms" / name).write_bytes((made / name).read_bytes())
    for kind in ("normals", "instances"):  # scene 1 is complete, of scene 0 only the depth is there
        (tmp_path / "rooms" / kind).mkdir()
        (tmp_path / f"rooms/{kind}/000001.png").write_bytes((made / f"{kind}/000001.png").read_bytes())
    again = rendering.render(tmp_path / "rooms", 3, TINY, workers=2, progress=False)
    assert again.new == 2
    assert files(tmp_path / "rooms") == files(made)


def test_a_seed_of_its_own_makes_other_rooms():
    one, same, other = (rendering.scene(TINY, i)["depth"] for i in (1, 1, 2))
    seeded = rendering.scene(rendering.Settings(32, 1, 4), 1)["depth"]
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other) and not np.array_equal(one, seeded)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--size", "48"], "was made with --size 32; give the same, or another --out"),
        (["--seed", "4", "--samples", "2"], "was made with --samples 1 --seed 3"),
        (["--size", "8"], "--size 8 is too few; give 16 or more"),
        (["--scenes", "0"], "--scenes 0 is out of range"),
    ],
)
def test_other_settings_for_the_same_folder_are_one_line(change: list[str], told: str, made: Path, capsys):
    words = ["render", "--scenes", "3", "--out", str(made), "--size", "32", "--samples", "1", "--seed", "3"]
    assert cli.main([*words, *change]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things; give another --out"):
        rendering.render(tmp_path, 1, TINY)
    (tmp_path / "letter.txt").rename(tmp_path / "scenes.json")
    with pytest.raises(UserError, match=r"scenes.json is damaged"):
        rendering.render(tmp_path, 1, TINY)


def test_without_mitsuba_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(rendering, "find_spec", lambda name: None)
    assert cli.main(["render", "--scenes", "1", "--out", str(tmp_path / "rooms")]) == 2
    assert "pip install 'pretask[scenes]'" in capsys.readouterr().err
    assert not (tmp_path / "rooms").exists()


def test_help_needs_no_renderer():
    words = [sys.executable, "-c", "import sys; sys.modules['mitsuba'] = None; from pretask.cli.main import main; main(['render', '--help'])"]  # fmt: skip
    told = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert told.returncode == 0 and "--scenes" in told.stdout, told.stderr
