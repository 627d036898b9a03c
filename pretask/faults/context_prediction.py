"""Faults of context prediction."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "gap",
        "Patches touch and do not jitter, so that edges and textures continue from one to the next.",
        config={"gap": 0.0, "jitter": 0.0},
        named_by="audit",
        paper=(
            "Doersch, Gupta, Efros 2015, sec. 3.1: boundary patterns and textures that continue from patch to "
            "patch solve the task; gaps and jitter are to prevent it."
        ),
    ),
    Fault(
        "color-dropping",
        "Patches keep their colors, so that chromatic aberration tells where in the photograph they lie.",
        config={"color": "keep"},
        data="demo:lens",
        named_by="audit",
        paper=(
            "Doersch, Gupta, Efros 2015, sec. 3.1: by chromatic aberration a network can tell where in the "
            "photograph a patch lies, without understanding what it shows."
        ),
    ),
    Fault(
        "second patch off by one",
        "The network sees the patch after the second one of the pair.",
        patches={
            "PatchPairs": lambda own: (
                lambda patch, first, second, position: own(patch, first, (second + 1) % 9, position)
            )
        },
    ),
)
