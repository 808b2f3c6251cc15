"""The stores below a folder, and other folders that are known by what lies in them."""

from collections.abc import Callable
from pathlib import Path

from tokenstats.store.manifests import MANIFEST

_DEPTH = 3
_MOST_FOUND = 200


def find_stores(folder: str | Path) -> list[Path]:
    """Stores at a folder or at most three levels below it, by path."""
    return find_below(folder, lambda path: (path / MANIFEST).is_file() and (path / "tokens").is_dir())


def find_below(folder: str | Path, is_one: Callable[[Path], bool]) -> list[Path]:
    """Folders that are what is sought, at a folder or at most three levels below it, by path; below one, nothing is sought.

    Links and hidden folders are left out, and of very many only the nearest are found.
    """
    level, found = [Path(folder)], []
    for _ in range(_DEPTH + 1):
        following: list[Path] = []
        for path in level:
            if is_one(path):
                found.append(path)
            else:
                following += _folders_in(path)
        level = following
        if len(found) >= _MOST_FOUND:
            break
    return sorted(found)[:_MOST_FOUND]


def _folders_in(path: Path) -> list[Path]:
    try:
        return [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and not p.is_symlink()]
    except OSError:
        return []
