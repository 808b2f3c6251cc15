"""A sequence as HTML: the token view that the report and the app share. No scripts; every text is escaped."""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from math import exp

from tokenstats.inspect.tokens.detokenize import Decoder, visible
from tokenstats.inspect.tokens.sequence import Piece, SequenceView, Token

HEAT = {"entropy": "entropy", "kl": "KL", "nll": "−log p"}
"""Statistics that tokens can be coloured by, in nats, and their names on a page."""

MOST_TOKENS = 4000
_LEVELS = 10
_STYLED_CLAUSES = 4
_ZERO_WIDTH_SPACE = "\N{ZERO WIDTH SPACE}"


def style() -> str:
    """The style sheet of the token view and of the tables."""
    return (files("tokenstats.inspect.render") / "parts.css").read_text(encoding="utf-8")


def token_view(
    view: SequenceView,
    decoder: Decoder,
    *,
    colour_by: str | None = None,
    scale: float | None = None,
    most: int = MOST_TOKENS,
) -> str:
    """One sequence as an HTML fragment: a line about it, a legend, its tokens with details under the pointer.

    colour_by: a key of ``HEAT``: shade tokens by that statistic instead of by clause; dropped ones stay underlined or struck
    scale:     the value (nats) of the darkest shade, and of all above it; by default the sequence's largest
    most:      how many tokens are shown; how many more there are is said at the end
    """
    pieces = [p for p in view.pieces(decoder) if p.tokens[-1].index < most]
    values = [v for p in pieces for t in p.tokens if (v := heat_of(t, colour_by)) is not None] if colour_by else []
    darkest = scale or max(values, default=0.0) or 1.0
    spans = "".join(_span(p, view.clauses, decoder, colour_by, darkest) for p in pieces)
    spans = spans.removesuffix("\n</span>") + "</span>" if spans.endswith("\n</span>") else spans  # no empty last line
    hidden = len(view) - sum(len(p.tokens) for p in pieces)
    more = f'<div class="ts-more">{hidden:,} more tokens are not shown</div>' if hidden else ""
    heat = " heat" if colour_by else ""
    return (
        f'<div class="ts-view">{_head(view)}{_legend(view, colour_by, darkest)}'
        f'<div class="ts-tokens{heat}" dir="ltr">{spans}</div>{more}</div>'
    )


def heat_of(token: Token, colour_by: str | None) -> float | None:
    """The value that shades a token, in nats; None where it was not scored."""
    if colour_by == "nll":
        logprob = token.statistics.get("logprob")
        return None if logprob is None else -logprob
    return token.statistics.get(colour_by or "")


def details(piece: Piece, clauses: Sequence[str], decoder: Decoder) -> str:
    """All that is known of a piece's tokens, as a few lines of plain text."""
    blocks = [_token_details(token, clauses, decoder) for token in piece.tokens]
    if len(blocks) > 1:
        blocks.insert(0, f"“{piece.shown}” is made of {len(piece.tokens)} tokens")
    return "\n\n".join(blocks)


def _token_details(token: Token, clauses: Sequence[str], decoder: Decoder) -> str:
    lines = [f"{decoder.visible(token.id)}", f"token {token.index}   id {token.id}   {token.role}"]
    s = token.statistics
    rows = [
        (("entropy", _nats(s.get("entropy"))), ("KL", _nats(s.get("kl")))),
        (("log p", _nats(s.get("logprob"))), ("p", _share(s.get("logprob")))),
        (("log q", _nats(s.get("ref_logprob"))), ("q", _share(s.get("ref_logprob")))),
        (("rank", str(s["rank"]) if "rank" in s else ""), ("ref rank", str(s["ref_rank"]) if "ref_rank" in s else "")),
    ]
    for pair in rows:
        line = "".join(f"{name:<9}{value:<12}" for name, value in pair if value).rstrip()
        lines += [line] if line else []
    if "topk_ids" in s:
        choices = zip(s["topk_ids"][:5], s["topk_logprobs"][:5], strict=True)
        lines.append("likeliest " + "  ".join(f"{decoder.visible(i)} {exp(p):.1%}" for i, p in choices))
    elif "top1_id" in s:
        lines.append(f"likeliest {decoder.visible(s['top1_id'])} {_share(s.get('top1_logprob'))}")
    return "\n".join([*lines, *_decision(token, clauses)])


