"""Load a causal language model, adapters included, and say exactly which weights it has."""

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenstats.errors import InputError, argument, one_line
from tokenstats.modeling.first_calls import make_first_calls
from tokenstats.modeling.folders import OWN_CODE, adapter_base, local_folder, wants_own_code
from tokenstats.modeling.positions import forget_widths
from tokenstats.store.manifests import Model

_NOT_THE_MODEL = ("tokenstats", "transformers_version", "name_or_path", "dtype", "use_cache")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its description for manifests."""

    model: PreTrainedModel
    description: Model
    weights: str = ""
    """Digest of the weights alone: models that differ in their configuration only have the same."""
    within: Callable[[], AbstractContextManager] = nullcontext
    """What every call of the model runs in: two that share their weights turn the adapter on and off."""


def pick_device(device: str, local_rank: int | None = None) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. Workers of one machine take its GPUs in turn."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda" if local_rank is None else f"cuda:{local_rank % torch.cuda.device_count()}")
    if device == "auto":
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"{argument('device', one_line(device, 60))} cannot be used: {one_line(error, 120)}; expected auto, cpu or cuda"
        ) from None
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """``auto`` is the checkpoint's own type on a GPU, and float32 on a CPU: there half precision loses digits for little."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, dtype)


def load_model(
    source: str,
    dtype: str,
    device: torch.device,
    attention: str | None = None,
    trust_remote_code: bool = False,
    four_bit: bool = False,
) -> LoadedModel:
    """Load a model folder, Hub id or adapter folder. Raises InputError where it is none.

    Args:
        source: The folder, or the id.
        dtype: auto, float32, bfloat16 or float16.
        device: Where it goes.
        attention: The implementation, by its name in transformers (sdpa, eager, flash_attention_2, …); None: its own choice.
        trust_remote_code: Run code that the model brings. Never asked on the terminal: a pipe would answer.
        four_bit: Keep its matrices but the output matrix in 4 bits (NF4 of bitsandbytes); what is computed has ``dtype``.
    """
    folder = local_folder(source)
    base = adapter_base(folder) if folder is not None else None
    model = _load_weights(base or source, dtype, device, attention, trust_remote_code, four_bit)
    if base is not None:
        model = _load_adapter(model, folder, source)
    model = (model if four_bit else model.to(device)).eval()
    forget_widths(model)
    return _described(model, source)


def is_adapter_of(source: str, base: str) -> bool:
    """Is ``source`` an adapter folder, and ``base`` the model that it names?"""
    folder = local_folder(source)
    named = adapter_base(folder) if folder is not None else None
    if named is None:
        return False
    here, there = local_folder(named), local_folder(base)
    return named == base if here is None or there is None else here.resolve() == there.resolve()


def load_with_base(
    adapter: str,
    base: str,
    dtype: str,
    device: torch.device,
    attention: str | None = None,
    trust_remote_code: bool = False,
    four_bit: bool = False,
    trainable: bool = False,
) -> tuple[LoadedModel, LoadedModel]:
    """An adapter and its base model, on one set of weights. ``trainable``: gradients reach the adapter's, and no others."""
    weights = _load_weights(base, dtype, device, attention, trust_remote_code, four_bit)
    plain = _described((weights if four_bit else weights.to(device)).eval(), base)
    model = _load_adapter(plain.model, local_folder(adapter), adapter, trainable).to(device).eval()
    forget_widths(model)
    return _described(model, adapter), LoadedModel(model, plain.description, plain.weights, model.disable_adapter)


def _described(model: PreTrainedModel, source: str) -> LoadedModel:
    inner = getattr(model, "get_base_model", lambda: model)()
    fingerprint, weights = model_fingerprint(model)
    return LoadedModel(
        model,
        Model(
            source=source,
            fingerprint=fingerprint,
            revision=getattr(model.config, "_commit_hash", None),
            architecture=type(inner).__name__,
            parameters=sum(p.numel() for p in model.parameters()),
        ),
        weights,
    )


