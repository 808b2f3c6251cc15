"""Tokens become statistics: every column of the contract, exact, from one or two models."""

from tokenstats.scoring.score import compute

__all__ = ["compute"]
