"""The model of a training run: loaded, given an adapter where one is asked for, and checked against the store."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tokenstats.errors import InputError, StoreError, TokenstatsWarning, argument, one_line
from tokenstats.modeling.folders import is_adapter, local_folder
from tokenstats.modeling.head import SplitModel
from tokenstats.modeling.load import load_model
from tokenstats.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from tokenstats.store import Store
from tokenstats.store.manifests import Model
from tokenstats.training.data import TrainingData
from tokenstats.training.isolation import check_isolation, sequences_to_try
from tokenstats.training.options import ALL_LINEAR, TrainOptions

_PROBE_TOKENS = 32


@dataclass(frozen=True)
class TrainableModel:
    """A model on its device, its halves, and a description of what it was before training."""

    model: PreTrainedModel
    split: SplitModel
    description: Model
    precision: str


def load_trainable(
    source: str, options: TrainOptions, device: torch.device, autocast: bool, store: Store, data: TrainingData
) -> TrainableModel:
    """Load a model for training. Raises InputError where it does not fit the store's tokens, cannot take the adapter, or mixes
    the sequences of one row where they shall share one.

    autocast: compute in bfloat16. Weights that are trained are float32 all the same: their steps are smaller than
              bfloat16 resolves. Frozen ones, below an adapter, are kept in bfloat16.
    """
    folder = local_folder(source)
    on_adapter = folder is not None and is_adapter(folder)
    if options.is_lora:
        _check_lora(source, on_adapter)
    dtype = "bfloat16" if autocast and options.is_lora else "float32"
    loaded = load_model(source, dtype, device, options.attention, options.trust_remote_code)
    model: PreTrainedModel = loaded.model
    if on_adapter:
        model = model.merge_and_unload()
    _check_fits(model, source, store, data)
    model.requires_grad_(True)
    if options.is_lora:
        model = _with_adapter(model, options)
    split = SplitModel(model, float32_head=False)
    probe = torch.from_numpy(data.train.ids[:_PROBE_TOKENS]).long()[None].to(device)
    split.check(probe)
    if not split.is_split:
        warnings.warn(f"{source} is trained through its own full logits: more memory", TokenstatsWarning, stacklevel=2)
    if options.padding_free:
        most_tokens = options.batch_tokens or options.batch_size * data.train.longest
        check_isolation(split, sequences_to_try(data.train, most_tokens), source, autocast)
        split.padding_free = True
    if options.compiled:
        model.get_decoder().compile(dynamic=True)
    return TrainableModel(model, split, loaded.description, "bfloat16" if autocast else "float32")


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
            "other words; train a model with the same tokenizer, or compute a store with this one"
        )


def _check_lora(source: str, on_adapter: bool) -> None:
    if find_spec("peft") is None:
        raise InputError(f"{argument('lora_rank')} was given, but peft is not installed; pip install 'tokenstats[peft]'")
    if on_adapter:
        raise InputError(
            f"{source} is an adapter, and an adapter cannot be put on another: its base would be nowhere saved; "
            f"train the whole model (no {argument('lora_rank')}: the adapter is merged), or an adapter of its base model"
        )


def _check_fits(model: PreTrainedModel, source: str, store: Store, data: TrainingData) -> None:
    width, size = model.get_input_embeddings().num_embeddings, store.manifest.tokenizer.size
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
        lora_alpha=options.lora_alpha or 2 * (options.lora_rank or 0),
        lora_dropout=options.lora_dropout,
        target_modules=targets if targets == ALL_LINEAR else [name.strip() for name in targets.split(",")],
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"no adapter can be put on {argument('lora_targets')} {one_line(targets, 80)!r}: {one_line(error, 150)}"
        ) from None
