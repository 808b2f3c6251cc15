"""An audit as a gate: which verdicts stop a pipeline.

Gate.parse("problem").failing(findings)                    # by level: this verdict, or a graver one
Gate.parse("nothing_kept,kl,problem").failing(findings)    # these checks, unless they are ok; and every problem
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenstats.errors import InputError, argument, nearest, one_line
from tokenstats.inspect.audit.checks import OK, VERDICTS, Finding
from tokenstats.inspect.audit.run_checks import CHECKS

LEVELS = VERDICTS[1:]


@dataclass(frozen=True)
class Gate:
    """Which findings fail.

    Attributes:
        level: This verdict and graver ones fail; None: none.
        checks: These fail unless their verdict is ok.
    """

    level: str | None = None
    checks: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """A level, checks, or both, separated by commas; of several levels the mildest. InputError for anything else."""
        words = [word.strip() for word in text.split(",")]
        known = [*LEVELS, *CHECKS]
        for word in words:
            if word not in known:
                raise InputError(
                    f"{argument('fail_on')} got {one_line(word, 60)!r}{nearest(word, known)}; expected a level "
                    f"({', '.join(LEVELS)}) or checks ({', '.join(CHECKS)})"
                )
        level = next((level for level in LEVELS if level in words), None)
        return cls(level, tuple(dict.fromkeys(word for word in words if word in CHECKS)))

    def failing(self, findings: Sequence[Finding]) -> list[Finding]:
        """The findings that fail. Raises InputError for a check that was not made: a gate that looks at nothing is open."""
        made = {finding.name for finding in findings}
        for name in self.checks:
            if name not in made:
                raise InputError(
                    f"{argument('fail_on', name)}: this check is made {CHECKS[name].made}, and there is none here; leave it out"
                )
        return [finding for finding in findings if self._fails(finding)]

    def _fails(self, finding: Finding) -> bool:
        if self.level is not None and VERDICTS.index(finding.verdict) >= VERDICTS.index(self.level):
            return True
        return finding.name in self.checks and finding.verdict != OK
