"""What every token of a solution is, by what could have been written instead: forced, fork, style or noise.

    forced   it follows from what stands before: everything that may stand here goes on with this token
    fork     a choice of order: the token rules out an operation that could have come next until here
    style    a choice of words: the token rules out wordings, and no operation
    noise    a token of a sentence that no operation needs

What stands before is the question and the solution so far; noise is skipped, as if it were not there. Nothing here looks at
a model: the labels come from the generator alone.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum

from transformers import PreTrainedTokenizerFast

from pipelines.solutions import Alternative, Piece, Solution


class Label(IntEnum):
    FORCED = 0
    FORK = 1
    STYLE = 2
    NOISE = 3


def token_labels(solution: Solution, tokenizer: PreTrainedTokenizerFast) -> list[Label]:
    """A label for each token of ``solution.text``, and FORCED for the end-of-turn token that follows it.

    Raises:
        ValueError: the pieces are not tokenized as the whole text is, or an alternative is the beginning of another, so that
            a choice would show only in the next piece.
    """
    ids, labels = list[int](), list[Label]()
    for piece in solution.pieces:
        own = _encode(piece.text, tokenizer)
        ids += own
        labels += _labels_of_piece(piece, own, tokenizer) if piece.alternatives else [Label.NOISE] * len(own)
    if ids != _encode(solution.text, tokenizer):
        raise ValueError(f"the pieces of {solution.text!r} are not tokenized as their text is; let each begin with a space")
    return [*labels, Label.FORCED]


def _labels_of_piece(piece: Piece, own: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> Iterator[Label]:
    possible = [(alternative, _encode(alternative.text, tokenizer)) for alternative in piece.alternatives]
    for place, token in enumerate(own):
        if any(len(ids) == place for _, ids in possible):
            raise ValueError(f"{piece.text!r} goes on where another text that may stand there has ended")
        remaining = [(alternative, ids) for alternative, ids in possible if ids[place] == token]
        yield _label([alternative for alternative, _ in possible], [alternative for alternative, _ in remaining])
        possible = remaining
    if any(len(ids) > len(own) for _, ids in possible):
        raise ValueError(f"{piece.text!r} ends where another text that may stand there goes on")


def _label(before: list[Alternative], after: list[Alternative]) -> Label:
    if len(before) == len(after):
        return Label.FORCED
    return Label.FORK if _operations(after) < _operations(before) else Label.STYLE


def _operations(alternatives: list[Alternative]) -> set[int]:
    """The operations that may come next; an opening, which has none, rules out none."""
    return {a.step for a in alternatives if a.step is not None}


def _encode(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
