"""Everything becomes visible: tokens in the terminal and on a page, audits, reports, previews of rules.

    from tokenstats.inspect import audit, report

Loads neither torch nor transformers; matplotlib only for a report or a plot.
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
    "check_picture",
    "open_preview",
    "plain_sequence",
    "plot_sweep",
    "render_audit",
    "render_comparison",
    "render_sequence",
    "report",
    "sweep_table",
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
    from tokenstats.inspect.sweep_figure import check_picture, plot_sweep
    from tokenstats.inspect.sweep_view import sweep_table
    from tokenstats.inspect.terminal import plain_sequence, render_sequence

_HOMES = {
    "Audit": "audits",
    "Decoder": "spans",
    "Gate": "gate",
    "Preview": "preview",
    "app_command": "launch",
    "audit": "audits",
    "check_picture": "sweep_figure",
    "open_preview": "preview",
    "plain_sequence": "terminal",
    "plot_sweep": "sweep_figure",
    "render_audit": "audit_view",
    "render_comparison": "compare_view",
    "render_sequence": "terminal",
    "report": "reports",
    "sweep_table": "sweep_view",
}


def __getattr__(name: str) -> Any:
    # each command loads only what it uses
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
