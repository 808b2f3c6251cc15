"""Every preset once more, written from the published formula with plain Python lists and loops: nothing of tokenstats.

``rows`` are sequences: dicts of lists, where a statistic at index t is of the prediction of token t. A preset is given as
(what is dropped, what each token weighs or None), places being (row, t).
"""

import math
from collections.abc import Callable

Place = tuple[int, int]
Naive = tuple[set[Place], dict[Place, float] | None]


def learnable(row: dict) -> list[int]:
    """Places that plain SFT learns: targets that something predicts."""
    return [t for t, target in enumerate(row["is_target"]) if target and t > 0]


def all_places(rows: list[dict]) -> list[Place]:
    return [(i, t) for i, row in enumerate(rows) for t in learnable(row)]


def highest(places: list, values: list[float], k: int) -> set:
    """The k places of the largest values; of equal values the earliest."""
    order = sorted(range(len(places)), key=lambda j: (-values[j], j))
    return {places[j] for j in order[:k]}


def per_sequence(rows: list[dict], score: Callable[[dict, int], float], f: float = 0.2) -> set[Place]:
    """int(f · n) of every sequence's n places, those with the highest score."""
    chosen = set()
    for i, row in enumerate(rows):
        places = learnable(row)
        chosen |= {(i, t) for t in highest(places, [score(row, t) for t in places], int(f * len(places)))}
    return chosen


def of_dataset(rows: list[dict], score: Callable[[dict, int], float], f: float) -> set[Place]:
    """int(f · n) of all n places of the dataset, those with the highest score."""
    places = all_places(rows)
    return highest(places, [score(rows[i], t) for i, t in places], int(f * len(places)))


def where(rows: list[dict], test: Callable[[dict, int], bool]) -> set[Place]:
    return {(i, t) for i, t in all_places(rows) if test(rows[i], t)}


def entropy(row: dict, t: int) -> float:
    return row["entropy"][t]


def kl(row: dict, t: int) -> float:
    return row["kl"][t]


def prob(row: dict, t: int) -> float:
    return math.exp(row["logprob"][t])


def excess(row: dict, t: int) -> float:
    """nll under the scored model minus nll under the reference."""
    return -row["logprob"][t] - -row["ref_logprob"][t]


def lowest(score: Callable[[dict, int], float]) -> Callable[[dict, int], float]:
    return lambda row, t: -score(row, t)


def released(rows: list[dict], column: str) -> set[Place]:
    """The released code: the statistic of logits[t], which is that of the prediction of token t + 1, gates labels[t]."""
    chosen = set()
    for i, row in enumerate(rows):
        labelled = learnable(row)
        with_value = [t for t in labelled if t + 1 < len(row["is_target"]) and row["is_target"][t + 1]]
        k = int(0.2 * len(labelled))
        chosen |= {(i, t) for t in highest(with_value, [row[column][t + 1] for t in with_value], k)}
    return chosen


def mix(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def draw(row: dict, t: int) -> float:
    """The number in [0, 1) that seed 0 draws for token t of a dataset row."""
    state = mix(row["row"] * 0x9E3779B97F4A7C15 % 2**64)
    return (mix((state + t * 0xD1B54A32D192ED03) % 2**64) >> 11) / 2**53


def complement(rows: list[dict], kept: set[Place]) -> set[Place]:
    return set(all_places(rows)) - kept


def weights(rows: list[dict], weight: Callable[[dict, int], float]) -> dict[Place, float]:
    return {(i, t): weight(rows[i], t) for i, t in all_places(rows)}


NAIVE: dict[str, Callable[[list[dict]], Naive]] = {
    "eksft": lambda rows: (per_sequence(rows, entropy) | per_sequence(rows, kl), None),
    "eksft-as-released": lambda rows: (released(rows, "entropy") | released(rows, "kl"), None),
    "eksft-intersection": lambda rows: (per_sequence(rows, entropy) & per_sequence(rows, kl), None),
    "eksft-lowest": lambda rows: (per_sequence(rows, lowest(entropy)) | per_sequence(rows, lowest(kl)), None),
    "entropy-only": lambda rows: (per_sequence(rows, entropy), None),
    "kl-only": lambda rows: (per_sequence(rows, kl), None),
    "rho-1": lambda rows: (complement(rows, of_dataset(rows, excess, 0.6)), None),
    "token-cleaning": lambda rows: (complement(rows, of_dataset(rows, excess, 0.6)), None),
    "stm": lambda rows: (where(rows, lambda r, t: math.exp(-r["logprob"][t]) > 2.5), None),
    "stm-difference": lambda rows: (
        where(rows, lambda r, t: math.exp(-r["logprob"][t]) - math.exp(-r["ref_logprob"][t]) > 0),
        None,
    ),
    "profit-static": lambda rows: (where(rows, lambda r, t: prob(r, t) < 0.1), None),
    "high-entropy": lambda rows: (complement(rows, of_dataset(rows, entropy, 0.2)), None),
    "confident-conflict": lambda rows: (
        of_dataset(rows, lowest(entropy), 0.2) & of_dataset(rows, lowest(prob), 0.2),
        None,
    ),
    "dft": lambda rows: (set(), weights(rows, prob)),
    "eaft": lambda rows: (set(), weights(rows, lambda r, t: min(max(r["entropy"][t] / 3, 0), 1))),
    "sed-gate": lambda rows: (where(rows, lambda r, t: math.exp(r["top1_logprob"][t]) >= 0.95), None),
    "random": lambda rows: (per_sequence(rows, lowest(draw)), None),
}
"""By the name of the preset: rows to (dropped before anything is protected, weights)."""
UNPROTECTED = {"eksft-as-released"}
