"""Downstream tasks, one module each: a frozen or fine-tuned encoder with a head for the task."""

from collections.abc import Mapping

TASKS: Mapping[str, str] = {
    "classification": "Classification",
    "detection": "Detection",
    "segmentation": "Segmentation",
    "normals": "Normals",
    "depth": "Depth",
}
"""module, named like the task -> its class; modules are imported lazily"""