def _decision(token: Token, clauses: Sequence[str]) -> list[str]:
    if not token.is_target:
        return ["context: not learned"]
    if token.dropped:
        return [f"dropped by {n + 1}  {clauses[n]}" for n in token.clauses if n < len(clauses)] or ["dropped"]
    return ["learned (the rule never drops it)" if token.protected else "learned"]


def _span(piece: Piece, clauses: Sequence[str], decoder: Decoder, colour_by: str | None, darkest: float) -> str:
    classes = ["t"] if piece.is_target else ["t", "x"]
    if piece.dropped:
        classes += ["d", clause_class(piece.clauses)]
    elif piece.protected:
        classes.append("p")
    heats = [v for t in piece.tokens if (v := heat_of(t, colour_by)) is not None] if colour_by else []
    # a square root, as most values are small: half the shades go to the lowest quarter
    if heats and (level := int(_LEVELS * min(max(0.0, max(heats)) / darkest, 0.999) ** 0.5)):
        classes.append(f"h{level}")
    text = escape(visible(piece.text, newline="\n") or "∅").replace("\n", '<i class="n"></i>\n')
    if piece.text and not piece.text.strip(" "):
        text = f'<i class="s">{piece.text}</i>'  # the style sheet draws the dots: copied text has its spaces
    return f'<span class="{" ".join(classes)}" data-tip="{_attribute(details(piece, clauses, decoder))}">{text}</span>'


def as_markdown(text: str) -> str:
    """Markdown that shows a text as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def clause_class(clauses: Sequence[int]) -> str:
    """The style of tokens dropped by these clauses."""
    return "cm" if len(clauses) > 1 else f"c{min(clauses[0], _STYLED_CLAUSES - 1)}" if clauses else "c0"


def _attribute(text: str) -> str:
    # the app's sanitizer drops attributes that hold the likes of </script> or -->: nothing visible comes between
    text = text.replace("<", f"<{_ZERO_WIDTH_SPACE}").replace(">", f"{_ZERO_WIDTH_SPACE}>")
    return escape(text, quote=True).replace("\n", "&#10;")


def _head(view: SequenceView) -> str:
    row = f", dataset row {view.row:,}" if view.row != view.number else ""
    cut = "<span>truncated</span>" if view.truncated else ""
    share = f" ({view.dropped / view.targets:.1%})" if view.targets else ""
    caveat = f"<span>{escape(view.caveat)}</span>" if view.caveat else ""
    return (
        f'<div class="ts-head"><span><b>row {view.number:,}</b>{row}</span>{cut}<span>{len(view):,} tokens</span>'
        f"<span>{view.targets:,} targets</span><span><b>{view.kept:,}</b> learned</span>"
        f"<span><b>{view.dropped:,}</b> dropped{share}</span>{caveat}</div>"
    )


def _legend(view: SequenceView, colour_by: str | None, darkest: float) -> str:
    entries = ['<span><span class="t x">context</span></span>', '<span><span class="t">learned</span></span>']
    if view.protected.any():
        entries.append('<span><span class="t p">never dropped</span></span>')
    reasons = [int(r) for r in view.reason]
    for number, clause in enumerate(view.clauses):
        count = sum(1 for r in reasons if r >> number & 1)
        sample = f'<span class="t d {clause_class([number])}">{number + 1}</span>'
        entries.append(f"<span>{sample}<code>{escape(clause)}</code> {count:,}</span>")
    if several := sum(1 for r in reasons if r & (r - 1)):
        entries.append(f'<span><span class="t d cm">+</span>several {several:,}</span>')
    if colour_by:
        entries.append(f'<span>{HEAT[colour_by]} 0<span class="ts-ramp"></span>{darkest:.3g} nats or more</span>')
    heat = " heat" if colour_by else ""
    return f'<div class="ts-legend{heat}">{"".join(entries)}</div>'


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _share(logprob: float | None) -> str:
    return "" if logprob is None else f"{exp(logprob):.2%}"
