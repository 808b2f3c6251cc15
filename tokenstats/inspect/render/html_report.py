"""The report's page: HTML without scripts, links relative, everything escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from tokenstats.inspect.render.html_tokens import style
from tokenstats.store.manifests import Model, ScoringManifest, StoreManifest

_MOST_TABS = 40
# nothing runs and nothing is fetched, even if a text slipped through the escaping
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:"


@dataclass(frozen=True)
class Picture:
    """A figure that lies beside the page, its size in pixels; ``caption`` says how to read it."""

    path: str
    alt: str
    caption: str
    width: int
    height: int

    def html(self) -> str:
        caption = f"<figcaption>{escape(self.caption)}</figcaption>"
        size = f'width="{self.width}" height="{self.height}"'  # known beforehand: the page does not jump while it loads
        return f'<figure><img src="{escape(self.path)}" alt="{escape(self.alt)}" {size}>{caption}</figure>'


@dataclass(frozen=True)
class Example:
    """One sequence in several views: (name of the view, token view)."""

    title: str
    views: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A part of the page; ``body`` is HTML."""

    anchor: str
    title: str
    body: str


def page(title: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page; the first section stands under the page's own title."""
    report_style = (files("tokenstats.inspect.render") / "report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{escape(s.anchor)}">{escape(s.title)}</a>' for s in sections)
    body = "".join(f'<section id="{escape(s.anchor)}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections[1:])
    first = sections[0]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f"<style>\n{report_style}{_tab_rules()}{style()}</style></head>\n<body><nav><div>{links}</div></nav><main>"
        f'<section id="{escape(first.anchor)}"><h1>{escape(title)}</h1>{first.body}</section>{body}'
        f"<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def facts(store: StoreManifest, scoring: str | None, manifest: ScoringManifest | None) -> str:
    """What was tokenized, and which models scored it."""
    data = store.dataset
    share = store.targets / max(1, store.tokens)
    rows = [
        ("dataset", f"{data.source} ({data.shape}), {data.rows:,} rows"),
        ("sequences", f"{store.sequences:,}"),
        ("tokens", f"{store.tokens:,}"),
        ("targets", f"{store.targets:,} ({share:.1%}), found by: {store.template.targets}"),
    ]
    if manifest is not None:
        names = {"entropy": "entropy", "kl": "KL", "logprob": "log p"}
        means = ", ".join(f"{name} {manifest.means[c]:.4f}" for c, name in names.items() if c in manifest.means)
        rows.append(("scoring", f"{scoring}, {manifest.dtype}, vocabulary {manifest.vocabulary:,}"))
        rows.append(("scored model", _model(manifest.model)))
        rows += [("reference", _model(manifest.reference))] if manifest.reference else []
        rows.append(("means (nats)", means))
    return '<dl class="ts-facts">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"


def examples_html(examples: Sequence[Example]) -> str:
    """Each example with one tab per view; the tabs are radio buttons, so no script is needed."""
    out = []
    for number, example in enumerate(examples):
        tabs = panels = ""
        for i, (name, html) in enumerate(example.views[:_MOST_TABS]):
            own = f"ex{number}-{i}"
            checked = " checked" if i == 0 else ""
            tabs += f'<input type="radio" name="ex{number}" id="{own}"{checked}><label for="{own}">{escape(name)}</label>'
            panels += f'<div class="panel p{i}">{html}</div>'
        out.append(f'<h3>{escape(example.title)}</h3><div class="tabs">{tabs}{panels}</div>')
    return "".join(out)


def _tab_rules() -> str:
    shown = ", ".join(f".tabs > input:nth-of-type({i + 1}):checked ~ .p{i}" for i in range(_MOST_TABS))
    return f"{shown} {{ display: block; }}\n"


def _model(model: Model) -> str:
    return f"{model.source} ({model.architecture}, {model.parameters:,} parameters)"
