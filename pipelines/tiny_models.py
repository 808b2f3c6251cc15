"""Small random models of every architecture that transformers offers, to try scoring on: seconds each, no download.

A configuration starts from its class's defaults and is made small by name; what an architecture wants besides is in ``OWN``.
"""

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 331
"""Odd on purpose: no block of columns ends where the vocabulary does."""

_SIZES = {
    VOCABULARY: "vocab_size",
    64: "hidden_size d_model n_embd embed_dim n_embed dim word_embed_proj_dim embedding_size lru_width",
    96: "intermediate_size ffn_dim d_ff ffn_hidden_size n_inner dff encoder_ffn_dim decoder_ffn_dim dim_ff feed_forward_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers "
    "num_key_value_heads num_kv_heads num_experts_per_tok moe_topk top_k_experts linear_num_key_heads index_n_heads",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
    "n_routed_experts num_local_experts mamba_n_heads mamba_num_heads linear_num_value_heads conv_kernel "
    "num_encoder_attention_heads num_decoder_attention_heads",
    8: "state_size mamba_d_state mamba_dt_rank ssm_state_size time_step_rank rotary_dim",
    16: "head_dim attention_head_size kv_channels qk_rope_head_dim qk_nope_head_dim v_head_dim chunk_size mamba_chunk_size "
    "linear_key_head_dim linear_value_head_dim index_head_dim index_topk",
    24: "sliding_window attention_window attention_window_size",
    32: "moe_intermediate_size q_lora_rank kv_lora_rank qk_head_dim mamba_d_head mamba_head_dim "
    "shared_expert_intermediate_size",
    256: "max_position_embeddings n_positions n_ctx max_seq_len",
    1: "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace n_groups mamba_n_groups bos_token_id "
    "decoder_start_token_id",
    0: "pad_token_id",
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()} | {"eos_token_id": 2}

_LATENT = {"num_key_value_heads": 4}
"""Latent attention gives every head its own keys."""
_DECODER = {"is_decoder": True}
_TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_OWN_LAYERS = {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY}
_INDEXER = {"budget": 32, "compress_ratio": 4, "n_heads": 2, "kv_heads": 1, "head_dim": 16}

_SHARED: list[tuple[str, dict[str, Any]]] = [
    ("axk1 axk2 bailing_hybrid deepseek_v3 deepseek_v32 dots3_note dots3_note_text glm4_moe_lite", _LATENT),
    ("glm_moe_dsa kimi_linear longcat_flash minicpm3 youtu", _LATENT),
    ("bert bert-generation camembert data2vec-text electra ernie megatron-bert rembert roberta", _DECODER),
    ("roberta-prelayernorm roformer xlm-roberta xlm-roberta-xl", _DECODER),
    ("hunyuan_v1_dense hunyuan_v1_moe ministral", {"head_dim": 16}),
    ("gemma3n gemma3n_text gemma4 gemma4_text", _OWN_LAYERS),
    ("qwen4_exp qwen4_exp_text", {f"indexer_{name}": size for name, size in _INDEXER.items()}),
]
OWN: dict[str, dict[str, Any]] = {kind: own for kinds_, own in _SHARED for kind in kinds_.split()} | {
    "big_bird": _DECODER | {"attention_type": "original_full"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "cpmant": {"dim_head": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 128},
    "git": {"vision_config": _TOWER},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 24},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_hidden_layers": 2},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal": {
        "vision_config": _TOWER,
        "audio_config": _TOWER | {"num_blocks": 1, "ext_pw_out_channel": 32},
    },
    "prophetnet": {"num_encoder_layers": 1, "num_decoder_layers": 2, "num_hidden_layers": None},
    "reformer": _DECODER
    | {
        "num_hidden_layers": 2,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds": False,
        "num_buckets": 4,
        "max_position_embeddings": 1024,
    },
    "roc_bert": _DECODER
    | {"shape_vocab_size": 50, "pronunciation_vocab_size": 50, "shape_embed_dim": 16, "pronunciation_embed_dim": 16},
    "xlm": {"causal": True, "emb_dim": 64},
    "xlnet": {"d_model": 64, "d_head": 16, "d_inner": 96, "n_head": 4, "n_layer": 2, "max_position_embeddings": None},
    "xmod": _DECODER | {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "attention_hidden_size": 128,
        "mamba_headdim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture wants besides sizes; None: a size that it must not be given."""

NOT_BUILT = {
    "blt": "reads bytes in patches, each of which a model of its own chooses",
    "emu3": "the text model has no class of its own to load",
    "mllama": "the text model has no class of its own to load",
    "musicgen": "codes of sound, not text",
    "musicgen_melody": "codes of sound, not text",
    "gemma4_assistant": "a draft model that reads another model's states",
}
"""Kinds that AutoModelForCausalLM lists and that no text can be scored with, and why."""


def kinds() -> list[str]:
    """The architectures that ``AutoModelForCausalLM`` knows, by their type."""
    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in NOT_BUILT]


def tiny_config(kind: str, **changes: Any) -> PretrainedConfig:
    """A small configuration of one architecture; ``changes`` go over everything."""
    defaults = CONFIG_MAPPING[kind]().get_text_config()
    cls = type(defaults)
    own = {name: size for name, size in _SMALL.items() if _is_set(defaults, cls, name)} | OWN.get(kind, {}) | changes
    layers = getattr(defaults, "layer_types", None)
    if layers and "layer_types" not in own and not hasattr(cls, "layers_block_type") and _has_setter(cls, "layer_types"):
        different = list(dict.fromkeys(layers))
        own["layer_types"] = (different * 2)[: max(2, len(different))]
        own["num_hidden_layers"] = len(own["layer_types"])
    return cls(**{name: value for name, value in own.items() if value is not None})


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model whose logits spread as a trained one's do, in evaluation mode, float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).eval()
        ids = torch.randint(3, VOCABULARY, (1, 40))
        with torch.no_grad():
            for parameter in model.parameters():  # some architectures leave parts at values that only a checkpoint fills
                if not parameter.isfinite().all() or parameter.abs().max() > 1e4:
                    parameter.normal_(0.0, 0.02)
            spread = model(input_ids=ids, use_cache=False).logits.std()
            head = model.get_output_embeddings()
            if head is not None and spread > 0:
                head.weight.mul_(float((3.0 / spread).clamp(0.1, 20.0)))
    return model


def moved(model: PreTrainedModel, share: float = 0.05, seed: int = 1) -> None:
    """Move each weight of a model by a share of their spread, in place: a policy after a short fine-tune."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * share)


def _is_set(defaults: PretrainedConfig, cls: type, name: str) -> bool:
    if not _has_setter(cls, name):
        return False
    try:
        return getattr(defaults, name, None) is not None
    except Exception:  # a number that differs by layer: the configuration asks for more than a name
        return True


def _has_setter(cls: type, name: str) -> bool:
    found = getattr(cls, name, None)
    return not isinstance(found, property) or found.fset is not None
