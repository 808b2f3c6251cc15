"""The words of solutions: templates of every style, by what an operation is about.

The style ``mixed`` joins leads, cores and tails freely, but for some pairs of a lead and a core, which are kept for
:data:`NEW_STYLE`: a wording that pre-training never has, of words and phrases that it has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

KINDS = ("hold", "together", "gain", "lose", "multiply", "share", "price")


@dataclass(frozen=True)
class Style:
    """Templates of a way to write. ``closings`` hold what separates them from the sentence before."""

    sentences: Mapping[str, Sequence[str]]
    closings: Sequence[str]
    openings: Sequence[str] = ("",)
    joint: str = " "


LEADS = ("So", "Then", "Now", "Next", "Here", "This way")
TAILS = (".", " now.")
CORES = {
    "hold": (
        "the {container} hold {eq} {thing}",
        "{thing} in the {container} make {eq}",
        "{count} {container} come to {eq} {thing}",
    ),
    "together": ("in all that is {eq} {thing}", "{name} starts with {eq}", "together they make {eq} {thing}"),
    "gain": ("{pronoun} has {eq} {thing}", "there are more, {eq} {thing}", "with the new ones it is {eq}"),
    "lose": ("{pronoun} has {eq} {thing} left", "there are fewer, {eq} {thing}", "without them it is {eq}"),
    "multiply": ("{word} as many is {eq} {thing}", "a week later it is {eq}", "it grows to {eq} {thing}"),
    "share": ("each friend gets {eq} {thing}", "shared, that is {eq} each", "one friend has {eq} {thing}"),
    "price": ("the price is {eq} dollars", "they bring {eq} dollars", "{name} gets {eq}"),
}
CLOSING_CORES = ("the answer is {answer}.", "it comes to {answer} {unit}.", "we end with {answer} {unit}.")


def _is_kept(lead: int, core: int) -> bool:
    """Pairs that only the new style has: one lead for each core."""
    return lead == 2 * core


def _joined(cores: Sequence[str], tails: Sequence[str], kept: bool) -> Iterator[str]:
    for i, lead in enumerate(LEADS):
        for j, core in enumerate(cores):
            if _is_kept(i, j) == kept:
                yield from (f"{lead} {core}{tail}" for tail in tails)


def _recombined(kept: bool) -> Style:
    sentences = {kind: tuple(_joined(cores, TAILS[:1] if kept else TAILS, kept)) for kind, cores in CORES.items()}
    return Style(sentences, tuple(f" {closing}" for closing in _joined(CLOSING_CORES, [""], kept)))


def _for_all_kinds(*templates: str) -> dict[str, Sequence[str]]:
    return dict.fromkeys(KINDS, templates)


STYLES = {
    "equations": Style(_for_all_kinds("{eq}"), ["\nAnswer: {answer}"], joint="\n"),
    "prose": Style(
        {
            "hold": [
                "The {container} hold {eq} {thing}.",
                "There are {eq} {thing} in the {container}.",
                "{count} {container} with {each} {thing} make {eq}.",
            ],
            "together": [
                "In all that is {eq} {thing}.",
                "Together {name} has {eq} {thing}.",
                "So {pronoun} starts with {eq} {thing}.",
            ],
            "gain": [
                "After {doing} them {pronoun} has {eq} {thing}.",
                "Then {name} has {eq} {thing}.",
                "That makes {eq} {thing}.",
            ],
            "lose": [
                "After {doing} them {pronoun} has {eq} {thing} left.",
                "Then {name} has {eq} {thing}.",
                "That leaves {eq} {thing}.",
            ],
            "multiply": ["A week later {pronoun} has {eq} {thing}.", "{Word} as many is {eq} {thing}."],
            "share": ["Each friend gets {eq} {thing}.", "Shared, that is {eq} {thing} each."],
            "price": ["The price is {eq} dollars.", "They bring {eq} dollars."],
        },
        [" The answer is {answer}.", " So it is {answer} {unit}.", " Answer: {answer}"],
        openings=["", "", "Let us count the {unit}.", "Step by step."],
    ),
    "story": Style(
        _for_all_kinds("{link} compute {eq}.", "{link} work out {eq}.", "{link} we get {eq}."),
        [" {name} ends with {answer} {unit}."],
    ),
    "terse": Style(_for_all_kinds("{result}"), [". The answer is {answer}."], joint=", "),
    "mixed": _recombined(kept=False),
    "tally": _recombined(kept=True),
}
NEW_STYLE = "tally"
PRETRAINING_STYLES = tuple(style for style in STYLES if style != NEW_STYLE)
FIRST_STYLES = ("equations", "prose", "story", "terse")
"""What a base learns to calculate in, before it meets the mixed wording."""
