"""The model of a training run: loaded, given an adapter where one is asked for, and checked against the store."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tokenstats.errors import InputError, StoreError, TokenstatsWarning, argument, nearest, one_line
from tokenstats.modeling.folders import adapter_base, adapter_kind, is_adapter, local_folder
from tokenstats.modeling.head import SplitModel
from tokenstats.modeling.load import load_model, load_with_base, quiet_peft
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from tokenstats.store import Store
from tokenstats.store.manifests import Model
from tokenstats.training.data import TrainingData
from tokenstats.training.isolation import check_isolation, sequences_to_try
from tokenstats.training.options import ALL_LINEAR, TrainOptions

_PROBE_TOKENS = 32


@dataclass(frozen=True)
class TrainableModel:
    """A model on its device, and its halves.

    Attributes:
        description: What it was before training.
        below: What the model below an adapter is; of a whole model the same as ``description``.
        precision: What it is computed in.
    """

    model: PreTrainedModel
    split: SplitModel
    description: Model
    below: Model
    precision: str


def load_trainable(
    source: str, options: TrainOptions, device: torch.device, autocast: bool, store: Store, data: TrainingData
) -> TrainableModel:
    """Load a model for training.

    Args:
        source: A model folder, a Hub id, or an adapter folder.
        options: How it is trained.
        device: Where it goes.
        autocast: Compute in bfloat16. Weights that are trained are float32 all the same: their steps are smaller than bfloat16
            resolves. Frozen ones, below an adapter, are kept in bfloat16.
        store: Whose tokens it learns.
        data: The rows.

    Raises:
        InputError: It does not fit the store's tokens, cannot take the adapter, or mixes the sequences of one row where they
            shall share one.
    """
    model, description, below = _load(source, options, device, autocast)
    _check_fits(model, source, store, data)
    if not options.trains_adapter:
        model.requires_grad_(True)
    elif not options.continue_adapter:
        model = _with_adapter(model, options)
    if options.load_in_4bit and device.type == "cpu":
        costs = "what a base in 4 bits costs on a CPU, in time and in accuracy, was not measured"
        warnings.warn(costs, TokenstatsWarning, stacklevel=2)
    split = SplitModel(model, float32_head=False)
    probe = torch.from_numpy(data.train.ids[:_PROBE_TOKENS]).long()[None].to(device)
    split.check(probe)
    if not split.is_split:
        warnings.warn(f"{source} is trained through its own full logits: more memory", TokenstatsWarning, stacklevel=2)
    if options.padding_free:
        most_tokens = options.batch_tokens or (options.batch_size or 1) * data.train.longest
        check_isolation(split, sequences_to_try(data.train, most_tokens), source, autocast)
        split.padding_free = True
    if options.compiled:
        model.get_decoder().compile(dynamic=True)
    return TrainableModel(model, split, description, below, "bfloat16" if autocast else "float32")


def _load(source: str, options: TrainOptions, device: torch.device, autocast: bool) -> tuple[PreTrainedModel, Model, Model]:
    """The model, an adapter that is not trained on merged into it; what it is, and what is below the adapter."""
    folder = local_folder(source)
    on_adapter = folder is not None and is_adapter(folder)
    if options.trains_adapter:
        _check_adapter(source, options, on_adapter)
    dtype = "bfloat16" if autocast and options.trains_adapter else "float32"
    how = (dtype, device, options.attention, options.trust_remote_code, options.load_in_4bit)
    if options.continue_adapter and folder is not None:
        loaded, plain = load_with_base(source, adapter_base(folder) or source, *how, trainable=True)
        return loaded.model, loaded.description, plain.description
    loaded = load_model(source, *how)
    model = _merged(loaded.model, source) if on_adapter else loaded.model
    return model, loaded.description, loaded.description


def _merged(model: PreTrainedModel, source: str) -> PreTrainedModel:
    """An adapter's base with the adapter merged into it.

    Where the base has one matrix for both of its ends and the adapter changes one end, merging would change the other with it:
    they part, as they do in the model that was scored.
    """
    inner = model.get_base_model()
    ends = [end for end in (inner.get_input_embeddings(), inner.get_output_embeddings()) if end is not None]
    below = [getattr(end, "base_layer", end) for end in ends]
    parts = len(below) == 2 and below != ends and below[0].weight is below[1].weight
    if parts:
        below[1].weight = torch.nn.Parameter(below[1].weight.detach().clone())
    with quiet_peft():
        merged = model.merge_and_unload()
    if parts and torch.equal(below[0].weight, below[1].weight):  # the adapter has one change for both
        below[1].weight, merged.config.tie_word_embeddings = below[0].weight, True
    elif parts:
        warnings.warn(
            f"{source} changes one of two matrices that are one in its base: merged, they are two, trained and saved as such",
            TokenstatsWarning,
            stacklevel=2,
        )
    return merged


def load_store_tokenizer(store: Store, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that wrote the store, and the chat template that the model learns."""
    try:
        return AutoTokenizer.from_pretrained(store.tokenizer_folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds here
        raise StoreError(
            f"{store.tokenizer_folder} holds no readable tokenizer ({one_line(error, 100)}); "
            "run the 'tokenstats compute' that made the store again"
        ) from None


def check_tokenizer(store: Store, model: str, trust_remote_code: bool) -> None:
    """Raise InputError where the model's tokenizer is not the one that the store was written with."""
    tokenizer = load_tokenizer(model, trust_remote_code)
    found, expected = tokenizer_fingerprint(tokenizer), store.manifest.tokenizer.fingerprint
    if found != expected:
        raise InputError(
            f"{model} has another tokenizer ({found[:8]}) than {store.path} was written with ({expected[:8]}): its ids mean "
            "other words; take a model with the same tokenizer, or compute a store with this one"
        )


def _check_adapter(source: str, options: TrainOptions, on_adapter: bool) -> None:
    if find_spec("peft") is None:
        raise InputError("an adapter was to be trained, but peft is not installed; pip install 'tokenstats[peft]'")
    if on_adapter and not options.continue_adapter:
        raise InputError(
            f"{source} is an adapter, and an adapter cannot be put on another: its base would be nowhere saved; "
            f"train it on ({argument('continue_adapter', True)}), train the whole model (no {argument('lora_rank')}: the "
            "adapter is merged), or an adapter of its base model"
        )
    if options.continue_adapter and not on_adapter:
        raise InputError(
            f"{argument('continue_adapter', True)} got {source}, which is no adapter; expected a folder with an "
            f"adapter_config.json, or {argument('lora_rank')} for a new adapter"
        )
    if options.continue_adapter and (kind := adapter_kind(Path(source).expanduser())) != "LORA":
        raise InputError(f"{source} is an adapter of kind {one_line(kind, 40)}; only LoRA and DoRA can be trained on")


def _check_fits(model: PreTrainedModel, source: str, store: Store, data: TrainingData) -> None:
    width, size = len(model.get_input_embeddings().weight), store.manifest.tokenizer.size
    if width < size:
        raise InputError(
            f"{source} knows {width} tokens, but the store's tokenizer has {size}; expected a model whose vocabulary covers it"
        )
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(data.train.longest, data.evaluation.longest if data.evaluation else 0)
    if most and longest > most:
        raise InputError(
            f"the longest sequence has {longest} tokens, but {source} reads at most {most}; "
            f"compute a store with {argument('max_length', most)} or less"
        )


def _with_adapter(model: PreTrainedModel, options: TrainOptions) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    targets = options.lora_targets
    transformers.set_seed(options.seed)  # the adapter's first weights are random
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=int(alpha) if float(alpha := options.resolved.lora_alpha or 0.0).is_integer() else alpha,
        lora_dropout=options.lora_dropout,
        use_dora=options.dora,
        target_modules=targets if targets == ALL_LINEAR else [name.strip() for name in targets.split(",")],
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_peft():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"no adapter can be put on {argument('lora_targets')} {one_line(targets, 80)!r}: {one_line(error, 150)}"
        ) from None
    _check_all_targets_are_there(adapted, targets)
    return adapted


def _check_all_targets_are_there(model: PreTrainedModel, targets: str) -> None:
    """Raise InputError for a name that is no module: peft passes over it where another one is."""
    there = model.base_model.targeted_module_names
    for name in [] if targets == ALL_LINEAR else (name.strip() for name in targets.split(",")):
        if not any(module == name or module.endswith(f".{name}") for module in there):
            ends = sorted({module.rpartition(".")[2] for module, _ in model.get_base_model().named_modules() if "." in module})
            raise InputError(
                f"{argument('lora_targets')} got {one_line(name, 40)!r}, which no module of the model is called"
                f"{nearest(name, ends)}; expected names such as q_proj, or {ALL_LINEAR}"
            )
