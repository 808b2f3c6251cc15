"""Tokens become statistics: every column of the contract, exact, from one or two models."""
