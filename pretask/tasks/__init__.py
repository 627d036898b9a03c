"""The tasks that `pretask transfer` takes an encoder to, in one place."""

from collections.abc import Mapping

TASKS: Mapping[str, str] = {
    "classification": "voc",
    "detection": "detection",
    "segmentation": "segmentation",
    "normals": "normals",
    "depth": "depth",
}
"""task -> the module of pretask/evals that knows it, with what evals.transfer.Task lists"""
