"""Compare the numbers of a commit with those of this checkout: weights of every recipe, scores of every kind of data.

Examples: python bench/unchanged.py --against main~1
          python bench/unchanged.py --against main~20 --resumed --steps 6

Both versions run the same commands, each in its own process on one thread: every method and recipe trains a narrow encoder
for a few steps in float32, and a run of each kind of data is scored. The script compares the losses, the tensors of
encoder.safetensors and the numbers of the score JSON by their keys; scores of an older schema are converted first. Names of
files, tensors and rows may differ, since they change when code is moved or renamed. The first difference of each command is
printed. Recipes of papers have wide networks and take most of the time; `--only` selects recipes.

With `--resumed`, the commit starts a run of each recipe and stops it halfway, scripts/convert_runs.py converts it, and this
checkout resumes it. It must end with the losses and weights of an uninterrupted run of the commit.
"""

import hashlib
import inspect
import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Goal, environment, flags, show
from PIL import Image
from safetensors.torch import load_file

from pretask.data.synthetic import draw
from pretask.encoders import classic
from pretask.rng import Rng

ROOT = Path(__file__).resolve().parents[1]
old_scores = runpy.run_path(str(ROOT / "scripts" / "old_scores.py"))
SIDES = (16, 32, 64, 128, 256, 400)
"""image sizes in pixels; a recipe trains on the smallest that it accepts"""
NARROW = {
    "mlp": "mlp:width=32",
    "resnet18": "resnet_small:width=16",
    "resnet50": "resnet_small:width=16",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2,global_pool=avg,fc_norm=False",
}
TRAINED = ["--batch", "16", "--precision", "32-true"]
RUN = ["--encoder", "resnet_small:width=16", "--steps", "4", *TRAINED]
SCORED: dict[str, list[list[str]]] = {
    "one label": [
        ["pretrain", "rotnet", "--data", "synthetic:64:16", *RUN, "--out", "run"],
        ["evaluate", "run", "--data", "synthetic:64:16", "--json"],
    ],
    "several labels": [["evaluate", "run", "--data", "DATA/several.jsonl", "--json"]],
    "few labels": [["evaluate", "run", "--data", "synthetic:64:16", "--finetune", "--nonlinear", "--svm", "--json"]],
    "texts": [
        ["pretrain", "text_topic", "--data", "DATA/texts.jsonl", *RUN, "--out", "texts"],
        ["evaluate", "texts", "--data", "DATA/texts.jsonl", "--json"],
    ],
    "tracks": [
        ["track", "DATA/clips", "--out", "tracks", "--workers", "1", "--size", "32", "--height", "120", "--box", "0.5"],
        ["pretrain", "video_triplet", "--data", "tracks", *RUN, "--batch", "4", "--out", "tracked"],
        ["evaluate", "tracked", "--data", "tracks", "--json"],
    ],
    "depth": [["transfer", "run", "--data", "synthetic:24:16", "--task", "depth", "--json"]],
    "normals": [["transfer", "run", "--data", "synthetic:24:16", "--task", "normals", "--json"]],
    "classification": [["transfer", "run", "--data", "DATA/squares", "--task", "classification", "--json"]],
    **{
        task: [["transfer", "run", "--data", "DATA/squares", "--task", task, "--steps", "4", "--size", "32", "--json"]]
        for task in ("detection", "segmentation")
    },
}  # fmt: skip
"""kind of data -> commands; the last one prints scores"""
SERVER = """\
import contextlib, importlib.util, io, json, os, runpy, signal, sys, traceback
from unittest import mock
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
home = "pretask.train.trainer" if importlib.util.find_spec("pretask.train") else "pretask.loop"
Trainer = importlib.import_module(home).Trainer
step = Trainer.step
def stopping(after):
    def stepped(trainer, batch, progress):
        if progress.step + 1 >= after and callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch, progress)
    return stepped
for line in sys.stdin:
    words, after = json.loads(line)
    sys.argv, output, errors, code = ["pretask", *words], io.StringIO(), io.StringIO(), 0
    stop = mock.patch.object(Trainer, "step", stopping(after)) if after else contextlib.nullcontext()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), stop:
            runpy.run_module("pretask", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        code, errors = 1, io.StringIO(traceback.format_exc())
    print(json.dumps([code, output.getvalue(), errors.getvalue()]), file=answers, flush=True)
"""
"""a process that runs pretask commands one after the other, so that torch is imported only once; a run can be stopped by SIGTERM
after a given number of steps"""


