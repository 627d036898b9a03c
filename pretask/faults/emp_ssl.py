"""Faults of EMP-SSL."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "coding-rate",
        "Nothing spreads the embeddings.",
        patches={"total_coding_rate": lambda _: lambda z, epsilon: z.new_zeros(z.shape[:-2])},
        named_by="monitor",
    ),
    Fault(
        "unit-length embeddings",
        "The coding rate is that of embeddings twice as long.",
        patches={"total_coding_rate": lambda own: lambda z, epsilon: own(2 * z, epsilon)},
    ),
)
