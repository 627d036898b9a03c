"""Tracks cover moving objects, start only where part of a frame moves, and never cross a cut."""

import csv
import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from moving import HIGH, SIDE, WIDE, position, scene, texture, write_frames
from PIL import Image

from pretask import data, encoders
from pretask.cli.main import main
from pretask.data import decode
from pretask.data.arrays import Arrays
from pretask.datagen import mine_tracks, tracking, video
from pretask.datagen.tracking import TrackConfig, detect_motion, mine, propose_box
from pretask.errors import install_command
from pretask.methods import recipe
from pretask.train.trainer import check_provided
from pretask.types import UserError

SMALL = TrackConfig(size=32, height=HIGH, box=0.5)


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> Path:
    return write_frames(tmp_path_factory.mktemp("clips") / "moving", [scene(position(k)) for k in range(45)])


def test_boxes_cover_the_moving_square_in_nearly_every_frame(moving):
    found = mine(moving, SMALL)
    assert len(found.tracks) >= 1 and found.frames == 45
    covered = []
    for track in found.tracks:
        assert len(track.boxes) == 31 and track.seconds == pytest.approx(1)
        for k, (x, y, w, h) in enumerate(track.boxes):
            left, top = position(track.start + k)
            across = min(x + w, left + SIDE) - max(x, left)
            down = min(y + h, top + SIDE) - max(y, top)
            covered.append(across > 0.8 * SIDE and down > 0.8 * SIDE)
    assert np.mean(covered) > 0.95


def test_boxes_cover_the_square_on_a_moving_background(tmp_path):
    frames = [scene((40 + 0.5 * k, 50 - 0.6 * k), shift=2 * k) for k in range(40)]
    found = mine(write_frames(tmp_path / "pan", frames), SMALL)
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
        ([scene(position(k)) for k in range(20)], r"20 frames in 0\.63 s, shorter than a track"),
        ([scene(None)], r"1 frame in 0\.00 s, shorter"),
        (
            [scene(position(k % 12), background=k // 12) for k in range(40)],
            "no track completed: .* ended by a cut",
        ),
        ([scene((60, 40), background=k) for k in range(40)], "nothing moves"),  # every frame is a cut
    ],
    ids=["still", "panned", "short", "single", "cut", "all cuts"],
)
def test_clip_without_tracks_has_a_reason(frames, why, tmp_path):
    found = mine(write_frames(tmp_path / "clip", frames), SMALL)
    assert not found.tracks
    assert re.search(why, found.failure())


