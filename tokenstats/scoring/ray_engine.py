"""Parts as work for a Ray cluster: an actor holds the models and scores one part at a time, onto a disk that all nodes share.

An actor that dies, or whose node does, loses the part it was at: another one does it, and a new actor is asked for. Tokens
are written by the process that was started, which needs no GPU.
"""

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError, StoreError, TokenstatsError, one_line
from tokenstats.scoring.scorer import Facts, Request, Scorer
from tokenstats.scoring.workers import Progress
from tokenstats.store.parts import part_path, write_part

try:
    import ray
except ImportError:
    raise InputError("--engine ray needs the extra that brings it: pip install 'tokenstats[ray]'") from None

_PATIENCE = 120.0  # seconds until a run says that the cluster gives it nobody
_GLANCE = 5.0  # seconds without an answer until the actors are asked whether they are there
_REPLACEMENTS = 3  # new actors for each that was asked for, before a run gives up


class _PartScorer:
    """What an actor does. Errors of the user come back as a text: they are the same on every node."""

    def __init__(self, request: Request):
        self._request = request
        self._scorer: Scorer | None = None

    def start(self) -> Facts | str:
        try:
            self._scorer = Scorer(self._request)
            return self._scorer.facts
        except TokenstatsError as error:
            return str(error)

    def ping(self) -> None:
        """Actors answer in turn: an answer to this, and none to what was asked before, means that the latter was lost."""

    def score(self, store: str, name: str, index: int, settings: dict[str, Any]) -> tuple[int, int] | str:
        assert self._scorer is not None
        try:
            table, sums = self._scorer.score(Path(store), name, index)
            write_part(Path(store) / "stats" / name, index, table, settings, sums)
            return sums["tokens"], sums["padded"]
        except TokenstatsError as error:
            return str(error)


class Crew:
    """``workers`` actors of a cluster (None: one for each GPU, or else for each CPU), each with the models of a request."""

    def __init__(self, request: Request, workers: int | None, address: str | None):
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        gpus = int(ray.cluster_resources().get("GPU", 0)) if request.device != "cpu" else 0
        cpus = int(ray.cluster_resources().get("CPU", 1))
        count = workers or gpus or max(1, cpus)
        options = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        # no restarts by Ray: who scores which part is decided here, where what is on disk is known
        self._remote = ray.remote(max_restarts=0, **options)(_PartScorer)
        self._request = request
        self._spare = _REPLACEMENTS * count
        self._busy: dict[Any, tuple[Any, int | None]] = {}
        self._pings: dict[Any, Any] = {}
        self._idle: list[Any] = []
        for _ in range(count):
            self._hire()
        try:
            self.facts = self._first_facts()
        except BaseException:
            self.close()
            raise

    def _hire(self) -> None:
        actor = self._remote.remote(self._request)
        self._busy[actor.start.remote()] = (actor, None)

    def _first_facts(self) -> Facts:
        while True:
            result, _ = self._next()
            if isinstance(result, Facts):
                return result

    def _next(self) -> tuple[Any, int | None]:
        """Wait for an actor: its answer (None: it died, or its answer was lost) and the part it was at."""
        silent = 0.0
        while True:
            answers, _ = ray.wait(list(self._busy), num_returns=1, timeout=_GLANCE)
            if answers:
                return self._answer_of(answers[0])
            silent += _GLANCE
            if silent - _GLANCE < _PATIENCE <= silent and all(index is None for _, index in self._busy.values()):
                free = ray.available_resources()
                print(f"warning: no worker in {_PATIENCE:.0f} s; the cluster has {free} free", file=sys.stderr)
            for task, (actor, _) in self._busy.items():
                if task not in self._pings:
                    self._pings[task] = actor.ping.remote()
                if ray.wait([self._pings[task]], timeout=0)[0]:
                    return self._answer_of(task, None if ray.wait([task], timeout=1)[0] else self._pings[task])

    def _answer_of(self, task: Any, ping: Any = None) -> tuple[Any, int | None]:
        """What an actor said; ``ping``: where it said nothing of the task, but answered, or failed to answer, this."""
        actor, index = self._busy.pop(task)
        self._pings.pop(task, None)
        try:
            result = ray.get(task if ping is None else ping)
        except ray.exceptions.RayActorError as error:
            if self._spare == 0:
                raise StoreError(f"workers of the cluster die again and again ({one_line(error, 150)}); run again") from None
            self._spare -= 1
            ray.kill(actor)  # it may only be out of reach
            print("warning: a worker died; another one takes its part", file=sys.stderr)
            self._hire()
            return None, index
        if isinstance(result, str):
            raise InputError(result)
        if ping is not None and index is None:  # what its models are was lost: let it load them again
            self._busy[actor.start.remote()] = (actor, None)
        else:
            self._idle.append(actor)
        return result, index

    def score(self, store: Path, name: str, parts: Iterator[int], settings: dict[str, Any], progress: Progress) -> set[int]:
        """Score parts as they come. Returns which."""
        again: deque[int] = deque()
        made: set[int] = set()
        more = True
        while True:
            while self._idle and (again or more):
                index = again.popleft() if again else next(parts, None)
                if index is None:
                    more = False
                    break
                actor = self._idle.pop()
                self._busy[actor.score.remote(str(store.resolve()), name, index, settings)] = (actor, index)
            # whoever is still starting then is not waited for: the cluster may never have room for another one
            if not more and not again and all(index is None for _, index in self._busy.values()):
                return made
            result, index = self._next()
            if isinstance(result, tuple) and index is not None:
                progress.advance(*result)
                made.add(index)
            elif index is not None and not part_path(store / "stats" / name, index).exists():
                again.append(index)

    def close(self) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)
