"""Results that were measured with an older default recipe."""

FOLDS = "text_topic-folds"
"""the experiment that folds.py makes"""
OUTDATED = {
    **dict.fromkeys(("exemplar-imagenette", "exemplar-cifar10"), "47def2c"),
    **dict.fromkeys(("context-imagenette", "context-cifar10", "context-lossless"), "47def2c"),
    **dict.fromkeys(("jigsaw-imagenette", "jigsaw-cifar10", "jigsaw-grid", "jigsaw-no-grid"), "47def2c"),
    **dict.fromkeys(("damaged-imagenette", "damaged-cifar10"), "47def2c"),
    **dict.fromkeys(
        (f"{name}-cifar10" for name in ("barlow_twins", "swav", "dino", "ibot", "ijepa", "lejepa")), "47def2c"
    ),
    **dict.fromkeys(("text_topic-astronomy", "text_topic-cifar10", FOLDS), "47def2c"),
    **dict.fromkeys(("mae-cifar10", "mae-imagenette"), "d2eb21a"),
    **dict.fromkeys(
        (
            f"cross_domain-{name}"
            for name in (
                "imagenette",
                "cifar10",
                "normals",
                "depth",
                "normals-tuned",
                "depth-tuned",
                "segmentation",
                "classification",
                "detection",
            )
        ),
        "891903c",
    ),
}
"""experiments with an outdated recipe -> the commit that changed it"""
OUTDATED_STUDIES = {
    **dict.fromkeys(("exemplar-copies", "context-gap"), "47def2c"),
    **dict.fromkeys(("scene-adversary", "scene-tasks"), "891903c"),
}
"""orderings with an outdated recipe -> the commit that changed it"""
