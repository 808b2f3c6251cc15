"""What a model argument points at: a local folder, an adapter folder, or a Hub id."""

import json
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError, argument, one_line


def local_folder(source: str) -> Path | None:
    """The folder a model argument names, or None for a Hub id. Raises InputError for a path that is no model folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not is_adapter(path):
            raise InputError(f"{source} is not a model folder: it has no config.json and no adapter_config.json")
        return path
    if path.exists():
        raise InputError(f"{source} is a file; expected a model folder or a Hub id")
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise InputError(f"no model folder at {source}: expected a folder with a config.json, an adapter folder, or a Hub id")
    return None


def wants_own_code(error: Exception) -> bool:
    """Did transformers refuse to run code that a model brings with it?"""
    return "trust_remote_code" in str(error)


OWN_CODE = (
    f"brings code of its own, which is not run unasked; read it, then allow it with {argument('trust_remote_code', True)}"
)


def is_adapter(folder: Path) -> bool:
    """Does a folder hold an adapter of peft?"""
    return (folder / "adapter_config.json").exists()


def adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder names, or None where the folder is no adapter."""
    if not is_adapter(folder):
        return None
    base = _adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{folder}/adapter_config.json names no base model: expected base_model_name_or_path")
    try:
        local_folder(base)
    except InputError as error:
        raise InputError(
            f"{folder} is an adapter of {one_line(base, 80)!r}, and that is not here: {error}; a path is read from the folder "
            "that one works in: go where it was trained, or put the base's place into base_model_name_or_path of its "
            "adapter_config.json"
        ) from None
    return base


def adapter_kind(folder: Path) -> str:
    """What peft calls the kind of an adapter, such as LORA."""
    return str(_adapter_config(folder).get("peft_type"))


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}/adapter_config.json cannot be read: {one_line(error, 100)}") from None
    return config if isinstance(config, dict) else {}
