"""Parts as work for a Ray cluster: an actor holds the models and scores one part at a time, onto a disk that all nodes share.

An actor that dies, or whose node does, loses the part it was at: another one does it, and a new actor is asked for. Tokens
are written by the process that was started, which needs no GPU.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tokenstats.errors import InputError, StoreError, TokenstatsError, TokenstatsWarning, argument, one_line
from tokenstats.options import refuse
from tokenstats.scoring.local_engine import write_scored
from tokenstats.scoring.options import RAY, EngineOptions, Request
from tokenstats.scoring.reference_pass import ReferenceInfo
from tokenstats.scoring.scorer import ModelInfo, Scorer
from tokenstats.scoring.workers import Progress
from tokenstats.store.parts import clear_leftovers, part_path

try:
    import ray
except ImportError:
    raise InputError(f"{argument('kind', RAY)} needs the extra that brings it: pip install 'tokenstats[ray]'") from None

_PATIENCE = 120.0  # seconds until a run says that the cluster gives it nobody
_GLANCE = 5.0  # seconds without an answer until the actors are asked whether they are there
_REPLACEMENTS = 3  # new actors for each that was asked for, before a run gives up
Answer = TypeVar("Answer")


class _PartScorer:
    """What an actor does. Errors that the user can mend come back as answers: they are the same on every node."""

    def __init__(self, request: Request):
        self._request = request
        self._scorer: Scorer | None = None

    def ping(self) -> None:
        """Actors answer in turn: an answer to this, and none to what was asked before, means that the latter was lost."""

    def load_reference(self) -> ReferenceInfo | TokenstatsError:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        return self._answer(lambda scorer: scorer.load_reference())

    def keep_states(self, store: Path, name: str, index: int) -> tuple[int, int] | TokenstatsError:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        return self._answer(lambda scorer: scorer.keep_states(store, name, index))

    def load(self) -> ModelInfo | TokenstatsError:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        return self._answer(lambda scorer: scorer.load())

    def score(self, store: Path, name: str, index: int, settings: dict[str, Any]) -> tuple[int, int] | TokenstatsError:
        """See :class:`~tokenstats.scoring.engines.Engine`."""

        def score(scorer: Scorer) -> tuple[int, int]:
            table, sums = scorer.score(store, name, index)
            write_scored(store / "stats" / name, index, table, settings, sums)
            return sums["tokens"], sums["padded"]

        return self._answer(score)

    def _answer(self, ask: Callable[[Scorer], Answer]) -> Answer | TokenstatsError:
        try:
            self._scorer = self._scorer or Scorer(self._request)
            return ask(self._scorer)
        except TokenstatsError as error:
            return error


def _connect(address: str | None) -> None:
    """To the address given, else to that of ``RAY_ADDRESS``, as a Ray job has it, else to a cluster of this machine's own.

    Never to whatever a file of Ray's temporary folder names: the cluster that wrote it may be long dead, and is waited for.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False)
    except Exception as error:  # Ray raises many kinds here
        place = f"answers at {one_line(address, 80)}" if address else "can be started here"
        raise InputError(
            f"no Ray cluster {place} ({one_line(error, 150)}); expected the address of one that 'ray status' knows, or none"
        ) from None


