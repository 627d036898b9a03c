"""python -m pretask"""

import os
import sys
from collections.abc import Sequence

from pretask.cli import main


def run(arguments: Sequence[str] | None = None) -> None:
    code = main(arguments)
    if "torch" in sys.modules:
        from pretask import distributed

        if distributed.world() > 1:
            # an orderly end would be aborted by threads that are not done with the other processes
            if not code:
                distributed.leave()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
