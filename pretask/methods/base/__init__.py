"""Shared by all methods: the contract, and augmented views."""
