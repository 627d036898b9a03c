"""Batched image operations, on the device."""
