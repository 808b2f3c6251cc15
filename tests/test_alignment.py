"""Where a number belongs: index t describes the prediction of token t from the tokens before it."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from tokenstats.alignment import outputs_that_predict, predicted
from tokenstats.modeling.load import LoadedModel
from tokenstats.scoring.pair import ModelPair
from tokenstats.store.manifests import Model

A, B, C = 0, 1, 2
NEXT = [  # P(next token | this token): a model one can read
    # A     B     C
    [0.50, 0.25, 0.25],  # after A
    [0.10, 0.80, 0.10],  # after B
    [0.25, 0.25, 0.50],  # after C
]


class Bigram(PreTrainedModel):
    """Looks at the current token only: its hidden state is the token as one-hot, its head the table above."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight.data = torch.tensor(NEXT).log().T.contiguous()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return CausalLMOutput(logits=self.head(nn.functional.one_hot(input_ids, 3).float()))


def test_each_value_describes_the_prediction_of_its_own_token():
    model = Bigram(PretrainedConfig()).eval()
    described = Model(source="", fingerprint="", revision=None, architecture="", parameters=0)
    pair = ModelPair(LoadedModel(model, described), None, 3, torch.device("cpu"))
    # prompt: A B    reply: B C A     (the targets are positions 2, 3 and 4)
    ids = torch.tensor([[A, B, B, C, A]])
    chosen = torch.tensor([[False, False, True, True, True]])
    found = pair.score(ids, chosen, topk=2)

    # token 2 is B, and comes after B: P = 0.80
    # token 3 is C, and comes after B: P = 0.10
    # token 4 is A, and comes after C: P = 0.25
    np.testing.assert_allclose(found["logprob"], np.log([0.80, 0.10, 0.25]), atol=1e-6)

    # its entropy is that of the row "after the token before": after B, after B, after C
    after_b = -(0.1 * math.log(0.1) + 0.8 * math.log(0.8) + 0.1 * math.log(0.1))
    after_c = -(0.25 * math.log(0.25) * 2 + 0.5 * math.log(0.5))
    np.testing.assert_allclose(found["entropy"], [after_b, after_b, after_c], atol=1e-6)
    np.testing.assert_allclose(found["sum_p2"], [0.66, 0.66, 0.375], atol=1e-6)

    # B is the favourite after B; C has one word (B) before it, its equal A not; A has one (C) before it
    assert found["rank"].tolist() == [0, 1, 1]
    assert found["top1_id"].tolist() == [B, B, C]
    assert found["topk_ids"][:, 0].tolist() == [B, B, C]


def test_token_zero_cannot_be_asked_for():
    outputs = torch.zeros(1, 3, 2)
    with pytest.raises(AssertionError, match="token 0"):
        outputs_that_predict(outputs, torch.tensor([[True, False, False]]))


def test_picks_the_row_before_each_chosen_token():
    outputs = np.arange(8).reshape(2, 4)  # output t of row r is 4 r + t
    chosen = np.array([[False, True, False, True], [False, False, True, False]])
    assert outputs_that_predict(outputs, chosen).tolist() == [0, 2, 5]


def test_the_first_token_of_each_row_is_never_predicted():
    flags = np.ones(7, bool)
    assert predicted(flags, np.array([0, 3, 3, 4, 7, 7])).tolist() == [False, True, True, False, False, True, True]
    assert flags.all(), "the flags that were given stay as they are"
    assert predicted(flags[:0], np.array([0, 0])).tolist() == []
