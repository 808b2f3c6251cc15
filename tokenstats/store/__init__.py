"""The disk: parts, manifests, and the store that joins them. No torch."""

from tokenstats.store.store import Mask, Scoring, Store, check_name, open_store

__all__ = ["Mask", "Scoring", "Store", "check_name", "open_store"]
