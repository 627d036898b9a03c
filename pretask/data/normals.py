"""Depth maps: ray lengths to depths, and surface normals from depth.

Camera axes: x right, y down, z forward. The center of a pixel is at (column + 0.5, row + 0.5). Depth is measured along
the optical axis.
"""

import numpy as np

RADIUS = 2
"""radius in pixels of the neighborhood to which a plane is fitted: 5 x 5"""
STEP = 0.1
"""relative difference in depth above which a neighbor belongs to another surface"""
FEWEST = 6
"""minimum number of neighbors for a plane"""


def rays(shape: tuple[int, ...], intrinsics: np.ndarray) -> np.ndarray:
    """(H, W) and intrinsics (3, 3) in pixels -> (H, W, 3): the point at depth 1 on the ray of each pixel."""
    height, width = shape
    x = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    u, v = np.meshgrid(x, y)
    return np.stack([u, v, np.ones_like(u)], 2)


def camera(shape: tuple[int, ...], across: float, down: float | None = None) -> np.ndarray:
    """(H, W), horizontal and vertical field of view in radians -> intrinsics (3, 3), centered; square pixels if `down` is None."""
    height, width = shape
    fx = width / 2 / np.tan(across / 2)
    fy = fx if down is None else height / 2 / np.tan(down / 2)
    return np.array([[fx, 0, width / 2], [0, fy, height / 2], [0, 0, 1]])


def along_axis(length: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Distances (H, W) from the camera along each ray -> depths along the optical axis."""
    return length / np.linalg.norm(rays(length.shape, intrinsics), axis=2)


def normals(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(H, W) meters, 0 unknown -> (H, W, 3) float32 unit vectors towards the camera, zeros where no plane fits.

    On a plane n·P = d with P = z·(u, v, 1), 1 / z is linear in the ray (u, v) of a pixel: the normal is the slope of a
    least-squares fit of 1 / z to the neighbors at about the same depth.
    """
    height, width = depth.shape
    ray = rays(depth.shape, intrinsics)
    known = depth > 0
    near = np.divide(1, depth, out=np.zeros(depth.shape), where=known)
    moments, sums = np.zeros((height, width, 3, 3)), np.zeros((height, width, 3))
    padded = np.pad(near, RADIUS)
    scale = 1 / np.array([intrinsics[0, 0], intrinsics[1, 1]])  # step of one pixel in u and v
    for down in range(-RADIUS, RADIUS + 1):
        for right in range(-RADIUS, RADIUS + 1):
            other = padded[RADIUS + down :, RADIUS + right :][:height, :width]
            same = known & (other > 0) & (np.abs(other - near) <= STEP * near)
            at = np.array([right, down, 1.0])  # in pixels, so that the equations are well conditioned
            moments += same[..., None, None] * np.outer(at, at)
            sums += (same * (other - near))[..., None] * at
    enough = (moments[..., 2, 2] >= FEWEST) & (np.linalg.det(moments) > 1)
    slope = np.zeros((height, width, 3))
    slope[enough] = np.linalg.solve(moments[enough], sums[enough][..., None])[..., 0]
    a, b = slope[..., 0] / scale[0], slope[..., 1] / scale[1]
    c = near + slope[..., 2] - a * ray[..., 0] - b * ray[..., 1]
    n = -np.stack([a, b, c], 2)  # n·ray = -1 / z: towards the camera
    length = np.linalg.norm(n, axis=2, keepdims=True)
    return np.where(enough[..., None], n / length.clip(min=1e-12), 0).astype(np.float32)
