"""Everything becomes visible: tokens in the terminal and on a page, audits, reports, previews of rules.

    from tokenstats.inspect import audit, report

Loads neither torch nor transformers; matplotlib only for a report.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Audit",
    "Decoder",
    "Gate",
    "Preview",
    "app_command",
    "audit",
    "open_preview",
    "plain_sequence",
    "render_audit",
    "render_comparison",
    "render_sequence",
    "report",
]

if TYPE_CHECKING:
    from tokenstats.inspect.audit_view import render_audit
    from tokenstats.inspect.audits import Audit, audit
    from tokenstats.inspect.compare_view import render_comparison
    from tokenstats.inspect.gate import Gate
    from tokenstats.inspect.launch import app_command
    from tokenstats.inspect.preview import Preview, open_preview
    from tokenstats.inspect.reports import report
    from tokenstats.inspect.spans import Decoder
    from tokenstats.inspect.terminal import plain_sequence, render_sequence

_HOMES = {
    "Audit": "audits",
    "Decoder": "spans",
    "Gate": "gate",
    "Preview": "preview",
    "app_command": "launch",
    "audit": "audits",
    "open_preview": "preview",
    "plain_sequence": "terminal",
    "render_audit": "audit_view",
    "render_comparison": "compare_view",
    "render_sequence": "terminal",
    "report": "reports",
}


def __getattr__(name: str) -> Any:
    # each command loads only what it uses
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
