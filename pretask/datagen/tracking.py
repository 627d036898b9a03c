"""Tracks of moving objects, mined from video clips: `pretask track CLIPS --out TRACKS`

Wang, Gupta: Unsupervised Learning of Visual Representations using Videos, ICCV 2015, arXiv:1505.00687. Where interest
points move differently from the camera, a box is placed around as many of them as fit and tracked for a second; its
first and last patches form a pair. No track starts where nothing moves or almost everything does, and no track crosses a
cut.

Dense flow (DIS), corners and trackers are OpenCV's. A clip of any length is read once, with a few frames in memory;
several clips are processed in parallel. The command prints the speed in frames per second, which docs/video.md lists.

**Differs:** motion is dense flow at corners, not improved trajectories at SURF points. The camera counts as static if a
quarter of the points are; otherwise its motion is an affine map fitted by RANSAC. The fraction of moving points is
required of the box, not of the frame, so that small objects are found in large scenes. A track whose box contains no
moving points has lost its object and is dropped.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pretask.data import decode
from pretask.datagen import video
from pretask.limits import PositiveFloat, PositiveFraction, PositiveInt

MAX_CORNERS, CORNER_QUALITY, CORNER_DISTANCE = 1000, 0.001, 4
"""maximum number of corners per frame, minimum quality relative to the best corner, minimum distance in pixels"""
MOTION_THRESHOLD = 0.5
"""displacement between frames above which a point is moving, pixels (paper)"""
STATIC_FRACTION = 0.25
"""fraction of static points from which the camera counts as static"""
MIN_MOVING, MAX_MOVING = 0.25, 0.75
"""minimum fraction of moving points in a new box, and fraction in the frame above which no track starts"""
MIN_POINTS = 8
"""minimum number of moving points in a new box"""
MIN_TRACKED = 0.1
"""minimum mean fraction of moving points in a box during each third of its track"""
BORDER, MAX_ENTERING = 8, 0.25
"""border width in pixels, and fraction of a box's moving points in it above which the object is still entering"""
WINDOW, MARGIN = 7, 2
"""window around a corner in pixels, and gray levels by which flow must match it better than camera motion"""
CUT_THRESHOLD = 0.6
"""difference between a frame and the flow-warped previous one, in standard deviations, above which there is a cut"""
MAX_OUTSIDE = 0.25
"""fraction of a box outside of the frame above which it has left the frame"""
MAX_ACTIVE, REUSE = 6, 3
"""maximum number of active tracks; after 1 / REUSE of a track, another may start on the same object"""
PAUSE, EPSILON = 0.5, 1e-6
"""gap between frames, as a fraction of a track's length and at least twice the previous gap, that ends tracks; tolerance in
seconds"""
PREVIEWS, PREVIEW_STRIDE, PREVIEW_SIDE = 2, 3, 120
"""tracks per clip with preview images; frames between two images; their short side in pixels"""


@dataclass(frozen=True)
class TrackConfig:
    """Parameters of tracking."""

    size: PositiveInt = 96
    """side of the patches, pixels"""
    height: PositiveInt = 240
    """short side of the frames for tracking, pixels; smaller clips are not enlarged"""
    box: PositiveFraction = 0.5
    """side of a tracked box as a fraction of the frame's short side (paper: 227 of 448)"""
    seconds: PositiveFloat = 1.0
    """seconds from first to last patch, by timestamps (paper: 30 frames); folders count as 30 frames per second"""
    tracker: Literal["kcf", "csrt"] = "kcf"
    """tracking algorithm: kcf is the paper's; csrt is more accurate and adapts its size, but is several times slower"""


@dataclass(frozen=True)
class Motion:
    """Motion between two frames: corners of the first (P, 2) as x, y, whether each moves, whether there is a cut."""

    points: np.ndarray
    moving: np.ndarray
    cut: bool = False

    def inside(self, box: np.ndarray) -> np.ndarray:
        """(P,) whether points lie in a box x, y, w, h."""
        low, height = box[:2], box[:2] + box[2:]
        return np.all((self.points >= low) & (self.points < height), axis=1)

    def moving_fraction(self, box: np.ndarray) -> float:
        """Fraction of the points in a box that move; 0 if there are none."""
        return float(self.moving[self.inside(box)].mean()) if self.inside(box).any() else 0.0


@dataclass
class ActiveTrack:
    """A track in progress."""

    tracker: Any
    first: np.ndarray  # (size, size, 3) its first patch
    start: int
    since: float  # seconds
    boxes: list[np.ndarray]
    moved: list[float] = field(default_factory=list)
    preview: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Track:
    """A finished track: its patches, boxes in pixels of the resized frames, and preview images."""

    first: np.ndarray  # (size, size, 3) uint8
    last: np.ndarray
    start: int
    boxes: np.ndarray  # (L + 1, 4) x, y, w, h
    seconds: float
    moved: float
    preview: list[np.ndarray]


