"""Tracks: they cover what moves, and nothing begins where nothing does, where all does, or goes across a cut."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask import encoders
from pretask.cli.main import main
from pretask.data import decode
from pretask.data.arrays import Arrays
from pretask.datagen import mine_tracks as mining
from pretask.datagen import tracking
from pretask.datagen import video as clips
from pretask.datagen.tracking import Settings, begin, mine, motion
from pretask.methods import recipe
from pretask.train.trainer import check_provided
from pretask.types import UserError

HIGH, WIDE, SIDE = 120, 160, 40
SMALL = Settings(size=32, height=HIGH, box=0.5)


def texture(high: int, wide: int, seed: int, grain: int = 6) -> np.ndarray:
    """(high, wide, 3) smooth noise, in which every place looks different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (high // grain, wide // grain, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC))


def scene(place: tuple[float, float] | None, ground: int = 0, shift: int = 0) -> np.ndarray:
    """A frame: a textured square at x, y on a textured ground that has moved by `shift` pixels."""
    frame = texture(HIGH, 2 * WIDE, ground)[:, shift : shift + WIDE].copy()
    if place is not None:
        x, y = (round(v) for v in place)
        frame[y : y + SIDE, x : x + SIDE] = 255 - texture(SIDE, SIDE, 99)
    return frame


def along(k: int) -> tuple[float, float]:
    """Where the square is in frame k."""
    return 20 + 1.5 * k, 40 + 0.5 * k


def written(folder: Path, frames: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("clips") / "moving", [scene(along(k)) for k in range(45)])


def test_boxes_cover_the_square_that_moves_in_nearly_every_frame(moving):
    found = mine(moving, SMALL)
    assert len(found.tracks) >= 1 and found.frames == 45
    covered = []
    for track in found.tracks:
        assert len(track.boxes) == 31
        for k, (x, y, w, h) in enumerate(track.boxes):
            left, top = along(track.start + k)
            across = min(x + w, left + SIDE) - max(x, left)
            down = min(y + h, top + SIDE) - max(y, top)
            covered.append(across > 0.8 * SIDE and down > 0.8 * SIDE)
    assert np.mean(covered) > 0.95


def test_a_track_under_way_across_a_moving_ground_covers_it_too(tmp_path):
    frames = [scene((40 + 0.5 * k, 50 - 0.6 * k), shift=2 * k) for k in range(40)]
    found = mine(written(tmp_path / "pan", frames), SMALL)
    assert found.tracks
    for track in found.tracks:
        x, y, w, h = track.boxes[-1]
        k = track.start + 30
        assert (
            abs(x + w / 2 - (40 + 0.5 * k + SIDE / 2)) < 15
            and abs(y + h / 2 - (50 - 0.6 * k + SIDE / 2)) < 15
        )


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([scene(None)] * 40, "nothing moves"),
        ([scene(None, shift=2 * k) for k in range(40)], "nothing moves"),
        ([scene(along(k)) for k in range(20)], "20 frames, shorter than a track of 31"),
        ([scene(along(k % 12), ground=k // 12) for k in range(40)], "no track held: .* ended by a cut"),
        ([scene((60, 40), ground=k) for k in range(40)], "nothing moves"),  # nothing but cuts
    ],
    ids=["still", "panned", "short", "cut", "all cuts"],
)
def test_a_clip_that_gives_no_track_says_why(frames, why, tmp_path):
    found = mine(written(tmp_path / "clip", frames), SMALL)
    assert not found.tracks
    assert re.search(why, found.why_not())


def test_no_track_goes_across_a_cut(tmp_path):
    frames = [scene(along(k % 38), ground=k // 38) for k in range(76)]
    found = mine(written(tmp_path / "cut", frames), SMALL)
    assert found.tracks and found.dropped["ended by a cut"]
    assert all(t.start + 30 < 38 or t.start >= 38 for t in found.tracks)


def test_a_thing_that_stops_is_left_behind(tmp_path):
    frames = [scene(along(min(k, 8))) for k in range(45)]
    found = mine(written(tmp_path / "stops", frames), SMALL)
    assert not found.tracks and found.dropped["left behind"]


def test_the_patches_are_what_the_boxes_show_first_and_last(moving):
    track = mine(moving, SMALL).tracks[0]
    frames = list(clips.frames(moving, HIGH))
    for shown, k, box in (
        (track.first, track.start, track.boxes[0]),
        (track.last, track.start + 30, track.boxes[-1]),
    ):
        x, y, w, h = box.round().astype(int)
        cut = Image.fromarray(frames[k][y : y + h, x : x + w]).resize((32, 32), Image.Resampling.BOX)
        assert np.abs(np.asarray(cut).astype(float) - shown).mean() < 12


def test_a_point_next_to_a_mover_does_not_move_with_it():
    """Flow runs over the edge of the square; the ground around it stays where it is."""
    import cv2

    before, after = (cv2.cvtColor(scene((60 + 3 * k, 40)), cv2.COLOR_RGB2GRAY) for k in (0, 1))
    seen = motion(before, after)
    inside = ((seen.points >= (60, 40)) & (seen.points < (100, 80))).all(1)
    near = ((seen.points >= (52, 32)) & (seen.points < (108, 88))).all(1) & ~inside
    edge = ((seen.points >= (57, 37)) & (seen.points < (106, 83))).all(1)
    assert seen.moving[inside].mean() > 0.9
    beyond = near & ~edge
    assert beyond.sum() > 3 and seen.moving[beyond].mean() < 0.2
    assert not seen.moving[~near & ~inside].any()


@pytest.mark.parametrize(("slip", "moves"), [(0.45, False), (1.5, True)])
def test_what_hardly_moves_on_a_moving_ground_does_not_move(slip, moves):
    """The camera goes 3 pixels; a square slips by a part of a pixel, which can be seen, or by more."""
    import cv2

    before, after = scene(None), scene(None, shift=3)
    before[40:80, 60:100] = texture(42, 42, 5, grain=3)[:40, :40]
    way = np.float32([[1, 0, -3 - slip], [0, 1, 0]])
    shown = cv2.warpAffine(before, way, (WIDE, HIGH), flags=cv2.INTER_CUBIC)
    after[41:79, 58:94] = shown[41:79, 58:94]
    grey = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (before, after))
    seen = motion(*grey)
    inside = ((seen.points >= (66, 46)) & (seen.points < (92, 74))).all(1)
    assert inside.sum() > 8
    assert seen.moving[inside].mean() > 0.7 if moves else not seen.moving[inside].any()


def test_a_box_begins_in_the_middle_of_what_moves_and_not_where_another_follows():
    points = np.array([[x, y] for x in range(5, 155, 5) for y in range(5, 115, 5)], float)
    inside = ((points >= (70, 40)) & (points < (100, 70))).all(1)
    seen = tracking.Motion(points, inside)
    box = begin(seen, (HIGH, WIDE), 50, [])
    assert box is not None
    np.testing.assert_allclose(box[:2] + 25, points[inside].mean(0), atol=1)
    assert begin(seen, (HIGH, WIDE), 50, [box]) is None
    entering = tracking.Motion(points, (points[:, 0] < 25) & (abs(points[:, 1] - 60) < 15))
    assert begin(entering, (HIGH, WIDE), 50, []) is None


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(moving):
    names = [p.name for p in clips.images(moving)]
    assert names == [f"{k}.png" for k in range(45)]


def test_clips_are_found_below_a_hidden_folder_and_hidden_ones_are_not(moving, tmp_path):
    root = tmp_path / ".cache" / "films"
    for name in ("a.mp4", ".b.mp4", ".thumbs/c.mp4", "deep/d.MKV"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    assert [str(p.relative_to(root)) for p in clips.find(root)] == ["a.mp4", "deep/d.MKV"]


# ---- the store


@pytest.fixture(scope="module")
def tracks(moving, tmp_path_factory) -> Path:
    root = moving.parent
    written(root / "still", [scene(None)] * 35)
    film(root / "film.avi", [scene(along(k), ground=3) for k in range(45)])
    (root / "broken.mp4").write_bytes(b"no film at all")
    out = tmp_path_factory.mktemp("store") / "tracks"
    assert (
        main(["track", str(root), "--out", str(out), "--size", "32", "--height", str(HIGH), "--workers", "1"])
        == 0
    )
    return out


def film(path: Path, frames: list[np.ndarray], whole: bool = True) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDE, HIGH, "yuvj420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_a_store_of_tracks_opens_as_pairs_with_their_clips(tracks):
    source = sources.open(str(tracks))
    assert source.provides == {"tracked", "clip", "span"} and source.size == 32
    batch = source.__getitems__(torch.arange(len(source)))
    rows = [json.loads(line) for line in (tracks / "tracks.jsonl").read_text().splitlines()]
    assert len(rows) == len(source) and {r["clip"] for r in rows} == {"film.avi", "moving"}
    assert source.files(batch.index) == [f"{r['clip']}@{r['start']}" for r in rows]
    named = dict(zip(batch.aux["clip"].tolist(), (r["clip"] for r in rows), strict=True))
    assert len(named) == len(set(named.values())) == 2
    assert [s for s, _ in batch.aux["span"].tolist()] == [r["start"] for r in rows]
    assert all(
        e - s == len(r["boxes"]) - 1 for (s, e), r in zip(batch.aux["span"].tolist(), rows, strict=True)
    )
    assert batch.aux["tracked"].shape == batch.image.shape and not torch.equal(
        batch.image, batch.aux["tracked"]
    )


def test_clips_that_gave_nothing_are_listed_with_the_reason(tracks):
    with (tracks / "bad.csv").open() as file:
        listed = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert listed == {"still": "nothing moves", "broken.mp4": "invalid data found when processing input"}
    assert sources.open(str(tracks)).ledger.bad == listed


def test_there_are_tracks_to_look_at(tracks):
    with Image.open(tracks / "tracks.gif") as moving, Image.open(tracks / "tracks.png") as sheet:
        assert moving.n_frames == 11 and sheet.width > 600


def test_an_interrupted_command_goes_on_and_ends_with_the_same(moving, tracks, tmp_path, monkeypatch, capsys):
    out, done = tmp_path / "tracks", []

    def keep(clip, part, s):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part.name)
        kept(clip, part, s)

    kept = mining.keep
    monkeypatch.setattr(mining, "keep", keep)
    asked = [
        "track",
        str(moving.parent),
        "--out",
        str(out),
        "--size",
        "32",
        "--height",
        str(HIGH),
        "--workers",
        "1",
    ]
    assert main(asked) == 130
    assert not out.exists() and len(list((tmp_path / "tracks.parts").iterdir())) == 2
    monkeypatch.setattr(mining, "keep", lambda *given: done.append(given[1].name) or kept(*given))
    assert main(asked) == 0
    assert sorted(done) == ["broken.mp4", "film.avi", "moving", "still"]  # each once
    for name in ("image.bin", "tracked.bin", "clip.bin", "tracks.jsonl", "bad.csv"):
        assert (out / name).read_bytes() == (tracks / name).read_bytes()
    assert not (tmp_path / "tracks.parts").exists()


def test_a_clip_that_breaks_off_keeps_its_tracks_and_is_listed(moving, tmp_path, monkeypatch):
    def frames(clip, side):
        yield from list(real(clip, side))[:40]
        raise decode.Unreadable("cut short")

    real = clips.frames
    monkeypatch.setattr(clips, "frames", frames)
    found = mine(moving, SMALL)
    assert found.tracks and found.broken == "cut short, after 40 frames"


def test_several_processes_give_what_one_gives(moving, tracks, tmp_path):
    mining.mine(moving.parent, tmp_path / "tracks", Settings(size=32, height=HIGH), workers=2, progress=False)
    for name in ("image.bin", "tracked.bin", "clip.bin", "tracks.jsonl", "bad.csv"):
        assert (tmp_path / "tracks" / name).read_bytes() == (tracks / name).read_bytes()


def test_mistakes_are_one_line(moving, tracks, tmp_path, capsys, monkeypatch):
    def said(path: Path, out: Path) -> str:
        assert main(["track", str(path), "--out", str(out), "--workers", "1"]) == 2
        return capsys.readouterr().err

    written(tmp_path / "still" / "a", [scene(None)] * 35)
    (tmp_path / "empty").mkdir()
    new = tmp_path / "new"
    assert "no track in 1 clips" in said(tmp_path / "still", new)
    assert "holds no clips" in said(tmp_path / "empty", new)
    assert "no video and no folder" in said(tmp_path / "none", new)
    assert "exists; choose another" in said(moving, tracks)
    monkeypatch.setattr(clips, "find_spec", lambda name: None)
    assert "pip install 'pretask[video]'" in said(moving, new)


def test_photographs_are_no_tracks_and_it_is_said_what_would_be(tracks):
    photos = Arrays("photos", torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    made = recipe("video_triplet")().build(encoders.build("resnet_small", 3, 32), photos)
    check_provided(made, sources.open(str(tracks)))
    with pytest.raises(
        UserError, match=r"needs the clip .* as pretask track finds it in video clips; photos"
    ):
        check_provided(made, photos)


def test_the_real_clips_give_tracks_on_what_moves_and_none_across_their_cuts(shared_data):
    """Cars from above, a fixed camera: boxes hold more of what is not the ground than the frame does; a film with cuts."""
    clip = shared_data("video", "car_detection.mp4")
    found = mine(clip, Settings())
    frames = np.stack(list(clips.frames(clip, 240))).astype(np.int16)
    other = np.abs(frames - np.median(frames[::7], 0)).max(-1) > 30
    ends = [(t.start, t.boxes[0]) for t in found.tracks]
    ends += [(t.start + found.length, t.boxes[-1]) for t in found.tracks]
    held = [
        other[k, max(0, int(y)) : int(y + h), max(0, int(x)) : int(x + w)].mean() for k, (x, y, w, h) in ends
    ]
    around = np.mean([other[k].mean() for k, _ in ends])
    assert len(found.tracks) >= 5 and np.mean(held) > 1.3 * around
    cuts = [29, 75, 136, 186, 241]  # seen by eye: the last frame before each
    street = mine(shared_data("video", "bikes.mp4"), Settings())
    assert street.tracks
    assert not [t.start for t in street.tracks for c in cuts if t.start <= c < t.start + street.length]
