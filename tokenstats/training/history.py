"""The curve of a run, as it lies beside the weights: what transformers' log says, in the words of this package."""

from typing import Any

HISTORY = "history.json"
"""Name of the file."""

History = dict[str, list[dict[str, float]]]


def history_of(logs: list[dict[str, Any]]) -> History:
    """The curve of a run: ``training`` and ``evaluation`` losses in nats per token, and what else is told, by step."""
    training = [{**entry} for entry in logs if "loss" in entry]
    evaluation = [{n.removeprefix("eval_"): v for n, v in entry.items()} for entry in logs if "eval_loss" in entry]
    return {
        "training": [{"step": entry.pop("step"), **entry} for entry in training],
        "evaluation": [
            {"step": entry.pop("step"), "epoch": entry.pop("epoch", 0.0), "loss": entry.pop("loss"), **means_in(entry)}
            for entry in evaluation
        ],
    }


def means_in(entry: dict[str, float]) -> dict[str, float]:
    """The means over groups of tokens, which have a slash in their names."""
    return {name: value for name, value in entry.items() if "/" in name}
