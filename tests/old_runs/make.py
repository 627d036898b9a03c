"""Makes the runs in this folder, one of each method, as a commit made them: python tests/old_runs/make.py COMMIT [METHOD ...].

Each is a narrow network that is stopped in the middle of its first epoch. METHOD.json holds the files of its folder, from which
`tests/scripts/test_convert_runs.py` builds the folder again: of weights and of what optimizers remember only type and shape,
of whole numbers also the values. `encoder.json` and, of one method, scores are of the same run at its end. The runs here are of
commit 11e42aa, when files had no format numbers.
"""

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from unchanged import SIDES, Tree, said, training  # noqa: E402

STEPS, STOP = 6, 2
"""two epochs of three steps, stopped in the first"""
SCORED = "rotnet"
TEXTS = {"run.json", "log.jsonl", "watch.jsonl", "topics.json"}
BINARIES = {"topics.safetensors"}


def described(x: Any) -> Any:
    """Plain JSON: a tensor as its type, its shape and, if it is of whole numbers, its values."""
    if isinstance(x, Tensor):
        values = None if x.is_floating_point() else x.flatten().tolist()
        return {"tensor": str(x.dtype).removeprefix("torch."), "shape": list(x.shape), "values": values}
    if isinstance(x, dict):
        return {"dict": [[described(key), described(value)] for key, value in x.items()]}
    if isinstance(x, list | tuple):
        return {type(x).__name__: [described(each) for each in x]}
    return x


def kept(folder: Path) -> dict[str, Any]:
    """What lies in a run's folder."""
    found: dict[str, Any] = {path.name: path.read_text() for path in folder.iterdir() if path.name in TEXTS}
    for path in folder.iterdir():
        if path.name in BINARIES:
            found[path.name] = {"bytes": base64.b64encode(path.read_bytes()).decode()}
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return found | {"checkpoint.pt": described(state)}


def made(tree: Tree, recipe: str, encoder: str) -> dict[str, Any]:
    """What lies in the folder of a run that was stopped, on the smallest images that its method takes, and what it ends with."""
    words, folder = training(recipe, encoder, STEPS), tree.work / recipe
    for side in SIDES:
        data = f"synthetic:64:{side}"
        answer = tree.pretask([*words, "--data", data, "--out", recipe], stop=STOP)
        if answer.code != 2:  # larger images are needed
            break
    assert answer.code == 143, said(answer)
    found = kept(folder)
    answers = [tree.pretask(["pretrain", "--resume", recipe])]
    if recipe == SCORED:
        answers.append(tree.pretask(["evaluate", recipe, "--data", data]))
    assert not any(answer.code for answer in answers), answers
    ends = [folder / "encoder.json", *folder.glob("scores/*.json")]
    return found | {str(path.relative_to(folder)): path.read_text() for path in ends}


def main() -> None:
    here, commit, *wanted = Path(__file__).parent, *sys.argv[1:]
    with tempfile.TemporaryDirectory() as work:
        then = Path(work, "commit")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", then, commit], check=True)
        try:
            tree = Tree(then, Path(work, "runs"))
            for row in json.loads(tree.pretask(["list", "--json"]).out):
                if ":" in row["method"] or (wanted and row["method"] not in wanted):
                    continue
                found = made(tree, row["method"], row["encoder"])
                (here / f"{row['method']}.json").write_text(json.dumps(found) + "\n")
                print(row["method"], flush=True)
            tree.close()
        finally:
            subprocess.run([*git, "remove", "--force", then], check=True)


if __name__ == "__main__":
    main()
