#!/usr/bin/env python3
"""Frames of an explorer of many images in Chromium, which draws in software: a scripted pan and zoom of five seconds.

python bench/explorer.py --images 50000
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Goal, flags, show

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import browser  # pyright: ignore[reportMissingImports]

from pretask import data
from pretask.viz import explorer
from pretask.viz.explorer import Column

SCRIPT = """new Promise(done => {
  const times = [], start = performance.now();
  let last = start;
  requestAnimationFrame(function frame() {
    const now = performance.now(), s = (now - start) / 1000;
    times.push(now - last);
    last = now;
    if (s > 5) return done(times.slice(1));
    pan(6 * Math.sin(4 * s), 6 * Math.cos(3 * s));
    zoomAt(450 + 100 * Math.sin(s), 380, 1 + 0.02 * Math.sin(2 * s));
    requestAnimationFrame(frame);
  });
})"""


PAINT = """new Promise(done => new PerformanceObserver(
  list => done(list.getEntries()[0].startTime)
).observe({type: "paint", buffered: true}))"""


@dataclass(frozen=True)
class Flags:
    images: int = explorer.MOST
    """number of images"""
    json: bool = False
    """print only JSON to standard output"""


def main() -> None:
    args = flags(Flags, __doc__ or "")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "explorer.html")
        write(path, args.images)
        size = path.stat().st_size / 2**20
        with browser(Path(folder)) as page:
            page.open(path)
            paint = page.run(PAINT) / 1000
            times = np.array(page.run(SCRIPT))
            requests = len(page.requests) - 1
    median, most = np.quantile(times, [0.5, 0.95])
    goals = [
        Goal("frames a second, median", 1000 / float(median), 30, ""),
        Goal("95 % of frames within", float(most), 60, "ms", less=True),
        Goal("first paint", paint, 3, "s", less=True),
        Goal("page", size, 40, "MB", less=True),
        Goal("requests", requests, 1, "", less=True),
    ]
    show(f"Explorer of {args.images:,} images", {"images": args.images}, goals, args.json)


def write(path: Path, n: int) -> None:
    """Drawings at random places around 40 centers."""
    rng = np.random.default_rng(0)
    group = rng.integers(40, size=n)
    at = 3 * rng.normal(size=(40, 2))[group] + 0.5 * rng.normal(size=(n, 2))
    near = (np.arange(n)[:, None] + np.arange(1, 9)) % n
    image = data.open("demo", size=32, progress=False).__getitems__(torch.arange(6000)).image
    batches = (image[torch.arange(k, min(k + 1000, n)) % 6000] for k in range(0, n, 1000))
    names = [f"photos/{i:06}.jpg" for i in range(n)]
    columns = [Column.of("group", group.tolist())]
    explorer.write(path, f"{n:,} images", names, at, near, batches, columns, "")


if __name__ == "__main__":
    main()
