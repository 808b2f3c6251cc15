"""The stores below a folder."""

from pathlib import Path

from tokenstats.store.manifests import MANIFEST

_DEPTH = 3
_MOST_STORES = 200


def find_stores(folder: str | Path) -> list[Path]:
    """Stores at a folder or at most three levels below it, by path."""
    level, found = [Path(folder)], []
    for _ in range(_DEPTH + 1):
        following: list[Path] = []
        for path in level:
            if (path / MANIFEST).is_file() and (path / "tokens").is_dir():
                found.append(path)
            else:
                following += _folders_in(path)
        level = following
        if len(found) >= _MOST_STORES:
            break
    return sorted(found)[:_MOST_STORES]


def _folders_in(path: Path) -> list[Path]:
    try:
        return [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and not p.is_symlink()]
    except OSError:
        return []
