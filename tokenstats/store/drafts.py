"""What is being written: files and folders that lie beside their place under a temporary name until they are whole.

    with whole_file(path) as file: ...                          # there, and flushed, when the block ends; or not at all
    with draft_of(folder) as draft: ...; put_in_place(draft, folder)

Temporary names begin with ``.writing-``. A block that fails takes its own away; a process that is interrupted takes away all of
them, in whatever thread (:func:`abandon`); what a killed one leaves is cleared by the next that writes to the same place.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokenstats.errors import InputError, StoreError

TEMPORARY = ".writing-"
_FORMER = ".former-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)

_lock = threading.RLock()  # what is created under it is known to abandon(); its own thread may be in here when a signal comes
_unfinished: set[Path] = set()
_abandoned = threading.Event()


def abandon() -> None:
    """The process is about to end: remove all that it is writing, and let nothing new begin.

    Threads that are at work need not be waited for: a file that is gone can no longer be renamed to its place.
    """
    with _lock:
        _abandoned.set()
        for path in sorted(_unfinished, key=lambda path: path.is_dir()):  # files first: they move inside folders
            remove(path)


def is_abandoned() -> bool:
    """Is the process about to end?"""
    return _abandoned.is_set()


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # it may lie where nothing can lie
            path.unlink()


def _begin() -> None:
    if _abandoned.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file that appears as ``target``, flushed to the disk, when the block ends, or not at all.

    Every attempt has a name of its own: two workers never write to one file, and a rename decides. Raises StoreError where the
    disk refuses.
    """
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{target.name}")
    try:
        with _lock:
            _begin()
            target.parent.mkdir(parents=True, exist_ok=True)
            _unfinished.add(temporary)
            file = open(temporary, "wb")  # noqa: SIM115 (closed below, outside the lock)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        flush_folder(target.parent)
    except OSError as error:
        remove(temporary)
        if is_abandoned():
            raise KeyboardInterrupt from None
        raise StoreError(f"cannot write {target}: {error.strerror or error}; free some space or mend its rights") from error
    except BaseException:
        remove(temporary)
        raise
    finally:
        _unfinished.discard(temporary)


@contextlib.contextmanager
def draft_of(place: Path) -> Iterator[Path]:
    """A new folder beside ``place``, to be filled and then :func:`put_in_place`. When the block ends, it is gone.

    What killed runs left there is cleared first. A draft belongs to a living process for as long as that holds its lock.
    """
    _clear(place)
    draft = place.with_name(f"{TEMPORARY}{place.name}-{uuid.uuid4().hex[:8]}")
    with _lock:
        _begin()
        draft.mkdir(parents=True)
        _unfinished.add(draft)
        handle = os.open(draft, os.O_RDONLY)
    try:
        _locked(handle)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _unfinished.discard(draft)
        os.close(handle)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A folder that this process alone writes to while the block lasts; made where it is not there.

    Raises InputError where another process has it. A process that ends, however it does, gives it back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _locked(handle):
            raise InputError(f"another run is writing to {folder}; choose another folder, or wait until it has ended")
        yield
    finally:
        os.close(handle)


def put_in_place(draft: Path, place: Path) -> None:
    """Move a finished draft to its place, which may hold a former folder: whoever looks meets the one or the other.

    Linux swaps the two in one step. Where the system or the file system cannot, the former folder moves aside first: readers
    that ask :func:`places_of` find it there, and a run that is killed in between leaves it to them and to the next run.
    """
    try:
        os.replace(draft, place)  # nothing there, or an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not swap(draft, place):
            _replace_in_two_steps(draft, place)
    flush_folder(place.parent)


def places_of(folder: Path) -> tuple[Path, ...]:
    """Where to look for a folder that may just be replaced, in this order: it may have come back after the second look."""
    return folder, _former_of(folder), folder


def name_of(folder: Path) -> str:
    """The name that a folder has, or had before it was moved aside."""
    return folder.name.removeprefix(_FORMER)


def swap(one: Path, two: Path) -> bool:
    """Let two folders change places in one step. False where that is not to be had: then nothing has changed."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE) == 0


def flush_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_in_two_steps(draft: Path, place: Path) -> None:
    former = _former_of(place)
    shutil.rmtree(former, ignore_errors=True)
    os.replace(place, former)
    try:
        os.replace(draft, place)
    except BaseException:
        os.replace(former, place)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _clear(place: Path) -> None:
    """Take up what killed runs left: a former folder goes back to its place, or goes if that is taken; dead drafts go."""
    former = _former_of(place)
    if former.is_dir() and not place.exists():
        with contextlib.suppress(FileNotFoundError):  # another run did it
            os.replace(former, place)
    shutil.rmtree(former, ignore_errors=True)
    for draft in place.parent.glob(f"{TEMPORARY}{glob.escape(place.name)}-{'[0-9a-f]' * 8}"):
        with contextlib.suppress(OSError):
            handle = os.open(draft, os.O_RDONLY)
            if _locked(handle):
                shutil.rmtree(draft, ignore_errors=True)
            os.close(handle)


def _locked(handle: int) -> bool:
    """Take a folder's lock; it goes with the process. False where another holds it; a disk without locks has no other."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _former_of(place: Path) -> Path:
    return place.with_name(f"{_FORMER}{place.name}")
