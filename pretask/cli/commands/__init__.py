"""The verbs of the command line, one file each, named as on the command line: the folder is their registry.

A verb's `run(words)` reads its flags, calls the library, and says what was made and what comes next. It returns
an exit code, or nothing for success.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable

from pretask.errors import UserError


def names() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__)]


def verb(name: str) -> Callable[[list[str]], int | None]:
    """The function behind a verb; an unknown one is a UserError with the nearest names."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise UserError(f"no verb is called {name!r}; {hint}")
    return importlib.import_module(f"{__name__}.{name}").run
