"""The commands, one file each; the file name is the command.

The `run(words)` of a command parses its flags, calls the library and prints what was written and what to do next. It
returns an exit code, or None for success.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable

from pretask.errors import UserError

began = 0.0
"""time.monotonic() at the start of the command; a time budget starts here"""


def names() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__)]


def verb(name: str) -> Callable[[list[str]], int | None]:
    """The function of a command. Raises UserError, with similar names, if there is none of that name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"commands: {', '.join(names())}"
        raise UserError(f"no command {name!r}; {hint}")
    return importlib.import_module(f"{__name__}.{name}").run
