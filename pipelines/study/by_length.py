"""TRL's GRPO, whose forward pass takes replies of like lengths together: else half of the study's RL is spent on padding."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl import GRPOTrainer

ROWS_AT_ONCE = 32


class ByLength(GRPOTrainer):
    """The same numbers up to rounding: a token's log-probability depends on neither the rows beside its own nor the padding."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities and entropies [B, ``logits_to_keep``] of replies; 0 beyond their ends."""
        prompt = input_ids.shape[1] - logits_to_keep
        lengths = attention_mask[:, prompt:].sum(1)
        order = lengths.argsort()
        found = []
        for rows in order.split(ROWS_AT_ONCE):
            longest = int(lengths[rows].max())
            begin = int(attention_mask[rows].argmax(1).min())  # prompts are padded on the left
            columns = slice(begin, prompt + longest)
            of_rows = super()._get_per_token_logps_and_entropies(
                model, input_ids[rows, columns], attention_mask[rows, columns], longest, **options
            )
            found.append([None if x is None else pad(x, (0, logits_to_keep - longest)) for x in of_rows[:2]])
        back = order.argsort()
        logps, entropies = (None if of[0] is None else torch.cat(of)[back] for of in zip(*found, strict=True))
        assert logps is not None
        return logps, entropies, None  # no mixture of experts: no loss that balances them
