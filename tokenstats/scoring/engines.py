"""Where parts are worked on: in this process, or by actors of a cluster."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tokenstats.scoring.local_engine import LocalEngine
from tokenstats.scoring.options import LOCAL, EngineOptions, Request
from tokenstats.scoring.reference_pass import ReferenceInfo
from tokenstats.scoring.scorer import ModelInfo
from tokenstats.scoring.workers import Progress, Worker


class Engine(Protocol):
    """Scores the parts that it is given. Closed whatever happens."""

    def load_reference(self) -> ReferenceInfo:
        """Load the reference, for the first of two passes."""
        ...

    def keep_states(self, store: Path, name: str, parts: Iterator[int], progress: Progress) -> None:
        """Keep the reference's hidden states of some parts on disk."""
        ...

    def load(self) -> ModelInfo:
        """Load the models, or the scored model after the first pass."""
        ...

    def score(self, store: Path, name: str, parts: Iterator[int], settings: dict[str, Any], progress: Progress) -> set[int]:
        """Score some parts; returns those that were made."""
        ...

    def close(self) -> None:
        """Let go of threads or actors."""
        ...


def start_engine(request: Request, worker: Worker, options: EngineOptions) -> Engine:
    """Raises InputError where the cluster cannot be had."""
    if options.kind == LOCAL:
        return LocalEngine(request, worker)
    from tokenstats.scoring.ray_engine import RayEngine

    here = threading.current_thread() is threading.main_thread()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        return RayEngine(request, options)
    finally:
        if here and on_terminate is not None:
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init puts its own there, which ends with another status