@dataclass
class ClipTracks:
    """Result of mining a clip."""

    tracks: list[Track] = field(default_factory=list)
    track_seconds: float = 0.0
    """length of a track, seconds"""
    frames: int = 0
    seconds: float = 0.0
    """seconds from the first frame to the last"""
    dropped: Counter[str] = field(default_factory=Counter)
    """reason -> number of tracks dropped"""
    static_frames: int = 0
    """number of frames in which nothing moves"""
    camera_frames: int = 0
    """number of frames in which nearly everything moves"""
    read_error: str = ""
    """why the clip could not be read to the end"""

    def failure(self) -> str:
        """Why there is no track, in a few words; "" if there is one."""
        if self.tracks:
            return ""
        if self.read_error:
            return self.read_error
        if self.frames <= PREVIEW_STRIDE or self.seconds < self.track_seconds - 0.5 * self.seconds / (
            self.frames - 1
        ):
            return (
                f"{self.frames} frame{'s' * (self.frames != 1)} in {self.seconds:.2f} s, shorter than a track"
            )
        if self.dropped:
            return "no track completed: " + ", ".join(f"{n} {why}" for why, n in self.dropped.most_common())
        return "the camera moves too much" if self.camera_frames > self.static_frames else "nothing moves"


def opencv() -> Any:
    """OpenCV, imported on first use and untyped, since its stubs lack the contrib modules."""
    import cv2

    return cv2


# ---- motion


