"""Ask every check that applies."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from tokenstats.inspect.audit import mask_checks, store_checks
from tokenstats.inspect.audit.checks import Case, Check, Finding, Made

CHECKS = {c.name: c for module in (store_checks, mask_checks) for c in vars(module).values() if isinstance(c, Check)}
"""Every check by its name, in the order of the audit."""

_OF_SCORINGS = [c for c in CHECKS.values() if c.made in (Made.OF_SCORING, Made.OF_KL)]


def run_checks(case: Case) -> Iterator[Finding]:
    """All checks that apply; those of a scoring once for each scoring of the store."""
    for one in CHECKS.values():
        if one not in _OF_SCORINGS:
            yield from _asked([one], case)
        elif one is _OF_SCORINGS[0]:  # all of one scoring, then all of the next
            case.store.scorings.check_all_listed()
            for scoring in case.store.scorings.values():
                yield from _asked(_OF_SCORINGS, replace(case, about=scoring.name, of_scoring=scoring.manifest))


def _asked(checks: Sequence[Check], case: Case) -> Iterator[Finding]:
    for one in checks:
        if case.applies(one.made):
            yield Finding(one.name, **asdict(one.ask(case)), about=case.about)
