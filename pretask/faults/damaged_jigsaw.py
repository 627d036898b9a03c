"""Faults of damaged jigsaw puzzles."""

from pretask.faults import Fault
from pretask.faults.jigsaw import unsorted

FAULTS = (
    Fault(
        "gap",
        "Tiles fill their cells, so that edges and textures continue from one to the next.",
        config={"tile": 1.0},
        named_by="audit",
    ),
    Fault(
        "tile order not inverted",
        "Further permutations start from the shuffled tiles as if these were in order.",
        patches={"permute_embeddings": unsorted},
    ),
)
