"""Tracks of moving things, mined from video clips: `pretask track CLIPS --out TRACKS`

Wang, Gupta: Unsupervised Learning of Visual Representations using Videos, ICCV 2015, arXiv:1505.00687. Where interest
points move otherwise than the camera does, a box is laid around as many of them as it holds, and a tracker follows it
for a second; what it showed first and last is a pair. Nothing begins where nothing moves or where almost everything
does, and no track goes across a cut.

Dense flow (DIS), corners and the trackers are OpenCV's. A clip is read once, whatever its length, with a few frames in
memory; several clips at a time. How many frames that makes a second is told at the end, and by the page on video.

Differs from the paper: motion is that of dense flow at corners, not of improved trajectories at SURF points; the camera
counts as still where a quarter of the points are, else it moves as most points tell (an affine map, by RANSAC); a share
of moving points is asked of the box, not of the frame, so that small things are found in large scenes; a track during
which its box holds no moving points was left behind by what it followed, and is dropped.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pretask.data import decode
from pretask.datagen import video as clips
from pretask.limits import Count, Part, Positive

POINTS, QUALITY, APART = 1000, 0.001, 4
"""corners looked at in a frame, the weakest as a share of the strongest, pixels between two"""
MOVES = 0.5
"""pixels from one frame to the next beyond which a point moves (paper)"""
STILL = 0.25
"""share of points at rest from which on the camera is"""
NOISE, CAMERA = 0.25, 0.75
"""share of moving points that a box needs to begin with, and share of the frame's from which on none begins"""
FEW = 8
"""moving points that a box needs to begin with"""
KEPT = 0.1
"""share of moving points that a box has in each third of its way, on average"""
EDGE, ENTERING = 8, 0.25
"""pixels from the frame's edge, and share of a box's moving points there from which on a thing is still coming in"""
AROUND, BETTER = 7, 2
"""pixels around a corner, and grey levels by which the flow must explain them better than the camera"""
CUT = 0.6
"""difference between a frame and the one before, moved along the flow, in standard deviations, that is a cut"""
OUTSIDE = 0.25
"""share of a box outside the frame from which on it has left it"""
AT_ONCE, AGAIN = 6, 3
"""tracks followed at a time; after this part of its way, what one follows may be followed by another, too"""
FILMS, EVERY, FILM_SIDE = 2, 3, 120
"""tracks of a clip that are kept to look at; frames from one picture to the next; their short side, pixels"""


@dataclass(frozen=True)
class Settings:
    """What is looked for, and how it is kept."""

    size: Count = 96
    """side of the patches, pixels"""
    height: Count = 240
    """short side of the frames while they are looked at, pixels; smaller clips as they are"""
    box: Part = 0.5
    """side of a tracked box, as a share of the frame's short side (paper: 227 of 448)"""
    seconds: Positive = 1.0
    """from the first patch to the last (paper: 30 frames); a folder's frames are taken for 30 a second"""
    tracker: Literal["kcf", "csrt"] = "kcf"
    """kcf is the paper's; csrt is more exact, also in size, and several times slower"""


@dataclass(frozen=True)
class Motion:
    """What moves between two frames: corners of the first (P, 2) as x, y; which of them move; whether it is a cut."""

    points: np.ndarray
    moving: np.ndarray
    cut: bool = False

    def inside(self, box: np.ndarray) -> np.ndarray:
        """(P,) which points lie in a box x, y, w, h."""
        low, high = box[:2], box[:2] + box[2:]
        return np.all((self.points >= low) & (self.points < high), axis=1)

    def share(self, box: np.ndarray) -> float:
        """Of the points in a box, how many move; 0 of none."""
        return float(self.moving[self.inside(box)].mean()) if self.inside(box).any() else 0.0


@dataclass
class Going:
    """A track that is being followed."""

    tracker: Any
    first: np.ndarray  # (size, size, 3) the patch that it began with
    start: int
    boxes: list[np.ndarray]
    moved: list[float] = field(default_factory=list)
    film: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Track:
    """The patches of a track, where it was, in pixels of a frame as it was looked at, and pictures to look at."""

    first: np.ndarray  # (size, size, 3) uint8
    last: np.ndarray
    start: int
    boxes: np.ndarray  # (L + 1, 4) x, y, w, h
    moved: float
    film: list[np.ndarray]


