"""The rival of the benchmark that is written from a description computes what the description says."""

import math

import numpy as np
import pytest
import torch
from training_fixtures import tiny_model

from pipelines.bench_training import eksft_loss
from tokenstats.training.rows import IGNORED


def test_eksfts_step_is_its_formula_in_float64() -> None:
    """Mean CE over targets outside E and K − 0.05 · mean over E of H / ln V + 0.05 · mean over K of Σ p·(p − log q)."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 264, (3, 20))
    targets = rng.random((3, 20)) < 0.6
    targets[:, 0] = False
    policy, reference = tiny_model(0).eval(), tiny_model(1).eval()
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        log_p, log_q = (m(input_ids=tokens).logits.double().log_softmax(-1).numpy() for m in (policy, reference))
    p = np.exp(log_p)
    places = [(i, t) for i in range(3) for t in range(20) if targets[i, t]]
    entropy = {place: -(p[place] * log_p[place]).sum() for place in places}
    kl = {place: (p[place] * (log_p[place] - log_q[place])).sum() for place in places}
    count = int(0.2 * len(places))
    uncertain = sorted(places, key=entropy.__getitem__)[-count:]
    moved = sorted(places, key=kl.__getitem__)[-count:]
    nll = [-log_p[i, t - 1, ids[i, t]] for i, t in places if (i, t) not in {*uncertain, *moved}]
    expected = np.mean(nll) - 0.05 * np.mean([entropy[place] for place in uncertain]) / math.log(264)
    expected += 0.05 * np.mean([(p[place] * (p[place] - log_q[place])).sum() for place in moved])
    labels = torch.where(torch.from_numpy(targets), tokens, IGNORED)
    assert eksft_loss(policy, reference, tokens, labels).item() == pytest.approx(expected, rel=1e-5)
