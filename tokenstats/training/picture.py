"""The course of a run as a picture beside its weights.

How it looks is known to :mod:`tokenstats.inspect.render`, which stands above training. It is looked up when a run has ended.
"""

from importlib import import_module
from pathlib import Path

PICTURE = "training.png"
"""Name of the file."""
_RENDERER = "tokenstats.inspect.render.figure_training"


def draw_run(folder: Path) -> None:
    """Draw what the history in a folder of weights tells."""
    import_module(_RENDERER).figure_of_run(folder).savefig(folder / PICTURE)
