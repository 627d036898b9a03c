"""What may be said of a run's features, and what to do about it. No torch here, which takes seconds to import."""

HEALTHY, COMPLETE, DIMENSIONAL, SHORTCUT, BLIND, BROKEN = (
    "healthy",
    "complete collapse",
    "dimensional collapse",
    "loss falls while features are constant",
    "loss falls whatever the image",
    "loss is not finite",
)
ADVICE = {
    COMPLETE: "every image gets the same features: lower --lr, lengthen --warmup, check stop-gradient or negatives",
    DIMENSIONAL: "features span almost no dimensions: a larger --batch, a weaker --weight-decay or a lower --lr",
    SHORTCUT: "the puzzle is solved without looking at the image: look at `pretask preview`, run `pretask check`",
    BLIND: "it is the same with parts of other images' puzzles: check stop-gradient, centring, negatives; lower --lr",
    BROKEN: "lower --lr, set --clip 1, or run with --precision 32-true",
}
