"""What is on the disk."""

import json
from pathlib import Path


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store, manifests without their time of creation, and without the checksum that includes it."""
    files = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(content)
            del manifest["created"], manifest["checksum"]
            content = json.dumps(manifest).encode()
        files[str(path.relative_to(store))] = content
    return files
