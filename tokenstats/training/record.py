"""What is recorded of a run beside its weights: provenance, models, and the options as they took effect."""

from typing import Any

from tokenstats.options import to_dict
from tokenstats.store.manifests import Model
from tokenstats.training.data import TrainingData
from tokenstats.training.models import TrainableModel
from tokenstats.training.provenance import provenance, without_folders
from tokenstats.training.request import Request

Record = dict[str, Any]


def record_of(request: Request, data: TrainingData, loaded: TrainableModel, reference: Model | None, devices: int) -> Record:
    """The record of a run, as JSON: a plain dictionary."""
    rows, follow = data.train, request.follow
    return {
        **provenance(request.store, request.mask, rows=len(rows), left_out=data.left_out, kept=rows.learned_tokens),
        "base_model": _described(loaded.description),
        "reference": _described(reference) if reference is not None else None,
        "follow": {"rule": dict(follow.rule), "fingerprint": follow.fingerprint} if follow is not None else None,
        "training": _settings(request, loaded, devices),
        "eval_rows": len(data.evaluation) if data.evaluation else 0,
    }


def _described(model: Model) -> Record:
    return {**model.model_dump(mode="json"), "source": without_folders(model.source)}


def _settings(request: Request, loaded: TrainableModel, devices: int) -> Record:
    """The options as they took effect; what is given away tells no folder."""
    options = request.options
    folders = {name: getattr(options, name) for name in ("reference", "reference_cache")}
    return {
        **to_dict(options),
        **{name: without_folders(path) if path is not None else None for name, path in folders.items()},
        "dtype": loaded.precision,
        "devices": devices,
        "loss": options.loss_formula(request.weighted),
    }
