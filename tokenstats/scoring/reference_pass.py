"""Two models that do not fit in memory together: the reference first, then the scored model.

Between the passes the reference's final hidden states of the scored tokens lie on disk, in the models' own type: H numbers a
token, not V. Its head stays in memory. A part's states are removed once its statistics are written.
"""

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tokenstats.errors import InputError, StoreError, one_line
from tokenstats.modeling.load import LoadedModel, load_model
from tokenstats.scoring.batches import pad, plan_batches
from tokenstats.scoring.pair import ModelPair
from tokenstats.scoring.part import chosen_tokens, on_device
from tokenstats.store.parts import part_path, read_part
from tokenstats.store.store import TOKENS


class ReferencePass:
    """Loads a reference, and keeps its hidden states of a store's parts under ``stats/<name>/.reference``."""

    def __init__(
        self, source: str, dtype: str, device: torch.device, attention: str | None, vocabulary: int, probe: Tensor, budget: int
    ):
        self.loaded: LoadedModel = load_model(source, dtype, device, attention)
        self._pair = ModelPair(self.loaded, None, vocabulary, device)
        self._budget = budget
        if set(self._pair.check(probe).values()) != {"split"}:
            raise InputError(f"{source} gives only full logits, too large to keep; score without --reference-pass separate")

    @property
    def max_positions(self) -> int | None:
        return self._pair.max_positions

    def write(self, store: Path, name: str, parts: Iterable[int], score_all: bool) -> None:
        """Write the states of the parts that have neither states nor statistics yet."""
        folder = store / "stats" / name
        for index in tqdm(parts, desc="reference", unit=" parts", disable=None):
            path = _states_path(folder, index)
            if not part_path(folder, index).exists() and not self._is_there(path):
                states = self._states(read_part(part_path(store / TOKENS, index)), score_all)
                _save(path, states, self.loaded.description.fingerprint)

    def release(self) -> None:
        """Free the body; the head stays."""
        self.loaded.model.get_decoder().to("meta")
        torch.cuda.empty_cache()

    def read(self, store: Path, name: str, index: int) -> Tensor:
        """[n, H] states of a part's scored tokens, in their order."""
        path = _states_path(store / "stats" / name, index)
        if not self._is_there(path):
            raise StoreError(f"{path} is missing or of another reference; run the same command again")
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("states")

    def _is_there(self, path: Path) -> bool:
        try:
            with safe_open(path, framework="pt") as file:
                return file.metadata() == {"reference": self.loaded.description.fingerprint}
        except (FileNotFoundError, SafetensorError):
            return False

    @torch.inference_mode()
    def _states(self, tokens: pa.Table, score_all: bool) -> Tensor:
        ids, chosen, offsets = chosen_tokens(tokens, score_all)
        order = np.cumsum(chosen) - 1
        out: Tensor | None = None
        for rows in plan_batches(np.diff(offsets), self._budget, self._pair.depends_on_width):
            spans = [slice(offsets[r], offsets[r + 1]) for r in rows]
            batch, targets = pad([ids[s] for s in spans], 0).long(), pad([chosen[s] for s in spans], False)
            batch, targets = on_device(batch, self._pair.device), on_device(targets, self._pair.device)
            states = self._pair.states(self._pair.split[0], batch, targets).cpu()
            if out is None:
                out = torch.empty(int(chosen.sum()), states.shape[1], dtype=states.dtype)
            out[np.concatenate([order[s][chosen[s]] for s in spans])] = states
        assert out is not None
        return out


def remove_states(folder: Path, index: int) -> None:
    _states_path(folder, index).unlink(missing_ok=True)


def remove_all_states(folder: Path) -> None:
    shutil.rmtree(folder / ".reference", ignore_errors=True)


def _states_path(folder: Path, index: int) -> Path:
    return folder / ".reference" / f"part-{index:05d}.safetensors"


def _save(path: Path, states: Tensor, fingerprint: str) -> None:
    temporary = path.with_name(f".writing-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"states": states}, temporary, metadata={"reference": fingerprint})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        size = states.numel() * states.element_size() / 2**30
        raise StoreError(f"cannot write {path} ({size:.1f} GiB): {one_line(error, 120)}; free some space") from error
    except BaseException:  # interrupted
        temporary.unlink(missing_ok=True)
        raise
