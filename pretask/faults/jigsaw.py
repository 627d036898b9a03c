"""Faults of jigsaw puzzles."""

import torch

from pretask.faults import Fault


def unsorted(original):
    """Tiles are not brought back into raster order before they are permuted again."""

    def permute(embedding, permutation, extra):
        row = torch.arange(len(embedding))[:, None, None]
        return torch.cat([embedding[:, None], embedding[row, extra]], 1)

    return permute


FAULTS = (
    Fault(
        "gap",
        "Tiles fill their cells, so that edges and textures continue from one to the next.",
        config={"tile": 1.0},
        named_by="audit",
        paper=(
            "Noroozi and Favaro 2016, sec. 3.2 and table 5: without the gap, transfer to detection falls from "
            "52.6 to 47.7 mAP, since edges that continue solve the puzzle."
        ),
    ),
    Fault(
        "tile order not inverted",
        "Further permutations start from the shuffled tiles as if these were in order.",
        patches={"permute_embeddings": unsorted},
    ),
)
