"""Lightning Fabric, which is slow to import.

Where torchmetrics is installed, Lightning imports it only to compare its version, and torchmetrics imports torchvision and
transformers: about five seconds per process. Here it is hidden during the import. Only Lightning's detection of loss spikes, which
pretask does not use, needs it.
"""

import sys
from typing import Any

modules: dict[str, Any] = sys.modules
hidden = "torchmetrics" not in modules
if hidden:
    modules["torchmetrics"] = None  # makes its import fail
try:
    from lightning_fabric import Fabric as Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy as DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy as ModelParallelStrategy
finally:
    if hidden:
        del modules["torchmetrics"]
