"""Processes of their own that begin with torch, transformers and matplotlib imported.

A new interpreter takes seconds to import them; the tests that kill processes, and the docs, start dozens. All are forked from
one server that has imported them once and done nothing else. To the caller a process is as one of ``subprocess.Popen``.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_context = get_context("forkserver")
_SLOW = (
    "tokenstats.cli",
    "tokenstats.computing",
    "tokenstats.training.trainer",
    "tokenstats.rounds.run",
    "tokenstats.inspect.report",
    "tokenstats.inspect.render.figure_training",
)
_context.set_forkserver_preload(_SLOW)


class Started:
    """A process that runs ``code``.

    Args:
        code: Python statements.
        words: Its ``sys.argv[1:]``.
        changes: To the environment.
        folder: Where it works.
    """

    def __init__(self, code: str, words: Sequence[object] = (), changes: Mapping[str, str] | None = None, folder: Path = ROOT):
        streams = tempfile.mkdtemp(prefix="started-")
        weakref.finalize(self, shutil.rmtree, streams, ignore_errors=True)
        self._out, self._err = Path(streams, "out"), Path(streams, "err")
        arguments = code, [str(word) for word in words], dict(changes or {}), str(folder), (str(self._out), str(self._err))
        self._process = _context.Process(target=_execute, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for the end; what was printed to stdout and stderr."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in (self._out, self._err))
        return out, err


def start_command(*words: object, folder: Path = ROOT, **changes: str) -> Started:
    """``tokenstats`` with ``words``, in a process of its own, of one thread."""
    return Started("from tokenstats.cli import main; main()", words, {"OMP_NUM_THREADS": "1"} | changes, folder)


def _execute(code: str, words: list[str], changes: dict[str, str], folder: str, streams: tuple[str, str]) -> None:
    for number, path in enumerate(streams, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ |= changes
    os.chdir(folder)
    sys.argv = ["tokenstats", *words]
    if "OMP_NUM_THREADS" in changes:  # it was read when torch was imported
        import torch

        torch.set_num_threads(int(changes["OMP_NUM_THREADS"]))
    exec(compile(code, "<started>", "exec"), {"__name__": "__main__"})