@dataclass
class Mined:
    """What a clip gave."""

    tracks: list[Track] = field(default_factory=list)
    length: int = 0
    """frames from the first patch of a track to the last"""
    frames: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """reason -> tracks that came to nothing"""
    quiet: int = 0
    """frames in which nothing moves"""
    shaken: int = 0
    """frames in which nearly everything does"""
    broken: str = ""
    """why the clip could not be read to its end"""

    def why_not(self) -> str:
        """Why there is no track, in a few words; "" if there is one."""
        if self.tracks:
            return ""
        if self.broken:
            return self.broken
        if self.frames <= self.length:
            return f"{self.frames} frames, shorter than a track of {self.length + 1}"
        if self.dropped:
            return "no track held: " + ", ".join(f"{n} {why}" for why, n in self.dropped.most_common())
        return "the camera moves too much" if self.shaken > self.quiet else "nothing moves"


def opencv() -> Any:
    """Loaded when it is needed; its stubs do not know what comes with contrib."""
    import cv2

    return cv2


# ---- motion


def motion(before: np.ndarray, after: np.ndarray) -> Motion:
    """Of two grey frames (H, W) uint8: which corners move otherwise than the camera.

    Flow runs over the edge of what moves; so a corner moves only if its surroundings are found where the flow points
    to, and not where the camera alone would have taken them.
    """
    cv2 = opencv()
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(before, after, None)  # (H, W, 2)
    y, x = np.indices(before.shape, dtype=np.float32)
    along = cv2.absdiff(cv2.remap(after, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR), before)
    if along.mean() > CUT * (before.std() + 1):
        return Motion(np.empty((0, 2)), np.empty(0, bool), cut=True)
    corners = cv2.goodFeaturesToTrack(before, POINTS, QUALITY, APART)
    if corners is None or len(corners) < FEW:
        return Motion(np.empty((0, 2)), np.empty(0, bool))
    points = corners[:, 0].astype(np.float32)
    column, row = points.round().astype(int).T
    step = flow[row, column]
    affine = camera(points, step)
    still = cv2.warpAffine(after, affine, before.shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    better = cv2.blur(cv2.subtract(cv2.absdiff(still, before), along), (AROUND, AROUND))[row, column]
    own = np.linalg.norm(step - (points @ affine[:, :2].T + affine[:, 2] - points), axis=1)
    return Motion(points, (own > MOVES) & (better > BETTER))


def camera(points: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(P, 2), (P, 2) -> the affine map (2, 3) by which the camera moves points: none if many rest, else as most tell."""
    cv2 = opencv()
    affine = None
    if (np.linalg.norm(step, axis=1) <= MOVES).mean() < STILL:
        affine, _ = cv2.estimateAffine2D(points, points + step, ransacReprojThreshold=MOVES)
    return np.eye(2, 3) if affine is None else affine


def begin(seen: Motion, shape: tuple[int, ...], side: int, taken: list[np.ndarray]) -> np.ndarray | None:
    """A box x, y, w, h of `side` with as many moving points as one can hold, and in their middle; None if too few move.

    shape (H, W, …) of the frame; `taken` are boxes whose things are followed already.
    """
    cv2 = opencv()
    high, wide = shape[:2]
    free = seen.moving.copy()
    for box in taken:
        free &= ~seen.inside(box)
    if free.sum() < FEW or min(high, wide) < side:
        return None
    count = np.zeros((high, wide), np.float32)
    x, y = seen.points[free].astype(int).T
    count[y, x] = 1
    held = cv2.boxFilter(
        count, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    held = held[: high - side + 1, : wide - side + 1].round()
    top, left = np.unravel_index(held.argmax(), held.shape)
    inside = free & seen.inside(np.array([left, top, side, side]))
    corner = seen.points[inside].mean(0) - side / 2
    box = np.array([*corner.clip(0, [wide - side, high - side]).round(), side, side])
    inside = free & seen.inside(box)
    if inside.sum() < FEW or seen.share(box) < NOISE:
        return None
    mine = seen.points[inside]
    edge = ((mine < EDGE) | (mine >= np.array([wide, high]) - EDGE)).any(1)
    return box if edge.mean() <= ENTERING else None


# ---- tracks


def mine(clip: Path, s: Settings) -> Mined:
    """All tracks of a clip. What breaks off in the middle keeps the tracks found until then."""
    cv2 = opencv()
    cv2.setNumThreads(1)  # clips are mined side by side
    found = Mined()
    try:
        found.length = max(EVERY, round(s.seconds * clips.rate(clip)))
        follow_all(clips.frames(clip, s.height), s, found)
    except decode.Unreadable as error:
        after = f", after {found.frames} frames" if found.frames else ""
        found.broken = f"{error}{after}"
    return found


def follow_all(frames: Iterator[np.ndarray], s: Settings, found: Mined) -> None:
    cv2 = opencv()
    going: list[Going] = []
    before: np.ndarray | None = None
    grey = np.empty(0)
    for now in frames:
        found.frames += 1
        grey, earlier = cv2.cvtColor(now, cv2.COLOR_RGB2GRAY), grey
        if before is not None:
            seen = motion(earlier, grey)
            if seen.cut:
                found.dropped["ended by a cut"] += len(going)
                going.clear()
            elif (new := started(seen, before, going, s, found)) is not None:
                going.append(new)
            going = [track for track in going if goes_on(track, now, seen, s, found)]
        before = now
    found.dropped["cut short by the end"] += len(going)
    found.dropped = +found.dropped  # without zeros


def started(seen: Motion, frame: np.ndarray, going: list[Going], s: Settings, found: Mined) -> Going | None:
    """A new track, if something moves that nobody follows."""
    cv2 = opencv()
    share = float(seen.moving.mean()) if len(seen.moving) else 0.0
    found.quiet += share == 0
    found.shaken += share > CAMERA
    if share > CAMERA or len(going) >= AT_ONCE:
        return None
    taken = [track.boxes[-1] for track in going if len(track.boxes) <= found.length / AGAIN]
    box = begin(seen, frame.shape, round(s.box * min(frame.shape[:2])), taken)
    if box is None:
        return None
    tracker = {"kcf": cv2.TrackerKCF_create, "csrt": cv2.TrackerCSRT_create}[s.tracker]()
    tracker.init(bgr(frame), tuple(int(v) for v in box))
    return Going(tracker, patch(frame, box, s.size), found.frames - 2, [box], film=[film(frame, box)])


def goes_on(track: Going, frame: np.ndarray, seen: Motion, s: Settings, found: Mined) -> bool:
    """Follow it to the next frame; False if it has come to its end there, whatever that is."""
    track.moved.append(seen.share(track.boxes[-1]))
    held, box = track.tracker.update(bgr(frame))
    box = np.array(box)
    reason = "" if held else "lost"
    if held and outside(box, frame.shape) > OUTSIDE:
        reason = "left the frame"
    track.boxes.append(box)
    done = len(track.boxes) == found.length + 1
    if not reason and done and min(np.mean(part) for part in np.array_split(track.moved, 3)) < KEPT:
        reason = "left behind"
    if reason:
        found.dropped[reason] += 1
        return False
    if len(found.tracks) < FILMS and len(track.boxes) % EVERY == 1:
        track.film.append(film(frame, box))
    if done:
        last, moved = patch(frame, box, s.size), float(np.mean(track.moved))
        found.tracks.append(Track(track.first, last, track.start, np.array(track.boxes), moved, track.film))
    return not done


def bgr(frame: np.ndarray) -> np.ndarray:
    """OpenCV's order of colours."""
    return np.ascontiguousarray(frame[..., ::-1])


def outside(box: np.ndarray, shape: tuple[int, ...]) -> float:
    """Share of a box that lies outside the frame."""
    x, y, w, h = box
    across = min(x + w, shape[1]) - max(x, 0)
    down = min(y + h, shape[0]) - max(y, 0)
    return 1 - max(0, across) * max(0, down) / max(1, w * h)


def patch(frame: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """What a box shows, (size, size, 3); where it reaches out of the frame it is moved back in."""
    cv2 = opencv()
    x, y, w, h = (round(float(v)) for v in box)
    side = min(max(w, h), *frame.shape[:2])  # square, as a CSRT box need not be
    left = min(max(0, x + (w - side) // 2), frame.shape[1] - side)
    top = min(max(0, y + (h - side) // 2), frame.shape[0] - side)
    cut = frame[top : top + side, left : left + side]
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def film(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The frame, small, with the box drawn into it."""
    cv2 = opencv()
    scale = FILM_SIDE / min(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    x, y, w, h = (round(float(v) * scale) for v in box)
    return cv2.rectangle(small, (x, y), (x + w - 1, y + h - 1), (255, 210, 0), 2)
