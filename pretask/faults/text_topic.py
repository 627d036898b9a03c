"""Faults of TextTopicNet."""

import torch.nn.functional as F

from pretask.faults import Fault


def shifted(original):
    def pretext(self, batch, rng):
        kept, self.topic_probs = self.topic_probs, self.topic_probs.roll(-1, 0)
        made = original(self, batch, rng)
        self.topic_probs = kept
        return made

    return pretext


FAULTS = (
    Fault(
        "mean over topics",
        "The cross-entropy is averaged over topics, not summed.",
        patches={"cross_entropy": lambda _: F.binary_cross_entropy_with_logits},
    ),
    Fault(
        "texts off by one",
        "Every image has the text of the next one.",
        patches={"TextTopic.pretext": shifted},
    ),
)
