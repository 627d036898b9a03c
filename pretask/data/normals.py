"""Depth and the surfaces it shows: lengths of rays as depths, and normals from depth.

Axes of the camera: x right, y down, z forward. A pixel's centre is at (column + 0.5, row + 0.5). Depth runs along
the optical axis.
"""

import numpy as np

RADIUS = 2
"""pixels: a plane is fitted to 5 x 5 of them"""
STEP = 0.1
"""neighbours whose depth differs by more than this share belong to another surface"""
FEWEST = 6
"""neighbours that make a plane"""


def rays(shape: tuple[int, ...], intrinsics: np.ndarray) -> np.ndarray:
    """(H, W), and focal lengths and centre in pixels (3, 3) -> (H, W, 3): where the ray of each pixel is at depth 1."""
    height, width = shape
    x = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    u, v = np.meshgrid(x, y)
    return np.stack([u, v, np.ones_like(u)], 2)


def camera(shape: tuple[int, ...], across: float, down: float | None = None) -> np.ndarray:
    """(H, W), fields of view in radians -> intrinsics (3, 3) of a camera that looks through the middle; pixels are square
    where only one is given."""
    height, width = shape
    fx = width / 2 / np.tan(across / 2)
    fy = fx if down is None else height / 2 / np.tan(down / 2)
    return np.array([[fx, 0, width / 2], [0, fy, height / 2], [0, 0, 1]])


def along_axis(length: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Distances (H, W) from the camera, along each ray -> depths."""
    return length / np.linalg.norm(rays(length.shape, intrinsics), axis=2)


def normals(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(H, W) metres, 0 unknown -> (H, W, 3) float32 unit vectors that point to the camera, zeros where there is no plane.

    On a plane n·P = d the point P = z·(u, v, 1), so 1 / z is linear in a pixel's ray (u, v): the plane's normal is
    the slope of a least-squares fit of 1 / z to the neighbours at about the same depth.
    """
    height, width = depth.shape
    ray = rays(depth.shape, intrinsics)
    known = depth > 0
    near = np.divide(1, depth, out=np.zeros(depth.shape), where=known)
    moments, sums = np.zeros((height, width, 3, 3)), np.zeros((height, width, 3))
    padded = np.pad(near, RADIUS)
    scale = 1 / np.array([intrinsics[0, 0], intrinsics[1, 1]])  # of a pixel's step in u and v
    for down in range(-RADIUS, RADIUS + 1):
        for right in range(-RADIUS, RADIUS + 1):
            other = padded[RADIUS + down :, RADIUS + right :][:height, :width]
            alike = known & (other > 0) & (np.abs(other - near) <= STEP * near)
            at = np.array([right, down, 1.0])  # in pixels, which keeps the equations well conditioned
            moments += alike[..., None, None] * np.outer(at, at)
            sums += (alike * (other - near))[..., None] * at
    enough = (moments[..., 2, 2] >= FEWEST) & (np.linalg.det(moments) > 1)
    slope = np.zeros((height, width, 3))
    slope[enough] = np.linalg.solve(moments[enough], sums[enough][..., None])[..., 0]
    a, b = slope[..., 0] / scale[0], slope[..., 1] / scale[1]
    c = near + slope[..., 2] - a * ray[..., 0] - b * ray[..., 1]
    n = -np.stack([a, b, c], 2)  # n·ray is -1 / z: towards the camera
    length = np.linalg.norm(n, axis=2, keepdims=True)
    return np.where(enough[..., None], n / length.clip(min=1e-12), 0).astype(np.float32)
