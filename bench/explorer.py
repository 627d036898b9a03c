#!/usr/bin/env python3
"""Frames of an explorer of 50,000 images in Chromium, which draws in software: a scripted pan and zoom of five seconds.

python bench/explorer.py
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

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


def main() -> None:
    n, rng = explorer.MOST, np.random.default_rng(0)
    group = rng.integers(40, size=n)
    at = 3 * rng.normal(size=(40, 2))[group] + 0.5 * rng.normal(size=(n, 2))
    near = (np.arange(n)[:, None] + np.arange(1, 9)) % n
    image = data.open("demo", size=32, progress=False).__getitems__(torch.arange(6000)).image
    batches = (image[torch.arange(k, k + 1000) % 6000] for k in range(0, n, 1000))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "explorer.html")
        names = [f"photos/{i:06}.jpg" for i in range(n)]
        explorer.write(
            path, "50,000 images", names, at, near, batches, [Column.of("group", group.tolist())], ""
        )
        with browser(Path(folder)) as page:
            page.open(path)
            paint = page.run("performance.getEntriesByType('paint')[0].startTime")
            times = np.array(page.run(SCRIPT))
            found = {
                "images": n, "page, MB": round(path.stat().st_size / 2**20, 1), "first paint, s": round(paint / 1000, 2),
                "frames a second, median": round(1000 / float(np.median(times))), "frame, 95 % ms": round(float(np.quantile(times, 0.95)), 1),
                "requests": len(page.requests) - 1,
            }  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
