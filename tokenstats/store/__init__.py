"""The disk: parts, manifests, and the store that joins them. No torch."""

from tokenstats.store.store import Store, check_name

__all__ = ["Store", "check_name"]
