"""What is said about a store: its dataset, its scorings with their means, its masks with what they drop."""

from collections.abc import Iterable, Iterator

from tokenstats.inspect.audit.audit import Share
from tokenstats.inspect.render.blocks import NAMES, Block, Cell, Facts, Line, Look, Note, Shares, Table, share_of
from tokenstats.masking.rule import rule_text
from tokenstats.store import Store
from tokenstats.store.families import Family, Mask, Scoring
from tokenstats.store.manifests import MaskManifest, Model, StoreManifest

_MEANS = ("entropy", "kl", "logprob")


def store_blocks(store: Store) -> Iterator[Block]:
    """The whole store, for who sees it for the first time. Raises StoreError where a manifest is damaged or was lost."""
    for families in (store.scorings, store.masks):
        families.check_all_listed()  # else one that lost its manifest would be left out without a word
    yield Line(str(store.path), "one tokenized dataset, with scorings and masks of it")
    yield store_facts(store.manifest)
    yield _scorings(store.scorings.values()) if store.scorings else Note("no scoring yet: tokenstats compute makes one")
    yield _masks(store.masks.values()) if store.masks else Note("no mask yet: tokenstats mask makes one")


def family_blocks(family: Family) -> Iterator[Block]:
    """One scoring or mask."""
    manifest = family.manifest
    if isinstance(manifest, MaskManifest):
        yield Line(f"mask {family.name}", rule_text(manifest.rule))
        yield Facts(list(_mask_facts(manifest)))
        if manifest.clauses:
            yield Shares("clause", [Share(c.text, manifest.targets, c.dropped) for c in manifest.clauses], numbered=True)
    else:
        yield Line(f"scoring {family.name}", f"of {family.store.path}")
        scored = ("scored", f"{manifest.scored:,} tokens on {manifest.device}")
        yield Facts([*_scoring_facts(family), scored, *(("note", note) for note in manifest.notes)])


def store_facts(store: StoreManifest, scoring: Scoring | None = None) -> Facts:
    """What was tokenized, and which models scored it."""
    data, share = store.dataset, share_of(store.targets, store.tokens)
    return Facts(
        [
            ("dataset", f"{data.source} ({data.shape}), {data.rows:,} rows"),
            ("sequences", f"{store.sequences:,}"),
            ("tokens", f"{store.tokens:,}"),
            ("targets", f"{store.targets:,} ({share:.1%}), found by: {store.template.targets}"),
            *(_scoring_facts(scoring) if scoring is not None else []),
        ]
    )


def _scoring_facts(scoring: Scoring) -> list[tuple[str, str]]:
    manifest = scoring.manifest
    models = [("scored model", manifest.model), ("reference", manifest.reference)]
    means = ", ".join(f"{NAMES[c]} {manifest.means[c]:.4f}" for c in _MEANS if c in manifest.means)
    return [
        ("scoring", f"{scoring.name}, {manifest.dtype}, vocabulary {manifest.vocabulary:,}"),
        *((name, _model(model)) for name, model in models if model is not None),
        ("means (nats)", means),
    ]


def _mask_facts(manifest: MaskManifest) -> Iterator[tuple[str, str]]:
    share = share_of(manifest.dropped, manifest.targets)
    yield "targets", f"{manifest.targets:,}"
    yield "learned", f"{manifest.kept:,}"
    yield "dropped", f"{manifest.dropped:,} ({share:.1%})"
    if manifest.protected:
        yield "protected", f"{manifest.protected:,} more would be dropped, but are protected"
    yield "made from", ", ".join(manifest.scorings) or "the tokens alone"
    yield from ((f"threshold of {text}", f"{value:.6g}") for text, value in manifest.thresholds.items())
    if manifest.weight_total is not None:
        yield "mean weight", f"{manifest.weight_total / max(1, manifest.kept):.4f} of the tokens that are learned"


def _scorings(scorings: Iterable[Scoring]) -> Table:
    rows = []
    for scoring in scorings:
        means, reference = scoring.manifest.means, scoring.manifest.reference
        models = scoring.manifest.model.source + (f" against {reference.source}" if reference is not None else "")
        rows.append([scoring.name, models, *(f"{means[c]:.4f}" if c in means else "–" for c in _MEANS)])
    return Table("scorings, with means in nats", ("", "", *(NAMES[c] for c in _MEANS)), rows, numbers=(2, 3, 4))


def _masks(masks: Iterable[Mask]) -> Table:
    rows: list[list[str | Cell]] = []
    for mask in masks:
        share = share_of(mask.manifest.dropped, mask.manifest.targets)
        rows.append([mask.name, Cell(f"{share:.1%}", bar=share), Cell(rule_text(mask.manifest.rule), Look.CODE)])
    return Table("masks, with the share of targets that each drops", (), rows)


def _model(model: Model) -> str:
    return f"{model.source} ({model.architecture}, {model.parameters:,} parameters)"
