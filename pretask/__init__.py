"""pretask: self-supervised visual learning, from a folder of unlabeled images to a trusted score.

The verbs of the command line, from Python: `pretrain`, `compare`, `adapt`, `verify`, `ablate`, `evaluate`,
`study`, `audit`, `embed`, `report`, `transfer`, `curate`, `select`, `label`, `predict`, `index`, `search`, `load`;
`Reading`, how images are read; and `PretaskFeatures`, a scikit-learn transformer. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretask.api import embed, pretrain
    from pretask.estimator import PretaskFeatures
    from pretask.reading import Reading
    from pretask.reports.report import report
    from pretask.workflows.ablate import ablate
    from pretask.workflows.adapt import adapt
    from pretask.workflows.audit import audit
    from pretask.workflows.compare import compare
    from pretask.workflows.curate import curate
    from pretask.workflows.evaluate import evaluate
    from pretask.workflows.index import index, search
    from pretask.workflows.label import label
    from pretask.workflows.predict import predict
    from pretask.workflows.select import select
    from pretask.workflows.study import study
    from pretask.workflows.subject import load
    from pretask.workflows.transfer import transfer
    from pretask.workflows.verify import verify

__version__ = version("pretask")
__all__ = [
    "PretaskFeatures",
    "Reading",
    "__version__",
    "ablate",
    "adapt",
    "audit",
    "compare",
    "curate",
    "embed",
    "evaluate",
    "index",
    "label",
    "load",
    "predict",
    "pretrain",
    "report",
    "search",
    "select",
    "study",
    "transfer",
    "verify",
]

_HOMES = {
    "pretrain": "pretask.api",
    "evaluate": "pretask.workflows.evaluate",
    "study": "pretask.workflows.study",
    "adapt": "pretask.workflows.adapt",
    "ablate": "pretask.workflows.ablate",
    "audit": "pretask.workflows.audit",
    "compare": "pretask.workflows.compare",
    "embed": "pretask.api",
    "report": "pretask.reports.report",
    "load": "pretask.workflows.subject",
    "transfer": "pretask.workflows.transfer",
    "verify": "pretask.workflows.verify",
    "curate": "pretask.workflows.curate",
    "index": "pretask.workflows.index",
    "label": "pretask.workflows.label",
    "predict": "pretask.workflows.predict",
    "search": "pretask.workflows.index",
    "select": "pretask.workflows.select",
    "PretaskFeatures": "pretask.estimator",
    "Reading": "pretask.reading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pretask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