def detect_motion(before: np.ndarray, after: np.ndarray) -> Motion:
    """Which corners move differently from the camera between two gray frames (H, W) uint8.

    Flow extends beyond the outline of moving objects. A corner therefore counts as moving only if its surroundings
    match better along the flow than along the camera motion.
    """
    cv2 = opencv()
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(before, after, None)  # (H, W, 2)
    y, x = np.indices(before.shape, dtype=np.float32)
    along = cv2.absdiff(cv2.remap(after, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR), before)
    if along.mean() > CUT_THRESHOLD * (before.std() + 1):
        return Motion(np.empty((0, 2)), np.empty(0, bool), cut=True)
    corners = cv2.goodFeaturesToTrack(before, MAX_CORNERS, CORNER_QUALITY, CORNER_DISTANCE)
    if corners is None or len(corners) < MIN_POINTS:
        return Motion(np.empty((0, 2)), np.empty(0, bool))
    points = corners[:, 0].astype(np.float32)
    column, row = points.round().astype(int).T
    step = flow[row, column]
    affine = camera(points, step)
    still = cv2.warpAffine(after, affine, before.shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    better = cv2.blur(cv2.subtract(cv2.absdiff(still, before), along), (WINDOW, WINDOW))[row, column]
    own = np.linalg.norm(step - (points @ affine[:, :2].T + affine[:, 2] - points), axis=1)
    return Motion(points, (own > MOTION_THRESHOLD) & (better > MARGIN))


def camera(points: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Points (P, 2) and displacements (P, 2) -> affine camera motion (2, 3): identity if many points are static, else RANSAC."""
    cv2 = opencv()
    affine = None
    if (np.linalg.norm(step, axis=1) <= MOTION_THRESHOLD).mean() < STATIC_FRACTION:
        affine, _ = cv2.estimateAffine2D(points, points + step, ransacReprojThreshold=MOTION_THRESHOLD)
    return np.eye(2, 3) if affine is None else affine


def propose_box(
    motion: Motion, shape: tuple[int, ...], side: int, occupied: list[np.ndarray]
) -> np.ndarray | None:
    """A new box x, y, w, h of `side` around as many moving points as possible, centered on them; None if too few move.

    `shape` is the frame's (H, W, …); `occupied` are boxes of objects already tracked.
    """
    cv2 = opencv()
    height, width = shape[:2]
    free = motion.moving.copy()
    for box in occupied:
        free &= ~motion.inside(box)
    if free.sum() < MIN_POINTS or min(height, width) < side:
        return None
    count = np.zeros((height, width), np.float32)
    x, y = motion.points[free].astype(int).T
    count[y, x] = 1
    counts = cv2.boxFilter(
        count, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    counts = counts[: height - side + 1, : width - side + 1].round()
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    inside = free & motion.inside(np.array([left, top, side, side]))
    corner = motion.points[inside].mean(0) - side / 2
    box = np.array([*corner.clip(0, [width - side, height - side]).round(), side, side])
    inside = free & motion.inside(box)
    if inside.sum() < MIN_POINTS or motion.moving_fraction(box) < MIN_MOVING:
        return None
    points = motion.points[inside]
    edge = ((points < BORDER) | (points >= np.array([width, height]) - BORDER)).any(1)
    return box if edge.mean() <= MAX_ENTERING else None


# ---- tracks


def mine(clip: Path, config: TrackConfig) -> ClipTracks:
    """All tracks of a clip. An unreadable rest of a clip does not affect the tracks found before."""
    cv2 = opencv()
    cv2.setNumThreads(1)  # clips are mined in parallel
    found = ClipTracks(track_seconds=config.seconds)
    try:
        track_clip(video.frames(clip, config.height), config, found)
    except decode.Unreadable as error:
        after = f", after {found.frames} frames" if found.frames else ""
        found.read_error = f"{error}{after}"
    return found


def track_clip(frames: Iterator[tuple[float, np.ndarray]], config: TrackConfig, found: ClipTracks) -> None:
    cv2 = opencv()
    active: list[ActiveTrack] = []
    before: np.ndarray | None = None
    gray = np.empty(0)
    gap = math.inf
    for time, now in frames:
        found.frames += 1
        since, found.seconds = found.seconds, time
        gray, earlier = cv2.cvtColor(now, cv2.COLOR_RGB2GRAY), gray
        if before is not None:
            motion = detect_motion(earlier, gray)
            pause = time - since > max(PAUSE * config.seconds, 2 * gap)
            gap = time - since
            if motion.cut or pause:
                found.dropped["ended by a cut" if motion.cut else "ended by a pause"] += len(active)
                active.clear()
            elif (new := start_track(motion, before, since, active, config, found)) is not None:
                active.append(new)
            active = [track for track in active if advance(track, now, motion, config, found, gap)]
        before = now
    found.dropped["cut short by the end"] += len(active)
    found.dropped = +found.dropped  # without zeros


def start_track(
    motion: Motion,
    frame: np.ndarray,
    since: float,
    active: list[ActiveTrack],
    config: TrackConfig,
    found: ClipTracks,
) -> ActiveTrack | None:
    """A new track from a frame shown at time `since` in seconds, if something moves that is not tracked yet."""
    cv2 = opencv()
    moving_fraction = float(motion.moving.mean()) if len(motion.moving) else 0.0
    found.static_frames += moving_fraction == 0
    found.camera_frames += moving_fraction > MAX_MOVING
    if moving_fraction > MAX_MOVING or len(active) >= MAX_ACTIVE:
        return None
    occupied = [t.boxes[-1] for t in active if found.seconds - t.since <= config.seconds / REUSE + EPSILON]
    box = propose_box(motion, frame.shape, round(config.box * min(frame.shape[:2])), occupied)
    if box is None:
        return None
    tracker = {"kcf": cv2.TrackerKCF_create, "csrt": cv2.TrackerCSRT_create}[config.tracker]()
    tracker.init(bgr(frame), tuple(int(v) for v in box))
    first = patch(frame, box, config.size)
    return ActiveTrack(tracker, first, found.frames - 2, since, [box], preview=[preview(frame, box)])


def advance(
    track: ActiveTrack, frame: np.ndarray, motion: Motion, config: TrackConfig, found: ClipTracks, gap: float
) -> bool:
    """Follow a track to the next frame, `gap` seconds later; False if it ends there, finished or dropped."""
    track.moved.append(motion.moving_fraction(track.boxes[-1]))
    tracked, box = track.tracker.update(bgr(frame))
    box = np.array(box)
    reason = "" if tracked else "lost"
    if tracked and outside_fraction(box, frame.shape) > MAX_OUTSIDE:
        reason = "left the frame"
    track.boxes.append(box)
    lasted = found.seconds - track.since
    done = (
        len(track.boxes) > PREVIEW_STRIDE and lasted + gap / 2 + EPSILON >= config.seconds
    )  # the frame that is nearest to it
    if not reason and done and min(np.mean(part) for part in np.array_split(track.moved, 3)) < MIN_TRACKED:
        reason = "left behind"
    if reason:
        found.dropped[reason] += 1
        return False
    if len(found.tracks) < PREVIEWS and len(track.boxes) % PREVIEW_STRIDE == 1:
        track.preview.append(preview(frame, box))
    if done:
        last, moved = patch(frame, box, config.size), float(np.mean(track.moved))
        boxes = np.array(track.boxes)
        found.tracks.append(Track(track.first, last, track.start, boxes, lasted, moved, track.preview))
    return not done


def bgr(frame: np.ndarray) -> np.ndarray:
    """A frame in OpenCV's channel order."""
    return np.ascontiguousarray(frame[..., ::-1])


def outside_fraction(box: np.ndarray, shape: tuple[int, ...]) -> float:
    """Fraction of a box outside of the frame."""
    x, y, w, h = box
    across = min(x + w, shape[1]) - max(x, 0)
    down = min(y + h, shape[0]) - max(y, 0)
    return 1 - max(0, across) * max(0, down) / max(1, w * h)


def patch(frame: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The patch (size, size, 3) in a box, which is moved into the frame if it reaches beyond."""
    cv2 = opencv()
    x, y, w, h = (round(float(v)) for v in box)
    side = min(max(w, h), *frame.shape[:2])  # CSRT boxes need not be square
    left = min(max(0, x + (w - side) // 2), frame.shape[1] - side)
    top = min(max(0, y + (h - side) // 2), frame.shape[0] - side)
    cut = frame[top : top + side, left : left + side]
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def preview(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A small frame with the box drawn on it."""
    cv2 = opencv()
    scale = PREVIEW_SIDE / min(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    x, y, w, h = (round(float(v) * scale) for v in box)
    return cv2.rectangle(small, (x, y), (x + w - 1, y + h - 1), (255, 210, 0), 2)
