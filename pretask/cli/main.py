"""The entry point of the command line: dispatch to commands/, and one-line error messages."""

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from pretask.cli import commands
from pretask.errors import Stopped, UserError, first_line, out_of_memory
from pretask.runtime import accounts

HELP = """\
pretask: self-supervised pretraining of vision encoders, and an honest score of what it bought.

Decide
  pretask compare --data PATH --labels L --out D  does pretraining pay on your images, and by which method?

Try
  pretask demo                                    pretrain, score and report on drawn objects: 4 minutes
  pretask list                                    the 32 methods by family

Look
  pretask preview METHOD --data PATH              draw the pretext task on your images
  pretask check METHOD --data PATH                sanity-check the method on your images: 1 minute
  pretask audit METHOD --data PATH                test for shortcut learning
  pretask ablate METHOD --without PART            see what happens without one part of a method: 3 minutes
  pretask verify METHOD                           is this implementation right? hold it against recorded runs

Train
  pretask pretrain METHOD --data PATH [--out RUN] pretrain an encoder on images without labels
  pretask pretrain --resume RUN                   resume after a crash, or train longer with --steps N
  pretask adapt timm:NAME --data PATH --labels L  continue published weights, and keep what is better

Evaluate
  pretask evaluate RUN --data LABELED             kNN, linear and few-shot accuracy, and baselines
  pretask transfer RUN --data PATH --task TASK    classification, detection, segmentation, depth, normals
  pretask study RUN --data LABELED                accuracy over images and labels, drift in fine-tuning
  pretask report RUN [--data LABELED]             one offline HTML page: scores, puzzles, neighbors, curves

Clean, label, predict, search
  pretask curate RUN --data PATH                  duplicates, leaks, outliers and unusable images; a list to keep
  pretask select RUN --data PATH --count N        which images to label first
  pretask label LIST --data PATH                  an offline page to label images by keyboard
  pretask predict RUN --labels FILE --data PATH   label all images from a few labels
  pretask index RUN --data PATH --out IDX         index images, then: pretask search IDX --query IMAGE

Use
  pretask embed RUN --data PATH                   write features to a table
  pretask export RUN --to timm|torch|onnx|hf      export the encoder
  pretask cluster RUN --data PATH --clusters K    sort images into clusters
  pretask colorize RUN --data PATH                colorize gray images with a colorization run

Make data
  pretask prepare PATH --out STORE                decode once, train faster
  pretask track CLIPS --out TRACKS                mine tracks from video clips, for video_triplet
  pretask render --scenes N --out FOLDER          render rooms with depth, normals and instances

pretask COMMAND --help lists the flags. METHOD is a name from the list, a recipe such as rotnet:paper, or
your own file ./my_puzzle.py. PATH is a folder, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name.
"""


def main(arguments: Sequence[str] | None = None, since: float | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 if `check` found a fault, 2 for a mistake of the user, 130 when interrupted, 143
    when a run was terminated.

    `since` is the start time of the process, if it runs only this command.
    """
    commands.began = time.monotonic() if since is None else since
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from pretask import __version__

        print(f"pretask {__version__}")
        return 0
    try:
        with accounts.collect() as opened:
            code = commands.verb(words[0])(words[1:]) or 0
        if opened:
            from pretask.runtime.console import say  # takes a while to import, and --help opens nothing

            for line in accounts.summary_lines(opened):
                say(line)
        sys.stdout.flush()
        return code
    except UserError as mistake:
        return exit_code(2, " ".join(str(mistake).splitlines()))
    except Stopped as stopped:
        from pretask.runtime.distributed import rank

        return exit_code(stopped.code, "" if rank() else str(stopped))
    except KeyboardInterrupt:
        return exit_code(130, "interrupted")
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
        return 0
    except (MemoryError, RuntimeError) as failure:
        if not out_of_memory(failure):
            raise
        return exit_code(
            2, f"out of memory ({failed_allocation(failure)}); give a smaller --batch, --size or --encoder"
        )
    except OSError as failure:  # a full disk, a file without permission to read or write
        where = f"{failure.filename}: " if failure.filename else ""
        return exit_code(2, f"{where}{(failure.strerror or str(failure)).lower()}")


def exit_code(code: int, why: str) -> int:
    """The exit code; the reason is printed on standard error, if there is one."""
    if why and sys.stderr is not None:
        with suppress(OSError):
            print(f"pretask: {why}", file=sys.stderr, flush=True)
    return code


def failed_allocation(failure: BaseException) -> str:
    """The size of the failed allocation, if PyTorch reports it, otherwise the message."""
    found = re.search(r"tried to allocate [\d.]+ \w+", str(failure), re.IGNORECASE)
    return found[0].lower() if found else first_line(failure)
