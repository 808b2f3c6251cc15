"""The words with which an expression of the rule language can go on, on one store."""

from tokenstats.masking.language.builtins import DERIVED, SCOPES, STATISTIC_COLUMNS, TOKEN_COLUMNS, WORDS
from tokenstats.store import Store


def completions(store: Store, scoring: str | None) -> list[str]:
    """Columns that there are, functions with their bracket, and ``scoring.column`` for the store's other scorings.

    Args:
        store: The store.
        scoring: Which scoring bare column names mean; None for none.
    """
    bare = _columns_of(store, scoring) if scoring is not None else []
    others = [name for name in store.scorings if name != scoring and name.isidentifier()]
    named = [f"{name}.{column}" for name in others for column in _columns_of(store, name)]
    scopes = [*(f"per={scope}" for scope in SCOPES), "among="]
    return [*bare, *TOKEN_COLUMNS, *(f"{word}(" for word in WORDS), *named, *scopes]


def _columns_of(store: Store, scoring: str) -> list[str]:
    """The statistics of a scoring that rules can read, stored or computed."""
    there = set(store.scorings[scoring].manifest.columns)
    return [name for name in STATISTIC_COLUMNS if DERIVED.get(name, name) in there]
