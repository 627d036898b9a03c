"""States of a run's health, with advice. This module must not import torch, which takes seconds."""

HEALTHY, COMPLETE, DIMENSIONAL, CONSTANT_FEATURES, INPUT_INDEPENDENT, NONFINITE = (
    "healthy",
    "complete collapse",
    "dimensional collapse",
    "loss falls with constant features",
    "loss does not depend on the input",
    "loss is not finite",
)
ADVICE = {
    COMPLETE: "all images get the same features: lower --lr, lengthen --warmup, check stop-gradient or negatives",
    DIMENSIONAL: "features span almost no dimensions: a larger --batch, a weaker --weight-decay or a lower --lr",
    CONSTANT_FEATURES: "the puzzle is solved without the image: inspect `pretask preview`, run `pretask check`",
    INPUT_INDEPENDENT: "shuffling the puzzle between images does not change it: check stop-gradient, centering, negatives; "
    "lower --lr",
    NONFINITE: "lower --lr, set --clip 1, or run with --precision 32-true",
}
