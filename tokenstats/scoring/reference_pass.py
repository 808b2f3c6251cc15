"""Two models that do not fit in memory together: the reference first, then the scored model.

Between the passes the reference's final hidden states of the scored tokens lie on disk, in the models' own type: H numbers a
token, not V. Its head stays in memory. A part's states are removed once its statistics are written. They say what they were
made from: states of other tokens, or of another reference, are made again.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tokenstats.errors import InputError, StoreError, argument
from tokenstats.modeling.batches import Advance, Budget, PartTokens, run_batches
from tokenstats.modeling.hidden_states import said_of_states, write_states
from tokenstats.modeling.load import LoadedModel, load_model
from tokenstats.scoring.model_checks import word_digests
from tokenstats.scoring.options import SEPARATE, ScoringOptions
from tokenstats.scoring.pair import ModelPair, ReferenceAnswer
from tokenstats.scoring.score_part import check_fits
from tokenstats.store.families import TOKENS
from tokenstats.store.parts import digest_of, part_path, read_part


@dataclass(frozen=True)
class ReferenceInfo:
    """What a reference turned out to be: the tokens it reads at most, and what its states of a scored token take on disk."""

    max_positions: int | None
    bytes_per_token: int


class ReferencePass:
    """Loads a reference, and keeps its hidden states of a store's parts under ``stats/<name>/.reference``."""

    def __init__(self, source: str, options: ScoringOptions, device: torch.device, vocabulary: int, probe: Tensor):
        """probe: [1, T] ids that the reference is tried on; vocabulary: ids of the tokenizer."""
        self.loaded: LoadedModel = load_model(source, options.dtype, device, options.attention, options.trust_remote_code)
        self._pair = ModelPair(self.loaded, None, vocabulary, device)
        if options.compiled:
            self.loaded.model.get_decoder().compile(dynamic=True)
        self._budget, self._score_all = Budget(options.batch_tokens), options.score_all
        ways, self.notes = self._pair.check(probe)
        if set(ways.values()) != {"split"}:
            raise InputError(
                f"{source} gives only full logits, too large to keep; score without {argument('reference_pass', SEPARATE)}"
            )
        self.answer = ReferenceAnswer(self._logits_on(probe), word_digests(self.loaded, self._pair.words))
        one = self._states(probe[:, :2].to(device), torch.tensor([[False, True]], device=device))
        self._width, self._dtype = one.shape[1], one.dtype
        self.facts = ReferenceInfo(self._pair.max_positions, one.numel() * one.element_size())

    @property
    def vocabulary(self) -> int:
        """Columns of its logits, and of the tokenizer's ids."""
        return self._pair.vocabulary

    def write(self, store: Path, name: str, index: int, advance: Advance = lambda real, padded: None) -> tuple[int, int]:
        """Write the states of a part, where they are not there yet. Returns its tokens, without and with padding."""
        path = states_path(store / "stats" / name, index)
        table = read_part(part_path(store / TOKENS, index))
        tokens = PartTokens.of(table, self._score_all)
        if _origin(path) == self._origin_of(store, index):
            advance(len(tokens.ids), len(tokens.ids))
            return len(tokens.ids), len(tokens.ids)
        check_fits(tokens, self._pair, table["seq_id"])
        order = np.cumsum(tokens.chosen) - 1
        kept = torch.empty(int(tokens.chosen.sum()), self._width, dtype=self._dtype)

        def keep(batch: Tensor, chosen: Tensor, places: np.ndarray) -> None:
            kept[order[places]] = self._states(batch, chosen).cpu()

        _, _, padded = run_batches(tokens, keep, self._pair.device, self._budget, self._pair.classes, advance)
        write_states(path, {"states": kept}, self._origin_of(store, index) | {"batch_tokens": str(self._budget.tokens)})
        return len(tokens.ids), padded

    def read(self, store: Path, name: str, index: int) -> tuple[Tensor, int]:
        """[n, H] states of a part's scored tokens, in their order, and the budget of padded tokens they were made with."""
        path = states_path(store / "stats" / name, index)
        if _origin(path) != self._origin_of(store, index):
            raise StoreError(f"{path} is missing or of another reference; run the same command again")
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("states"), int(file.metadata()["batch_tokens"])

    def release(self) -> None:
        """Free the body; the head stays."""
        self._pair.split[0].release_body()

    @torch.inference_mode()
    def _logits_on(self, probe: Tensor) -> Tensor:
        """[T, V] what the scored model's answers to the same probe are held against."""
        return self._pair.probe_logits(self._pair.split[0], probe.to(self._pair.device)).cpu()

    @torch.inference_mode()
    def _states(self, batch: Tensor, chosen: Tensor) -> Tensor:
        return self._pair.states(self._pair.split[0], batch, chosen)

    def _origin_of(self, store: Path, index: int) -> dict[str, str]:
        """What states depend on: the reference, the part of tokens, and which of them are scored."""
        return {
            "reference": self.loaded.description.fingerprint,
            "tokens": digest_of(part_path(store / TOKENS, index)),
            "score_all": str(self._score_all),
        }


def states_path(folder: Path, index: int) -> Path:
    """Where the reference's hidden states of a part lie, beside the scoring that is being made."""
    return folder / ".reference" / f"part-{index:05d}.safetensors"


def remove_states(folder: Path, index: int) -> None:
    """Remove those of a part that is scored."""
    states_path(folder, index).unlink(missing_ok=True)


def remove_all_states(folder: Path) -> None:
    """Remove whatever is left of them."""
    shutil.rmtree(folder / ".reference", ignore_errors=True)


def _origin(path: Path) -> dict[str, str] | None:
    """What the states in a file depend on; None where there is no whole file. What they were batched with is told apart."""
    said = said_of_states(path)
    return None if said is None else {key: value for key, value in said.items() if key != "batch_tokens"}
