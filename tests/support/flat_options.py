"""Options of all groups in one mapping, as the command line has them: for tests that say them once for both, or vary them."""

from typing import Any

from tokenstats.corpus.options import CorpusOptions
from tokenstats.options import from_mapping, names_of
from tokenstats.scoring.options import EngineOptions, ScoringOptions

GROUPS = {"corpus": CorpusOptions, "scoring": ScoringOptions, "engine": EngineOptions}


def grouped(**flat: Any) -> dict[str, Any]:
    """The arguments of ``compute``: ``grouped(model="m", topk=3)`` is ``{"model": "m", "scoring": ScoringOptions(topk=3)}``."""
    arguments = dict(flat)
    for group, kind in GROUPS.items():
        if values := {name: arguments.pop(name) for name in names_of(kind) if name in arguments}:
            arguments[group] = from_mapping(kind, values)
    return arguments
