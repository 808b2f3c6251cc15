"""What is recorded of a run beside its weights: provenance, models, and the options as they took effect."""

from typing import Any

from tokenstats.options import to_dict
from tokenstats.store.manifests import Model
from tokenstats.training.mixture import MixedRows
from tokenstats.training.models import TrainableModel
from tokenstats.training.provenance import joined_fingerprint, provenance, without_folders
from tokenstats.training.request import Request
from tokenstats.training.token_sets import masks_of_terms

Record = dict[str, Any]


def record_of(request: Request, rows: MixedRows, loaded: TrainableModel, reference: Model | None, devices: int) -> Record:
    """The record of a run, as JSON: a plain dictionary."""
    follow, evaluation = request.follow, rows.data.evaluation
    return {
        **_origin(request, rows),
        "base_model": _described(loaded.description),
        "reference": _described(reference) if reference is not None else None,
        "follow": {"rule": dict(follow.rule), "fingerprint": follow.fingerprint} if follow is not None else None,
        **_masks_of_terms(request),
        "training": _settings(request, loaded, devices),
        "eval_rows": len(evaluation) if evaluation else 0,
        **({"legs": list(request.leg.masks)} if request.leg is not None else {}),
    }


def _origin(request: Request, rows: MixedRows) -> Record:
    """Where the rows come from; of several stores each, with what all have in common."""
    each = [
        provenance(source.store, source.mask, rows=len(part.train), empty=part.empty, kept=part.train.learned_tokens)
        for source, part in zip(request.sources, rows.parts, strict=True)
    ]
    if len(each) == 1:
        return each[0]
    counted = ("targets", "rows", "rows_with_nothing_kept", "kept_tokens")
    common = ("tokenstats_version", "tokenizer_fingerprint", "template_fingerprint")
    return {
        **{name: each[0][name] for name in common},
        "store_fingerprint": request.fingerprint,
        "mask_fingerprint": joined_fingerprint([str(one["mask_fingerprint"]) for one in each]),
        "weighted": request.weighted,
        **{name: sum(one[name] for one in each) for name in counted},
        "mixture": [{"rows_in_epoch": count, **one} for count, one in zip(rows.mixture.counts, each, strict=True)],
    }


def _masks_of_terms(request: Request) -> Record:
    """Of terms that are over what another mask drops, that mask; of several stores each one's."""
    options = request.options
    of_stores = [masks_of_terms(options.entropy_on, options.kl_on, source.store) for source in request.sources]
    found = {option: joined_fingerprint([each[option] for each in of_stores]) for option in of_stores[0]}
    return {"masks_of_terms": found} if found else {}


def _described(model: Model) -> Record:
    return {**model.model_dump(mode="json"), "source": without_folders(model.source)}


def _settings(request: Request, loaded: TrainableModel, devices: int) -> Record:
    """The options as they took effect; what is given away tells no folder."""
    options = request.options
    folders = {name: getattr(options, name) for name in ("reference", "reference_cache")}
    return {
        **to_dict(options),
        "shares": list(options.shares) if options.shares is not None else None,
        **{name: without_folders(path) if path is not None else None for name, path in folders.items()},
        "dtype": loaded.precision,
        "devices": devices,
        "loss": options.loss_formula(request.weighted),
    }
