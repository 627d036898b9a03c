"""The command line: which verb is meant, and what is said of a mistake. The verbs are in commands/."""

import sys
import time
from collections.abc import Sequence

from pretask.cli.commands import verb
from pretask.errors import Stopped, UserError
from pretask.runtime import accounts

HELP = """\
pretask: learn to see from unlabelled images, and find out what it was worth.

  pretask demo                                       the whole path in a few minutes, with nothing prepared
  pretask pretrain METHOD --data PATH [--out RUN]    train without labels on a folder of images
  pretask pretrain --resume RUN                      go on after a crash, or for longer with --steps N
  pretask evaluate RUN --data LABELLED               score the frozen features, beside honest baselines
  pretask transfer RUN --data FOLDER --task TASK     take it to classification, detection or segmentation
  pretask report RUN [--data LABELLED]               one offline page: curves, puzzles, neighbours, scores
  pretask study RUN --data LABELLED                  how much data, how many labels, how much do features change?

  pretask list                                       methods and what they ask
  pretask preview METHOD --data PATH                 draw the puzzles with their answers
  pretask check METHOD --data PATH                   is the method sound on these images? a minute
  pretask audit METHOD --data PATH                   is the puzzle solved by cheating? some minutes
  pretask colorize RUN --data PATH                   paint grey images, by a run that learned to colour
  pretask cluster RUN --data PATH --clusters K       sort images into clusters, a sheet of each
  pretask embed RUN --data PATH                      write features to a table
  pretask export RUN --to timm|torch|onnx|hf         take the encoder elsewhere
  pretask prepare PATH --out STORE                   decode once, train faster
  pretask track CLIPS --out TRACKS                   follow what moves in video clips, for video_triplet
  pretask render --scenes N --out FOLDER             rooms with depth, normals and instances, to learn from

Every verb explains itself: pretask VERB --help. METHOD is a name from the list, a recipe such as rotnet:paper,
or your own file ./my_puzzle.py. PATH is a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name.
"""


began = 0.0
"""when the command was given, by time.monotonic(), from which a budget counts"""


def main(arguments: Sequence[str] | None = None, since: float | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 if `check` found a fault, 2 for a mistake of the user, 130 when interrupted, 143 when a run was told to end.

    `since` is when the process began, where the command is all that it does.
    """
    global began
    began = time.monotonic() if since is None else since
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from pretask import __version__

        print(f"pretask {__version__}")
        return 0
    try:
        with accounts.kept() as opened:
            code = verb(words[0])(words[1:]) or 0
        if opened:
            from pretask.train.progress import say

            for line in accounts.lines(opened):
                say(line)
        return code
    except UserError as mistake:
        print(f"pretask: {' '.join(str(mistake).splitlines())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        from pretask.runtime.distributed import rank

        if not rank():
            print(f"pretask: {stopped}", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("pretask: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        sys.stderr.close()
        return 0
    except (MemoryError, RuntimeError) as failure:
        if not short_of_memory(failure):
            raise
        told = "".join(str(failure).splitlines()[:1]) or "Python could get no more"
        print(
            f"pretask: out of memory ({told}); give a smaller --batch, --size or --encoder", file=sys.stderr
        )
        return 2
    except OSError as failure:  # a full disk, a file that may not be read or written
        where = f"{failure.filename}: " if failure.filename else ""
        print(f"pretask: {where}{(failure.strerror or str(failure)).lower()}", file=sys.stderr)
        return 2


def short_of_memory(failure: BaseException) -> bool:
    """Python's error, CUDA's, or what PyTorch says of a CPU, which has no type of its own."""
    said = str(failure)
    marks = ("DefaultCPUAllocator", "std::bad_alloc", "out of memory")
    return isinstance(failure, MemoryError) or any(mark in said for mark in marks)