class RayEngine:
    """Actors of a cluster, by default one for each GPU or else for each CPU, each with the models of a request.

    Whoever makes one closes it, whatever happens: actors hold GPUs until they are let go.
    """

    def __init__(self, request: Request, options: EngineOptions):
        self._request = request
        self._busy: dict[Any, tuple[Any, int | None]] = {}
        self._pings: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._actors: list[Any] = []  # all that are to be let go
        self._begin = "load"  # what an actor that is new does first
        self._connected = not ray.is_initialized()  # by this run, and for it only
        if not self._connected:
            refuse(options, "ray_address", because="this process is connected to a cluster already; leave it out")
        if self._connected:
            _connect(options.ray_address)
        try:
            gpus = int(ray.cluster_resources().get("GPU", 0)) if request.options.device != "cpu" else 0
            cpus = int(ray.cluster_resources().get("CPU", 1))
        except BaseException:
            self.close()
            raise
        self._count = options.workers or gpus or max(1, cpus)
        self._spare = _REPLACEMENTS * self._count
        # no restarts by Ray: who scores which part is decided here, where what is on disk is known
        self._remote = ray.remote(max_restarts=0, **({"num_gpus": 1} if gpus else {"num_cpus": 1}))(_PartScorer)

    def load_reference(self) -> ReferenceInfo:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        return self._load("load_reference")

    def load(self) -> ModelInfo:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        return self._load("load")

    def _load(self, method: str) -> Any:
        """Let every actor load the models of a pass. Returns what the first one found, while others may still be at it."""
        self._begin = method
        for actor, _ in self._busy.values():  # that did not get ready for the pass before, or found no room in the cluster
            self._let_go(actor)
        ready, self._idle = self._idle, []
        self._busy, self._pings = {}, {}
        for actor in ready:
            self._start(actor)
        for _ in range(self._count - len(ready)):
            self._start_actors()
        while (found := self._next()[0]) is None:
            pass
        return found

    def _start_actors(self) -> None:
        self._actors.append(self._remote.remote(self._request))
        self._start(self._actors[-1])

    def _let_go(self, actor: Any) -> None:
        self._actors.remove(actor)
        ray.kill(actor)

    def _start(self, actor: Any) -> None:
        self._busy[getattr(actor, self._begin).remote()] = (actor, None)

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
                text = f"no worker in {_PATIENCE:.0f} s; the cluster has {free} free"
                warnings.warn(text, TokenstatsWarning, stacklevel=2)
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
            self._let_go(actor)  # it may only be out of reach
            warnings.warn("a worker died; another one takes its part", TokenstatsWarning, stacklevel=2)
            self._start_actors()
            return None, index
        if isinstance(result, TokenstatsError):
            raise result
        if ping is not None and index is None:  # what its models are was lost: let it load them again
            self._start(actor)
        else:
            self._idle.append(actor)
        return result, index

    def keep_states(self, store: Path, name: str, parts: Iterator[int], progress: Progress) -> None:
        """See :class:`~tokenstats.scoring.engines.Engine`."""
        place = store.resolve()
        # whether states that are there are whole, and of these tokens, is for an actor to see
        self._share(parts, lambda actor, index: actor.keep_states.remote(place, name, index), lambda _: False, progress)

    def score(self, store: Path, name: str, parts: Iterator[int], settings: dict[str, Any], progress: Progress) -> set[int]:
        """Score parts as they come. Returns which."""
        place = store.resolve()

        def ask(actor: Any, index: int) -> Any:
            return actor.score.remote(place, name, index, settings)

        def is_done(index: int) -> bool:
            return part_path(place / "stats" / name, index).exists()

        made = self._share(parts, ask, is_done, progress)
        clear_leftovers(place / "stats" / name, is_done)  # of actors that were killed while they wrote
        return made

    def _share(
        self, parts: Iterator[int], ask: Callable[[Any, int], Any], is_done: Callable[[int], bool], progress: Progress
    ) -> set[int]:
        """Ask actors for parts, as those come, until all are done; what was lost is asked for again. Returns those done."""
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
                self._busy[ask(actor, index)] = (actor, index)
            # whoever is still starting then is not waited for: the cluster may never have room for another one
            if not more and not again and all(index is None for _, index in self._busy.values()):
                return made
            result, index = self._next()
            if isinstance(result, tuple) and index is not None:
                progress.advance(*result)
                made.add(index)
            elif index is not None and not is_done(index):
                again.append(index)

    def close(self) -> None:
        """Let all actors go, and the cluster too where this run was the one that reached for it."""
        try:
            for actor in self._actors:
                ray.kill(actor)
        finally:
            if self._connected:
                ray.shutdown()
