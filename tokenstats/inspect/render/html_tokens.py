"""A sequence as HTML: the token view that report, app and notebooks share. No scripts; every text is escaped."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from markupsafe import Markup

from tokenstats.inspect.render.blocks import NAMES
from tokenstats.inspect.render.html import fragment
from tokenstats.inspect.tokens.detokenize import visible
from tokenstats.inspect.tokens.sequence import Piece, SequenceView, Token

HEAT = {name: NAMES[name] for name in ("entropy", "kl", "nll")}
"""Statistics that tokens can be coloured by, in nats, and their names on a page."""

MOST_TOKENS = 4000
_LEVELS = 10
_STYLED_CLAUSES = 4
_MOST_CHOICES = 5
_ZERO_WIDTH_SPACE = "\N{ZERO WIDTH SPACE}"


@dataclass(frozen=True)
class Span:
    """A piece as it stands on the page: its classes, the lines of its text, and what is said of it under the pointer."""

    classes: str
    lines: list[str]
    is_blank: bool
    tip: str


def token_view(
    view: SequenceView, *, colour_by: str | None = None, scale: float | None = None, most: int = MOST_TOKENS
) -> Markup:
    """One sequence as an HTML fragment: a line about it, a legend, its tokens with details under the pointer.

    Args:
        view: The sequence.
        colour_by: A key of ``HEAT``: shade tokens by that statistic instead of by clause; dropped ones stay underlined or
            struck.
        scale: The value (nats) of the darkest shade, and of all above it; by default the sequence's largest.
        most: How many tokens are shown; how many more there are is said at the end.

    Returns:
        The fragment; it needs the style sheet ``parts.css``.
    """
    pieces = [p for p in view.pieces() if p.tokens[-1].index < most]
    heats = [_heat_of_piece(p, colour_by) for p in pieces]
    darkest = scale or max((h for h in heats if h is not None), default=0.0) or 1.0
    spans = [_span(piece, view, None if heat is None else heat / darkest) for piece, heat in zip(pieces, heats, strict=True)]
    clauses = [(number, clause_class([number]), *clause) for number, clause in enumerate(view.dropped_by_clause)]
    heat = (HEAT[colour_by], f"{darkest:.3g}") if colour_by else None
    hidden = len(view) - sum(len(p.tokens) for p in pieces)
    return fragment("tokens.html", "tokens", view, clauses, heat, spans, hidden)


def heat_of(token: Token, colour_by: str | None) -> float | None:
    """The value that shades a token, in nats; None where it was not scored."""
    if colour_by == "nll":
        logprob = token.statistics.get("logprob")
        return None if logprob is None else -logprob
    return token.statistics.get(colour_by or "")


def details(piece: Piece, view: SequenceView) -> str:
    """All that is known of a piece's tokens, as a few lines of plain text."""
    blocks = [_token_details(token, view) for token in piece.tokens]
    if len(blocks) > 1:
        blocks.insert(0, f"“{piece.shown}” is made of {len(piece.tokens)} tokens")
    return "\n\n".join(blocks)


def as_markdown(text: str) -> str:
    """Markdown that shows a text as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def clause_class(clauses: Sequence[int]) -> str:
    """The style of tokens dropped by these clauses."""
    return "cm" if len(clauses) > 1 else f"c{min(clauses[0], _STYLED_CLAUSES - 1)}" if clauses else "c0"


def _heat_of_piece(piece: Piece, colour_by: str | None) -> float | None:
    if colour_by is None:
        return None
    return max((heat for token in piece.tokens if (heat := heat_of(token, colour_by)) is not None), default=None)


def _span(piece: Piece, view: SequenceView, heat: float | None) -> Span:
    classes = ["t"] if piece.is_target else ["t", "x"]
    if piece.dropped:
        classes += ["d", clause_class(piece.clauses)]
    elif piece.protected:
        classes.append("p")
    # a square root, as most values are small: half the shades go to the lowest quarter
    if heat is not None and (level := int(_LEVELS * min(max(0.0, heat), 0.999) ** 0.5)):
        classes.append(f"h{level}")
    # the app's sanitizer drops attributes that hold the likes of </script> or -->: nothing visible comes between
    tip = details(piece, view).replace("<", f"<{_ZERO_WIDTH_SPACE}").replace(">", f"{_ZERO_WIDTH_SPACE}>")
    is_blank = bool(piece.text) and not piece.text.strip(" ")  # the style sheet draws the dots: copied text has its spaces
    lines = [piece.text] if is_blank else (visible(piece.text, newline="\n") or "∅").split("\n")
    return Span(" ".join(classes), lines, is_blank, tip)


def _token_details(token: Token, view: SequenceView) -> str:
    visible_token, s = view.decoder.visible, token.statistics
    lines = [visible_token(token.id), f"token {token.index}   id {token.id}   {token.role}"]
    rows = [
        (("entropy", _nats(s.get("entropy"))), ("KL", _nats(s.get("kl")))),
        (("log p", _nats(s.get("logprob"))), ("p", _probability(s.get("logprob")))),
        (("log q", _nats(s.get("ref_logprob"))), ("q", _probability(s.get("ref_logprob")))),
        (("rank", str(s.get("rank", ""))), ("ref rank", str(s.get("ref_rank", "")))),
    ]
    for pair in rows:
        line = "".join(f"{name:<9}{value:<12}" for name, value in pair if value).rstrip()
        lines += [line] if line else []
    if "topk_ids" in s:
        choices = zip(s["topk_ids"][:_MOST_CHOICES], s["topk_logprobs"][:_MOST_CHOICES], strict=True)
        lines.append("likeliest " + "  ".join(f"{visible_token(i)} {exp(p):.1%}" for i, p in choices))
    elif "top1_id" in s:
        lines.append(f"likeliest {visible_token(s['top1_id'])} {_probability(s.get('top1_logprob'))}")
    return "\n".join([*lines, *_decision(token, view.clauses)])


def _decision(token: Token, clauses: Sequence[str]) -> list[str]:
    if not token.is_target:
        return ["context: not learned"]
    if token.dropped:
        return [f"dropped by {n + 1}  {clauses[n]}" for n in token.clauses if n < len(clauses)] or ["dropped"]
    return ["learned (the rule never drops it)" if token.protected else "learned"]


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _probability(logprob: float | None) -> str:
    """A share to two decimals; what would be 0.00 % as a power of ten, as nothing here is impossible."""
    if logprob is None:
        return ""
    return f"{exp(logprob):.2%}" if exp(logprob) >= 5e-5 else f"{exp(logprob):.1e}"
