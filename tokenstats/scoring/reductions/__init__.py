"""Logits or hidden states become the columns of a scoring, in four ways that agree."""