@dataclass(frozen=True)
class Flags:
    against: str = "HEAD"
    """the commit to compare with"""
    only: tuple[str, ...] = ()
    """recipes and kinds of data (default: all)"""
    steps: int = 4
    """steps of each recipe"""
    resumed: bool = False
    """convert and resume runs that the commit started, instead of comparing separate runs"""
    json: bool = False
    """print only JSON to standard output"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    error: str


class Tree:
    """A version of the code, with a process that runs its commands in the folder `work`."""

    def __init__(self, root: Path, work: Path):
        self.work = work
        work.mkdir()
        env = environment(PYTHONPATH=str(root), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", NO_COLOR="1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=work,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def pretask(self, words: list[str], stop: int = 0) -> Answer:
        """Run the command `words`; stop a run after `stop` steps, unless that is 0."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([words, stop]), file=self.process.stdin, flush=True)
        return Answer(*json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# ---- what is compared


def weights(folder: Path) -> list[str]:
    """Sorted checksums of all tensors, without their names."""
    tensors = load_file(next(folder.glob("*.safetensors"))).values()
    return sorted(
        hashlib.sha256(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for x in tensors
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def scores(text: str) -> list[list[tuple[str, float]]]:
    """The numbers of each row, sorted by key; other values are ignored."""
    found = json.loads(text)
    if found.get("schema") == old_scores["OLD"]:
        found = old_scores["convert"](found)
    return [sorted(numbers(row)) for row in found["rows"]]


def numbers(x: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(x, dict | list):
        for name, each in x.items() if isinstance(x, dict) else enumerate(x):
            yield from numbers(each, f"{key}.{name}" if key else str(name))
    elif isinstance(x, int | float) and not isinstance(x, bool):
        yield key, x


def first_difference(one: list[Any], other: list[Any]) -> str:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} values"
    return next(
        (f"number {i}: {a} and {b}" for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), ""
    )


def compare_runs(one: Path, other: Path) -> str:
    """The first difference of two runs; "" if they are equal."""
    for what, found in (("losses", losses), ("tensors", weights)):
        if differ := first_difference(found(one), found(other)):
            return f"{what}: {differ}"
    return ""


# ---- commands


class Both:
    """Two versions that run the same commands at the same time."""

    def __init__(self, then: Tree, now: Tree):
        self.trees = then, now
        self.threads = ThreadPoolExecutor(2)

    def pretask(self, words: list[str]) -> list[Answer]:
        return list(self.threads.map(lambda tree: tree.pretask(words), self.trees))

    def compare_training(self, recipe: str, encoder: str, steps: int) -> str:
        """The first difference of the runs of a recipe; "" if they are equal; LookupError if neither version can train it."""
        out, words = "", training_command(recipe, encoder, steps)
        answers: list[Answer] = []
        for side in SIDES:  # a version may accept smaller images than the other
            out = f"{recipe.replace(':', '-')}-{side}"
            answers = self.pretask([*words, "--data", f"synthetic:64:{side}", "--out", out])
            if not any(answer.code for answer in answers):
                break
        if differ := codes(answers):
            return differ
        if answers[0].code:
            raise LookupError(last_line(answers[0]))
        return compare_runs(*(tree.work / out for tree in self.trees))

    def compare_resumed(self, recipe: str, encoder: str, steps: int) -> str:
        """The first difference of a run of the first version from one that the first started and the second resumed."""
        then, now = self.trees
        out, plain = recipe.replace(":", "-"), training_command(recipe, encoder, steps)
        words, answer = plain, Answer(2, "", "")
        for side in SIDES:
            words = [*plain, "--data", f"synthetic:64:{side}"]
            answer = then.pretask([*words, "--out", out])
            if answer.code != 2:
                break
        if answer.code:
            raise LookupError(last_line(answer))
        answer = then.pretask([*words, "--out", "begun"], stop=steps // 2)
        if answer.code != 143:
            return f"not stopped halfway: {last_line(answer)}"
        begun = (then.work / "begun").rename(now.work / out)
        converted = subprocess.run(
            [sys.executable, ROOT / "scripts/convert_runs.py", begun], capture_output=True, text=True
        )
        if converted.returncode:
            return converted.stderr.strip()
        answer = now.pretask(["pretrain", "--resume", out])
        if answer.code:
            return f"not resumed: {last_line(answer)}"
        return compare_runs(then.work / out, begun)

    def compare_scores(self, commands: list[list[str]]) -> str:
        """The first difference of the scores; "" if they are equal; LookupError if neither version prints any."""
        answers: list[Answer] = []
        for words in commands:
            answers = self.pretask(words)
            if differ := codes(answers):
                return f"{' '.join(words[:2])}: {differ}"
            if answers[0].code:
                raise LookupError(f"{' '.join(words[:2])}: {last_line(answers[0])}")
        return first_difference(*(scores(answer.out) for answer in answers))


def training_command(recipe: str, encoder: str, steps: int) -> list[str]:
    """The command that trains a recipe with a narrow version of `encoder`, without `--data` and `--out`."""
    return ["pretrain", recipe, "--encoder", narrow(encoder), "--steps", str(steps), *TRAINED]


def narrow(encoder: str) -> str:
    """A narrow version of an encoder; one of fixed width stays as it is."""
    name, _, arguments = encoder.partition(":")
    if name in NARROW:
        return NARROW[name]
    if name in classic.NETS:
        fixed = "width" not in inspect.signature(classic.NETS[name]).parameters
        return encoder if fixed else f"{name}:width=16"
    heads = [] if "num_heads" in arguments else ["num_heads=3"]
    return f"{name}:" + ",".join([*filter(None, [arguments]), "embed_dim=48", "depth=2", *heads])


def codes(answers: list[Answer]) -> str:
    if answers[0].code == answers[1].code:
        return ""
    return "; ".join(f"exit code {answer.code} ({last_line(answer)})" for answer in answers)


def last_line(answer: Answer) -> str:
    return answer.error.strip().splitlines()[-1] if answer.error.strip() else "no message"


# ---- data


def make_data(folder: Path) -> None:
    """Write images with texts and with several labels, clips of a moving square, and squares with boxes and masks."""
    image, label = draw(64, 32, Rng(0, "unchanged"))[:2]
    for i, pixels in enumerate(image.permute(0, 2, 3, 1).numpy()):
        save(folder / f"images/{i:02d}.png", pixels)
    kinds, words = (
        ("ball", "tower", "tent", "tree"),
        ("round red", "tall gray stone", "cloth rope", "green leaf wood"),
    )
    rows = [(f"images/{i:02d}.png", int(k)) for i, k in enumerate(label)]
    several = [
        {"image": name, "label": [kinds[k], "even" if i % 2 else "odd"]} for i, (name, k) in enumerate(rows)
    ]
    texts = [
        {"image": name, "label": kinds[k], "text": f"{words[k]} {kinds[k]} {i}"}
        for i, (name, k) in enumerate(rows)
    ]
    for name, table in (("several", several), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)) + "\n")
    for clip in range(4):
        write_clip(folder / f"clips/{clip}", np.random.default_rng(clip))
    write_squares(folder / "squares", np.random.default_rng(0))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def texture(high: int, wide: int, draws: np.random.Generator) -> np.ndarray:
    """(high, wide, 3) smooth noise, different at every location."""
    coarse = draws.integers(0, 256, (high // 6, wide // 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC))


def write_clip(folder: Path, draws: np.random.Generator) -> None:
    """Write 45 frames of a square that moves over a textured background."""
    ground, square = texture(120, 160, draws), 255 - texture(40, 40, draws)
    for t in range(45):
        frame, x, y = ground.copy(), round(20 + 1.5 * t), round(40 + 0.5 * t)
        frame[y : y + 40, x : x + 40] = square
        save(folder / f"{t}.png", frame)


def write_squares(folder: Path, draws: np.random.Generator) -> None:
    """Write 24 images in COCO format, each with one square of each of two classes."""
    images, objects = [], []
    for i in range(24):
        pixels, mask = texture(64, 64, draws), np.zeros((64, 64), np.uint8)
        for k, left in enumerate(draws.integers(0, 12, 2)):
            x, y, side = int(left) + 32 * k, int(draws.integers(0, 40)), 20
            pixels = pixels.copy()
            pixels[y : y + side, x : x + side] = (255, 0, 0) if k else (0, 0, 255)
            mask[y : y + side, x : x + side] = k + 1
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            objects.append(
                {"id": len(objects) + 1, "image_id": i, "category_id": k + 1, "bbox": [x, y, side, side],
                 "area": side**2, "iscrowd": 0, "segmentation": [corners]}
            )  # fmt: skip
        save(folder / f"images/{i}.png", pixels)
        save(folder / f"SegmentationClass/{i}.png", mask)
        images.append({"id": i, "file_name": f"images/{i}.png", "width": 64, "height": 64})
    classes = [{"id": k + 1, "name": name} for k, name in enumerate(("blue", "red"))]
    (folder / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": objects, "categories": classes})
    )


# ---- run


def compare(args: Flags, then: Path, work: Path) -> dict[str, str]:
    """Recipe or kind of data -> its first difference; "" if it has none; the reason in brackets if it was not tried."""
    make_data(work / "data")
    both = Both(Tree(then, work / "then"), Tree(ROOT, work / "now"))
    listed = json.loads(both.trees[0].pretask(["list", "--json"]).out)
    compare_recipe = both.compare_resumed if args.resumed else both.compare_training
    jobs: dict[str, Any] = {
        row["method"]: lambda row=row: compare_recipe(row["method"], row["encoder"], args.steps)
        for row in listed
    }
    for kind, commands in () if args.resumed else SCORED.items():
        placed = [[word.replace("DATA", str(work / "data")) for word in words] for words in commands]
        jobs[kind] = lambda placed=placed: both.compare_scores(placed)
    found = {}
    for name, job in jobs.items():
        if args.only and name not in args.only:
            continue
        try:
            found[name] = job()
        except LookupError as why:
            found[name] = f"({why})"
        print(f"{name}: {found[name] or 'equal'}", file=sys.stderr, flush=True)
    for tree in both.trees:
        tree.close()
    return found


def main() -> None:
    args = flags(Flags, __doc__ or "")
    with tempfile.TemporaryDirectory() as work:
        then = Path(work, "commit")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", then, args.against], check=True)
        try:
            found = compare(args, then, Path(work))
        finally:
            subprocess.run([*git, "remove", "--force", then], check=True)
    equal = sum(not how for how in found.values())
    untried = sum(how.startswith("(") for how in found.values())
    numbers = {"against": args.against, "equal": equal, "not tried": untried, "found": found}
    show("Unchanged", numbers, [Goal("different", len(found) - equal - untried, 1, "", less=True)], args.json)


if __name__ == "__main__":
    main()
