"""The disk: parts, manifests, and the store that joins them. No torch."""

from tokenstats.store.families import Mask, Scoring, check_name
from tokenstats.store.store import Store, open_store

__all__ = ["Mask", "Scoring", "Store", "check_name", "open_store"]
