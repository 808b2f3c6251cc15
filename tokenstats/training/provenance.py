"""Where trained weights and exported rows came from: the store, the mask and its rule, as one JSON object."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenstats import __version__
from tokenstats.store import Store
from tokenstats.store.parts import write_json
from tokenstats.training.rows import ChosenMask

RECORD = "tokenstats.json"
"""Name of the file with the record, beside the weights or the exported rows."""


def provenance(store: Store, mask: ChosenMask, *, rows: int, empty: int, kept: int) -> dict[str, Any]:
    """The record that goes with what was made of a store: ``rows`` of it, ``kept`` tokens in them, ``empty`` rows of none."""
    data, manifest = store.manifest.dataset, mask.manifest
    return {
        "tokenstats_version": __version__,
        "store_fingerprint": store.fingerprint,
        "dataset": {"source": without_folders(data.source), "fingerprint": data.fingerprint},
        "tokenizer_fingerprint": store.manifest.tokenizer.fingerprint,
        "template_fingerprint": store.manifest.template.fingerprint,
        "mask": mask.name,
        "mask_fingerprint": manifest.fingerprint if manifest else None,
        "rule": dict(manifest.rule) if manifest else {"keep": "all target tokens"},
        "rule_fingerprint": manifest.rule_fingerprint if manifest else None,
        "thresholds": dict(manifest.thresholds) if manifest else {},
        "scorings": dict(manifest.scorings) if manifest else {},
        "weighted": mask.weighted,
        "targets": store.manifest.targets,
        "rows": rows,
        "rows_with_nothing_kept": empty,
        "kept_tokens": kept,
    }


def joined_fingerprint(fingerprints: Sequence[str]) -> str:
    """One fingerprint as it is, several as one."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.blake2b(json.dumps(list(fingerprints)).encode(), digest_size=16).hexdigest()


def without_folders(source: str) -> str:
    """A Hub id or relative path as it is; of an absolute path the last name: what is given away tells no home folder."""
    return Path(source).name if Path(source).is_absolute() else source


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write where a model came from, beside its weights."""
    write_json(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False))
