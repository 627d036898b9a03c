"""The bar chart of README.md, from measured scores: `python docs/bars.py`."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from pretask.evals import scores
from pretask.evals.scores import Measurement

HERE = Path(__file__).parent
SCORES = HERE / "results" / "simclr-cifar10" / "scores.json"
PICTURE = HERE / "assets" / "accuracy.svg"
ROWS = {
    "run": ("SimCLR, 10 minutes without labels", "#2563eb"),
    "patches": ("k-means patches", "#94a3b8"),
    "untrained": ("the same network, untrained", "#cbd5e1"),
    "pixels": ("raw pixels", "#e2e8f0"),
}
COLUMNS = {
    Measurement("knn", "pool"): "kNN",
    Measurement("linear", "pool"): "linear probe",
    Measurement("best linear"): "linear probe,\nbest stage",
    Measurement("few-shot", "pool", shots=10): "10 labels\nper class",
}


def main() -> None:
    found = scores.read(SCORES)
    with rc_context({"svg.hashsalt": "pretask", "font.size": 10}):  # the same file from the same numbers
        figure = Figure(figsize=(9, 3.1), layout="constrained")
        axes = figure.subplots()
        for i, (role, (label, color)) in enumerate(ROWS.items()):
            name = next(row.name for row in found.rows if row.role == role)
            for j, measured in enumerate(COLUMNS):
                row = found.find(name, measured)
                assert row and row.low is not None and row.high is not None
                x = j + 0.2 * (i - 1.5)
                reach = [[row.value - row.low], [row.high - row.value]]
                axes.bar(x, row.value, 0.18, color=color, label=label if j == 0 else None)
                axes.errorbar(x, row.value, yerr=reach, color="#334155", lw=1.2, capsize=2)
                axes.annotate(f"{row.value:.0f}", (x, 2), ha="center", color="white" if i == 0 else "#334155")
        axes.set_xticks(range(len(COLUMNS)), list(COLUMNS.values()))
        axes.set_ylabel("accuracy on CIFAR-10, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", lw=0.8)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
