"""A complete run card without a run."""

import json
from dataclasses import asdict
from typing import Any

from pretask import methods
from pretask.config import RunConfig
from pretask.data.ledger import Ledger
from pretask.runtime.formats import FORMAT, KEY


def card(**more: Any) -> dict[str, Any]:
    """The card of one step of rotnet on 8 synthetic images of 16 px, with the given fields replaced."""
    config, settings = methods.recipe("rotnet")(), RunConfig("synthetic:8:16")
    fields = {
        KEY: FORMAT,
        "method": "rotnet",
        "recipe": "default",
        "config": asdict(config),
        "train": asdict(config.train),
        "settings": asdict(settings),
        "encoder": "resnet_small",
        "data": settings.data,
        "n": 8,
        "records": Ledger().card(),
        "channels": 3,
        "size": 16,
        "range": {},
        "seed": 0,
        "plan": [[0, 1]],
        "steps": 1,
        "epochs": 1,
        "precision": "32-true",
        "device": "cpu",
        "instructions": None,
        "processes": 1,
        "threads": 1,
        "versions": {},
        "commit": None,
        "command": None,
        "started": "2026-01-01T00:00:00+00:00",
        "fingerprint": None,
        "monitor_fingerprint": None,
        "loaded": None,
    }
    return json.loads(json.dumps(fields | more))
