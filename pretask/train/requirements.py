"""Minimum requirements of a method on images and batch, checked once before training."""

import copy

import torch

from pretask.data import loader
from pretask.encoders import Encoder
from pretask.methods import Method, MethodConfig, Minimum, name_of
from pretask.types import Source, UserError


def check(config: MethodConfig, encoder: Encoder, source: Source, batch: int | None = None) -> None:
    """UserError, with the smallest number that works, if images are too small or too few, or the batch is too small.

    `batch` is the global batch size, which is what losses and batch norms use; None if nothing is trained.
    """
    name, side = name_of(config), config.smallest_side(encoder)
    if source.size < side.value:
        raise UserError(
            f"{name} takes images of {side.value} px or more, but those of {source.name} have {source.size} px; "
            f"{advice(f'give --size {side.value} or more', side)}"
        )
    at_once = config.smallest_batch() if batch is not None else Minimum(1)
    images = max(config.fewest_images(), at_once)
    if len(source) < images.value:
        raise UserError(
            f"{name} takes {images.value} images or more, and {source.name} has {len(source)}; "
            f"{advice('add images', images)}"
        )
    if batch is not None and batch < at_once.value:
        raise UserError(
            f"{name} takes batches of {at_once.value} images or more, not of {batch}; "
            f"{advice(f'give --batch {at_once.value} or more', at_once)}"
        )


def advice(first: str, least: Minimum) -> str:
    return f"{first}, {least.hint}" if least.hint else first


def check_norms(method: Method, source: Source) -> None:
    """UserError if a batch norm would get a single value per channel: one image in a layer with one position.

    This is tested on a copy of the method. Any other error with one image is reported where it occurs.
    """
    trial = copy.deepcopy(method).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            trial.loss(trial.puzzle(loader.sample(source, 1), 0, "trial"))
        except ValueError as wrong:
            if "more than 1 value per channel" in str(wrong):
                raise UserError(
                    f"{name_of(method)} takes batches of 2 images or more here, not of 1: a batch norm would get a "
                    "single value per channel; give --batch 2 or more"
                ) from None
        except Exception:  # a method may not work before `begin`
            return