def test_no_track_crosses_a_cut(tmp_path):
    frames = [scene(position(k % 38), background=k // 38) for k in range(76)]
    found = mine(write_frames(tmp_path / "cut", frames), SMALL)
    assert found.tracks and found.dropped["ended by a cut"]
    assert all(t.start + 30 < 38 or t.start >= 38 for t in found.tracks)


def test_track_of_an_object_that_stops_is_dropped(tmp_path):
    frames = [scene(position(min(k, 8))) for k in range(45)]
    found = mine(write_frames(tmp_path / "stops", frames), SMALL)
    assert not found.tracks and found.dropped["left behind"]


def test_patches_match_the_first_and_last_box(moving):
    track = mine(moving, SMALL).tracks[0]
    frames = [frame for _, frame in video.frames(moving, HIGH)]
    for shown, k, box in (
        (track.first, track.start, track.boxes[0]),
        (track.last, track.start + 30, track.boxes[-1]),
    ):
        x, y, w, h = box.round().astype(int)
        cut = Image.fromarray(frames[k][y : y + h, x : x + w]).resize((32, 32), Image.Resampling.BOX)
        assert np.abs(np.asarray(cut).astype(float) - shown).mean() < 12


def test_points_next_to_a_moving_object_are_static():
    """Flow extends beyond the outline of the square, but the background does not move."""
    import cv2

    before, after = (cv2.cvtColor(scene((60 + 3 * k, 40)), cv2.COLOR_RGB2GRAY) for k in (0, 1))
    seen = detect_motion(before, after)
    inside = ((seen.points >= (60, 40)) & (seen.points < (100, 80))).all(1)
    near = ((seen.points >= (52, 32)) & (seen.points < (108, 88))).all(1) & ~inside
    edge = ((seen.points >= (57, 37)) & (seen.points < (106, 83))).all(1)
    assert seen.moving[inside].mean() > 0.9
    around = near & ~edge
    assert around.sum() > 3 and seen.moving[around].mean() < 0.2
    assert not seen.moving[~near & ~inside].any()


@pytest.mark.parametrize(("slip", "moves"), [(0.45, False), (1.5, True)])
def test_motion_relative_to_the_camera_needs_a_minimum(slip, moves):
    """The camera moves by 3 pixels; a square moves relative to it by a visible fraction of a pixel, or by more."""
    import cv2

    before, after = scene(None), scene(None, shift=3)
    before[40:80, 60:100] = texture(42, 42, 5, grain=3)[:40, :40]
    way = np.float32([[1, 0, -3 - slip], [0, 1, 0]])
    shown = cv2.warpAffine(before, way, (WIDE, HIGH), flags=cv2.INTER_CUBIC)
    after[41:79, 58:94] = shown[41:79, 58:94]
    gray = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (before, after))
    seen = detect_motion(*gray)
    inside = ((seen.points >= (66, 46)) & (seen.points < (92, 74))).all(1)
    assert inside.sum() > 8
    assert seen.moving[inside].mean() > 0.7 if moves else not seen.moving[inside].any()


def test_new_box_is_centered_on_moving_points_and_avoids_existing_boxes():
    points = np.array([[x, y] for x in range(5, 155, 5) for y in range(5, 115, 5)], float)
    inside = ((points >= (70, 40)) & (points < (100, 70))).all(1)
    seen = tracking.Motion(points, inside)
    box = propose_box(seen, (HIGH, WIDE), 50, [])
    assert box is not None
    np.testing.assert_allclose(box[:2] + 25, points[inside].mean(0), atol=1)
    assert propose_box(seen, (HIGH, WIDE), 50, [box]) is None
    entering = tracking.Motion(points, (points[:, 0] < 25) & (abs(points[:, 1] - 60) < 15))
    assert propose_box(entering, (HIGH, WIDE), 50, []) is None


def test_frames_of_a_folder_are_in_natural_order(moving):
    names = [p.name for p in video.images(moving)]
    assert names == [f"{k}.png" for k in range(45)]


def test_hidden_clips_are_skipped_even_below_a_hidden_root(moving, tmp_path):
    root = tmp_path / ".cache" / "films"
    for name in ("a.mp4", ".b.mp4", ".thumbs/c.mp4", "deep/d.MKV"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    assert [str(p.relative_to(root)) for p in video.find(root)[0]] == ["a.mp4", "deep/d.MKV"]


# ---- the store


@pytest.fixture(scope="module")
def tracks(moving, tmp_path_factory) -> Path:
    root = moving.parent
    write_frames(root / "still", [scene(None)] * 35)
    film(root / "film.avi", [scene(position(k), background=3) for k in range(45)])
    (root / "broken.mp4").write_bytes(b"no film at all")
    out = tmp_path_factory.mktemp("store") / "tracks"
    assert (
        main(["track", str(root), "--out", str(out), "--size", "32", "--height", str(HIGH), "--workers", "1"])
        == 0
    )
    return out


def film(path: Path, frames: list[np.ndarray], shown: list[int] | None = None, rate: int = 30) -> None:
    """Write a video that states `rate` frames per second; `shown` are timestamps in units of 1 / rate seconds."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDE, HIGH, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, rate)
        container.start_encoding()
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (shown[k] if shown else k), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# ---- time


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([5.0, 5.1, 5.3, 5.4], [0, 0.1, 0.3, 0.4]),
        ([None, None, None], [0, 0.5, 1.0]),
        ([0.0, 0.1, None, 0.3], [0, 0.1, 0.2, 0.3]),
        ([0.0, 0.0, 0.0], [0, 0.5, 1.0]),  # repeats
        ([0.0, 0.1, 0.2, 0.0, 0.1], [0, 0.1, 0.2, 0.3, 0.4]),  # restarts
        ([-0.1, 0.0, 0.0, 0.1], [0, 0.1, 0.2, 0.3]),  # two frames at one time
        ([], []),
    ],
)
def test_frame_times_increase(stamps, times):
    clock = video.FrameClock(2)
    assert [clock.read(stamp) for stamp in stamps] == pytest.approx(times)


def test_track_length_follows_timestamps_not_the_stated_rate(tmp_path):
    frames = [scene(position(k)) for k in range(45)]
    film(tmp_path / "plain.mkv", frames)
    film(tmp_path / "recorder.mkv", frames, [33 * k for k in range(45)], rate=1000)
    plain, recorder = (mine(tmp_path / name, SMALL) for name in ("plain.mkv", "recorder.mkv"))
    assert len(plain.tracks) == len(recorder.tracks) >= 1
    for one, other in zip(plain.tracks, recorder.tracks, strict=True):
        assert np.array_equal(one.boxes, other.boxes) and len(one.boxes) == 31
        assert (one.seconds, other.seconds) == pytest.approx((1.0, 0.99), abs=0.002)


def test_track_lasts_a_second_at_a_variable_frame_rate(tmp_path):
    steps = [20 if k < 10 else 50 for k in range(45)]  # milliseconds
    film(
        tmp_path / "varies.mkv",
        [scene(position(k)) for k in range(45)],
        [sum(steps[:k]) for k in range(45)],
        1000,
    )
    found = mine(tmp_path / "varies.mkv", SMALL)
    assert found.tracks and found.seconds == pytest.approx(1.9)
    assert all(track.seconds == pytest.approx(1, abs=0.026) for track in found.tracks)
    assert len({len(track.boxes) for track in found.tracks} | {31}) > 1


def test_no_track_crosses_a_pause(tmp_path):
    shown = [33 * k + 5000 * (k >= 20) for k in range(40)]
    film(tmp_path / "paused.mkv", [scene(position(k)) for k in range(40)], shown, 1000)
    found = mine(tmp_path / "paused.mkv", SMALL)
    assert not found.tracks and found.dropped["ended by a pause"]


def test_clips_without_frames_and_other_files_are_recorded(moving, tmp_path):
    av = pytest.importorskip("av")
    root = tmp_path / "clips"
    write_frames(root / "still", [scene(None)] * 35)
    film(root / "moving.mkv", [scene(position(k)) for k in range(45)])
    film(root / "single.mkv", [scene(None)])
    film(root / "none.mkv", [])
    with av.open(str(root / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    (root / "gone.mp4").symlink_to("nowhere.mp4")
    (root / "notes.txt").write_text("of a day at the sea")
    (root / ".hidden.mp4").write_bytes(b"")
    made = mine_tracks.mine(
        root, tmp_path / "out", TrackConfig(size=32, height=HIGH), workers=1, progress=False
    )
    reasons = {
        "still": "nothing moves",
        "single.mkv": "1 frame in 0.00 s, shorter than a track",
        "none.mkv": "end of file",
        "sound.mkv": "has no pictures",
        "gone.mp4": "broken link",
    }
    assert made.rejected == reasons
    books = json.loads((tmp_path / "out/store.json").read_text())["records"]
    assert (books["found"], books["used"], books["not_looked_at"]) == (8, 1, 0)
    assert books["other_files"] == {"hidden": 1, ".txt": 1}


def test_store_of_tracks_opens_as_pairs_with_their_clips(tracks):
    source = data.open(str(tracks))
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


def test_clips_without_tracks_are_listed_with_a_reason(tracks):
    with (tracks / "bad.csv").open() as file:
        listed = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert listed == {"still": "nothing moves", "broken.mp4": "invalid data found when processing input"}
    assert data.open(str(tracks)).ledger.bad == listed


def test_previews_are_written(tracks):
    with Image.open(tracks / "tracks.gif") as moving, Image.open(tracks / "tracks.png") as sheet:
        assert moving.n_frames == 11 and sheet.width > 600


def test_interrupted_command_continues_with_the_same_result(moving, tracks, tmp_path, monkeypatch, capsys):
    out, done = tmp_path / "tracks", []

    def mine_part(clip, part, config):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part.name)
        original(clip, part, config)

    original = mine_tracks.mine_part
    monkeypatch.setattr(mine_tracks, "mine_part", mine_part)
    command = [
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
    assert main(command) == 130
    assert not out.exists() and len(list((tmp_path / "tracks.parts").iterdir())) == 2
    monkeypatch.setattr(
        mine_tracks, "mine_part", lambda *given: done.append(given[1].name) or original(*given)
    )
    assert main(command) == 0
    assert sorted(done) == ["broken.mp4", "film.avi", "moving", "still"]  # each clip once
    for name in ("image.bin", "tracked.bin", "clip.bin", "tracks.jsonl", "bad.csv"):
        assert (out / name).read_bytes() == (tracks / name).read_bytes()
    assert not (tmp_path / "tracks.parts").exists()


def test_clip_with_a_read_error_keeps_its_tracks(moving, tmp_path, monkeypatch):
    def frames(clip, side):
        yield from list(real(clip, side))[:40]
        raise decode.Unreadable("cut short")

    real = video.frames
    monkeypatch.setattr(video, "frames", frames)
    found = mine(moving, SMALL)
    assert found.tracks and found.read_error == "cut short, after 40 frames"


def test_several_processes_give_the_same_result(moving, tracks, tmp_path):
    mine_tracks.mine(
        moving.parent, tmp_path / "tracks", TrackConfig(size=32, height=HIGH), workers=2, progress=False
    )
    for name in ("image.bin", "tracked.bin", "clip.bin", "tracks.jsonl", "bad.csv"):
        assert (tmp_path / "tracks" / name).read_bytes() == (tracks / name).read_bytes()


def test_user_errors_are_one_line(moving, tracks, tmp_path, capsys, monkeypatch):
    def error_of(path: Path, out: Path) -> str:
        assert main(["track", str(path), "--out", str(out), "--workers", "1"]) == 2
        return capsys.readouterr().err

    write_frames(tmp_path / "still" / "a", [scene(None)] * 35)
    (tmp_path / "empty").mkdir()
    new = tmp_path / "new"
    assert "no track in 1 clips" in error_of(tmp_path / "still", new)
    assert "contains no clips" in error_of(tmp_path / "empty", new)
    assert "neither a video nor a folder" in error_of(tmp_path / "none", new)
    assert "exists; choose another" in error_of(moving, tracks)
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    assert install_command("video") in error_of(moving, new)


def test_method_that_needs_tracks_refuses_photographs(tracks):
    photos = Arrays("photos", torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    made = recipe("video_triplet")().build(encoders.build("resnet_small", 3, 32), photos)
    check_provided(made, data.open(str(tracks)))
    with pytest.raises(
        UserError, match=r"needs the clip .* as `pretask track` finds it in video clips; photos"
    ):
        check_provided(made, photos)


def test_tracks_of_real_clips_cover_moving_objects_and_cross_no_cut(shared_data):
    """Cars from above with a fixed camera, whose boxes contain more foreground than the frame; and a clip with cuts."""
    clip = shared_data("video", "car_detection.mp4")
    found = mine(clip, TrackConfig())
    frames = np.stack([frame for _, frame in video.frames(clip, 240)]).astype(np.int16)
    foreground = np.abs(frames - np.median(frames[::7], 0)).max(-1) > 30
    ends = [(t.start, t.boxes[0]) for t in found.tracks]
    ends += [(t.start + len(t.boxes) - 1, t.boxes[-1]) for t in found.tracks]
    held = [
        foreground[k, max(0, int(y)) : int(y + h), max(0, int(x)) : int(x + w)].mean()
        for k, (x, y, w, h) in ends
    ]
    around = np.mean([foreground[k].mean() for k, _ in ends])
    assert len(found.tracks) >= 5 and np.mean(held) > 1.3 * around
    cuts = [29, 75, 136, 186, 241]  # determined by eye: the last frame before each cut
    street = mine(shared_data("video", "bikes.mp4"), TrackConfig())
    assert street.tracks
    assert not [t.start for t in street.tracks for c in cuts if t.start <= c < t.start + len(t.boxes) - 1]
