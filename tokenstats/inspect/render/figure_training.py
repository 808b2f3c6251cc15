"""The course of a training run as a picture: what its history tells, by step, of each group of tokens.

Lines are means since the entry before, of the rows that are trained on; dashed lines are of the rows held out.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokenstats.errors import InputError, one_line
from tokenstats.inspect.render.figures import INK, LINES, MUTED, legend_below, new_figure, title

History = Mapping[str, Sequence[Mapping[str, float]]]

_GROUPS = {"targets": INK, "kept": LINES[1], "entropy_on": LINES[0], "kl_on": LINES[2]}
"""The groups of tokens that any run may tell of, and their colours in every panel."""
_CLAUSE, _OF_CLAUSES = "clause_", (LINES[3], LINES[4], LINES[7], LINES[5])
_HELD_OUT = (0, (4, 2))
_COLUMNS = 2
_MARKED = 25  # entries, up to which each is a dot


class Curves:
    """The curves of one run: its history, and what its groups of tokens are called."""

    def __init__(self, history: History, names: Mapping[str, str]):
        self.training, self.evaluation = history["training"], history["evaluation"]
        told = {name.partition("/")[0] for entry in (*self.training, *self.evaluation) for name in entry}
        clauses = sorted(int(group.removeprefix(_CLAUSE)) for group in told if group.startswith(_CLAUSE))
        colours = {f"{_CLAUSE}{number}": _OF_CLAUSES[(number - 1) % len(_OF_CLAUSES)] for number in clauses}
        # a clause that E or K is has a line already
        self.colours = _GROUPS | {g: colour for g, colour in colours.items() if g.replace("_", " ") not in names.values()}
        self.names = {group: names.get(group, group.replace("_", " ")) for group in self.colours}

    def line(self, ax: Axes, key: str, label: str | None, colour: str, held_out: bool = False) -> bool:
        """Draw what the entries say of a key, dashed where they are of rows held out; do they say anything?"""
        entries = [entry for entry in (self.evaluation if held_out else self.training) if key in entry]
        if entries:
            marker = "o" if len(entries) <= _MARKED else None
            style, steps = _HELD_OUT if held_out else "-", [entry["step"] for entry in entries]
            values = [entry[key] for entry in entries]
            ax.plot(steps, values, color=colour, linestyle=style, linewidth=1.5, marker=marker, markersize=3, label=label)
        return bool(entries)

    def groups(self, ax: Axes, value: str) -> None:
        """The lines of one value, of each group: two of a colour are named once."""
        for group, colour in self.colours.items():
            is_named = self.line(ax, f"{group}/{value}", self.names[group], colour)
            self.line(ax, f"{group}/{value}", None if is_named else self.names[group], colour, held_out=True)

    @property
    def last_step(self) -> float:
        """Of the training."""
        return max(entry["step"] for entry in self.training)

    def has(self, *endings: str) -> bool:
        """Does any entry tell something of this name?"""
        return any(name.endswith(endings) for entry in (*self.training, *self.evaluation) for name in entry)


Panel = Callable[[Curves, Axes], None]


def training_figure(history: History, names: Mapping[str, str] | None = None, best_step: int | None = None) -> Figure:
    """The curves of a run, a panel for each thing that its history tells.

    Args:
        history: What ``history.json`` beside the weights holds.
        names: What its groups of tokens are, such as ``{"entropy_on": "clause 1"}``.
        best_step: A step to mark: whose weights were saved.
    """
    curves = Curves(history, names or {})
    panels: list[Panel] = [_loss]
    panels += [_terms] * curves.has("loss_entropy", "loss_kl")
    panels += [_group_panel(*panel) for panel in _OF_GROUPS if curves.has(f"/{panel[0]}")]
    panels += [_agreement] * curves.has("agreement") + [_gradient] * curves.has("grad_norm") + [_speed]
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = new_figure(10.4, 2.3 * rows + 0.5, _COLUMNS, rows)
    for draw, ax in zip(panels, axes, strict=False):
        draw(curves, ax)
        ax.set_xlim(-0.02 * curves.last_step, 1.02 * curves.last_step)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        if best_step is not None:
            ax.axvline(best_step, color=MUTED, linewidth=1.0, linestyle=":", label="the weights that were saved")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[max(0, len(panels) - _COLUMNS) : len(panels)]:
        ax.set_xlabel("step", fontsize=9, color=MUTED)
    if curves.evaluation:
        axes[0].plot([], [], color=INK, linestyle=_HELD_OUT, linewidth=1.5, label="dashed: rows held out")
    legend_below(figure, *axes[: len(panels)])
    return figure


def figure_of_run(folder: Path, store: str | None = None) -> Figure:
    """The picture of the run whose weights lie in a folder.

    Args:
        folder: The weights, with the history and the record of this package beside them.
        store: The fingerprint of the store that the run must be of; None: of any.

    Raises:
        InputError: There is no such run.
    """
    try:
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        record = json.loads((folder / "tokenstats.json").read_text(encoding="utf-8"))
        told, stores = record["training"], [one["store_fingerprint"] for one in record.get("mixture", [record])]
        names = {group: one_line(told[group], 40) for group in ("entropy_on", "kl_on") if told.get(group)}
        figure = training_figure(history, names, _best_step(history, told.get("best_by")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{one_line(folder, 200)} holds no run that can be drawn ({one_line(error, 100)}); expected a folder that was "
            "trained into"
        ) from None
    if store is not None and store not in stores:
        raise InputError(f"{one_line(folder, 200)} was trained on another store; take the store that it was trained on")
    return figure


def _best_step(history: History, best_by: str | None) -> int | None:
    """The step whose weights a run ended with, where it chose the best evaluation behind its first step."""
    if best_by is None:
        return None
    name, sign = {"eval_loss": ("loss", 1), "eval_kl": ("targets/kl", 1), "eval_accuracy": ("targets/accuracy", -1)}[best_by]
    return int(min(history["evaluation"][1:], key=lambda entry: sign * entry[name])["step"])


def _loss(curves: Curves, ax: Axes) -> None:
    curves.line(ax, "loss", "loss", LINES[5])
    curves.line(ax, "loss", None, INK, held_out=True)
    title(ax, "Loss; of rows held out, −log p of all targets", "", "nats")


def _terms(curves: Curves, ax: Axes) -> None:
    for key, label, colour in (
        ("loss_nll", "term −log p", LINES[3]),
        ("loss_entropy", "term H / ln V", LINES[4]),
        ("loss_kl", "term KL", LINES[7]),
    ):
        curves.line(ax, key, label, colour)
    title(ax, "Terms of the loss, before they are weighed", "", "nats; H / ln V a share")


_OF_GROUPS = (
    ("nll", "Mean −log p", "nats"),
    ("entropy", "Mean entropy", "nats"),
    ("kl", "Mean KL from the reference", "nats"),
    ("accuracy", "Tokens that are the first choice", "share"),
)


def _group_panel(value: str, text: str, unit: str) -> Panel:
    def draw(curves: Curves, ax: Axes) -> None:
        curves.groups(ax, value)
        title(ax, text, "", unit)

    return draw


def _agreement(curves: Curves, ax: Axes) -> None:
    curves.line(ax, "agreement", None, MUTED)
    title(ax, "What the rule and the stored mask both drop", "", "Jaccard index")


def _gradient(curves: Curves, ax: Axes) -> None:
    curves.line(ax, "grad_norm", None, MUTED)
    title(ax, "Norm of the gradient")


def _speed(curves: Curves, ax: Axes) -> None:
    curves.line(ax, "tokens_per_second", None, MUTED)
    ax.set_ylim(bottom=0)
    title(ax, "Tokens a second, of the input")
