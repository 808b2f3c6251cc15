"""Rows worth looking at: counts of every row, and where a token stands, computed part by part and kept."""