def _load_weights(
    source: str, dtype: str, device: torch.device, attention: str | None, trust_remote_code: bool, four_bit: bool = False
) -> PreTrainedModel:
    make_first_calls()
    folder, wanted = local_folder(source), pick_dtype(dtype, device)
    quantised = _in_four_bits(wanted, device) if four_bit else {}
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder or source,
            dtype=wanted,
            local_files_only=folder is not None,
            output_loading_info=True,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            **quantised,
        )
    except Exception as error:  # transformers raises many kinds here
        if wants_own_code(error) and not trust_remote_code:
            raise InputError(f"{source} {OWN_CODE}") from None
        raise InputError(f"no causal language model can be loaded from {source}: {one_line(error, 150)}") from None
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"{source} lacks weights ({missing}, …): they would be random numbers; use a complete checkpoint")
    if four_bit:
        _keep_differentiable(model)
    return model


def _keep_differentiable(model: PreTrainedModel) -> None:
    """After a pass without gradient on a CPU, bitsandbytes keeps its matrices for a product that no gradient passes."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _in_four_bits(dtype: torch.dtype | str, device: torch.device) -> dict[str, Any]:
    """What loads a model's matrices as QLoRA keeps them (arXiv:2305.14314): NF4, their scales in 8 bits."""
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"{argument('load_in_4bit', True)} needs the library bitsandbytes; install it with: pip install bitsandbytes"
        )
    computed = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=computed
    )
    return {"quantization_config": quantised, "device_map": {"": device}}


def _load_adapter(model: PreTrainedModel, folder: Path | None, source: str, trainable: bool = False) -> PreTrainedModel:
    if find_spec("peft") is None:
        raise InputError(f"{source} is an adapter; install the extra that reads it: pip install 'tokenstats[peft]'")
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise InputError(f"{source}/adapter_config.json cannot be read: {one_line(error, 150)}") from None
    if getattr(config, "alora_invocation_tokens", None):
        raise InputError(
            f"{source} is an activated LoRA: which positions it changes depends on where its invocation tokens come last, so "
            "that later turns would change the numbers of earlier ones; take a plain LoRA"
        )
    if config.is_prompt_learning and config.task_type != "CAUSAL_LM":
        raise InputError(
            f"{source} is an adapter of kind {_kind_of(config)} for the task {config.task_type}: peft would leave its prompts "
            "out and run the bare base model; expected task_type CAUSAL_LM in its adapter_config.json"
        )
    try:
        with quiet_peft():
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as error:
        raise InputError(
            f"the {_kind_of(config)} adapter {source} cannot be put on its base model: {one_line(error, 150)}"
        ) from None


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Within the block peft says nothing of what users cannot mend, or what is dealt with.

    That is names that transformers gives up, and adapters on one of two matrices that are one.
    """
    with warnings.catch_warnings():
        for said in ("`is_gradient_checkpointing`", "Model (has|with) `tie_word", "Input and output embeddings are no longer"):
            warnings.filterwarnings("ignore", message=said)
        yield


def _kind_of(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def model_fingerprint(model: PreTrainedModel) -> tuple[str, str]:
    """Digests of configuration and weights, and of the weights alone.

    Of every tensor: its name, type, shape, the sum of its bits, and 64 of its elements. The sum is over integers, so it does
    not depend on the order of summation, the device or the number of threads.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_THE_MODEL and not k.startswith("_")}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in _plain_tensors(model.state_dict()):
        bits = tensor.detach().flatten()
        bits = bits.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
        some = bits[:: max(1, bits.numel() // 64)].cpu().numpy().tobytes()
        total = int(bits.sum(dtype=torch.int64))
        for each in (digest, weights):
            each.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {total} ".encode() + some)
    return digest.hexdigest(), weights.hexdigest()


def _plain_tensors(tensors: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """In order of their names; a quantised tensor as those that it is made of. What else a state holds is left out."""
    for name, tensor in sorted(tensors.items()):
        if hasattr(tensor, "__tensor_flatten__"):
            inner, _ = tensor.__tensor_flatten__()
            yield from _plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in inner})
        elif isinstance(tensor, Tensor):
            yield name, tensor
