"""pretask: self-supervised visual learning, from a folder of unlabelled images to a trusted score.

The verbs of the command line, from Python: `pretrain`, `evaluate`, `study`, `audit`, `embed`, `report`,
`transfer`, `load`; and
`PretaskFeatures`, a scikit-learn transformer. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretask.api import embed, pretrain
    from pretask.auditing import audit
    from pretask.evaluating import evaluate
    from pretask.features import PretaskFeatures
    from pretask.reports import report
    from pretask.run import load
    from pretask.studying import study
    from pretask.transferring import transfer

__version__ = version("pretask")
__all__ = [
    "PretaskFeatures",
    "__version__",
    "audit",
    "embed",
    "evaluate",
    "load",
    "pretrain",
    "report",
    "study",
    "transfer",
]

_HOMES = {
    "pretrain": "pretask.api",
    "evaluate": "pretask.evaluating",
    "study": "pretask.studying",
    "audit": "pretask.auditing",
    "embed": "pretask.api",
    "report": "pretask.reports",
    "load": "pretask.run",
    "transfer": "pretask.transferring",
    "PretaskFeatures": "pretask.features",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pretask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
