"""The command line: parsing and printing, no logic. Each verb imports what it needs when it is called."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pretask.errors import UserError

HELP = """\
pretask: learn to see from unlabelled images, and find out what it was worth.

  pretask demo                                       the whole path in a few minutes, with nothing prepared
  pretask pretrain METHOD --data PATH [--out RUN]    train without labels on a folder of images
  pretask pretrain --resume RUN                      go on after a crash
  pretask evaluate RUN --data LABELLED               score the frozen features, beside honest baselines
  pretask report RUN [--data LABELLED]               one offline page: curves, puzzles, neighbours, scores

  pretask list                                       methods and what they ask
  pretask preview METHOD --data PATH                 draw the puzzles with their answers
  pretask check METHOD --data PATH                   is the method sound on these images? a minute
  pretask embed RUN --data PATH                      write features to a table
  pretask export RUN --to timm|torch|onnx|hf         take the encoder elsewhere
  pretask prepare PATH --out STORE                   decode once, train faster

Every verb explains itself: pretask VERB --help. METHOD is a name from the list, a recipe such as rotnet:paper,
or your own file ./my_puzzle.py. PATH is a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 if `check` found a fault, 2 for a mistake of the user, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from pretask import __version__

        print(f"pretask {__version__}")
        return 0
    try:
        return verb(words[0])(words[1:]) or 0
    except UserError as mistake:
        print(f"pretask: {' '.join(str(mistake).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pretask: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        sys.stderr.close()
        return 0


def verb(name: str) -> Callable[[list[str]], Any]:
    from pretask import verbs

    if name not in verbs.VERBS:
        import difflib

        near = difflib.get_close_matches(name, verbs.VERBS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(verbs.VERBS)}"
        raise UserError(f"no verb is called {name!r}; {hint}")
    return verbs.VERBS[name]
