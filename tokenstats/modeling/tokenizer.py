"""Load a tokenizer and say exactly which one it is."""

import hashlib
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokenstats.errors import InputError, StoreError, one_line
from tokenstats.modeling.folders import OWN_CODE, adapter_base, local_folder, wants_own_code
from tokenstats.store.manifests import Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load_tokenizer(source: str, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, a Hub id, or an adapter (its own, else its base model's).

    Args:
        source: The folder, or the id.
        trust_remote_code: Run code that comes with it. Never asked on the terminal: a pipe would answer.
    """
    folder = local_folder(source)
    if folder is not None and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        base = adapter_base(folder)
        if base is None:
            raise InputError(
                f"{source} has no tokenizer ({', '.join(_TOKENIZER_FILES[:2])}); copy the one it was trained with there"
            )
        return load_tokenizer(base, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder or source, local_files_only=folder is not None, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers raises many kinds here
        if wants_own_code(error) and not trust_remote_code:
            raise InputError(f"the tokenizer of {source} {OWN_CODE}") from None
        raise InputError(f"no tokenizer can be loaded from {source}: {one_line(error, 150)}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{source} has a slow tokenizer, which does not say which characters a token covers; expected a fast one"
        )
    return tokenizer


def tokenizer_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the largest id: the real vocabulary. A model may have more columns, as padding."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Digest of the map from words to ids: with equal digests, ids mean the same words to both."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.blake2b(vocabulary.encode(), digest_size=16).hexdigest()


def tokenization_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Digest of how text becomes ids, merges and splitting included: equal digests write the same ids for every text."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {name: part for name, part in backend.items() if name not in ("padding", "truncation")}
    rules["eos"] = tokenizer.eos_token_id
    return hashlib.blake2b(json.dumps(rules, sort_keys=True).encode(), digest_size=16).hexdigest()


def describe_tokenizer(
    tokenizer: PreTrainedTokenizerFast, source: str, end_of_turn_ids: list[int], trust_remote_code: bool = False
) -> Tokenizer:
    """What a store's manifest says of its tokenizer."""
    return Tokenizer(
        source=source,
        fingerprint=tokenizer_fingerprint(tokenizer),
        size=tokenizer_size(tokenizer),
        bos_id=tokenizer.bos_token_id,
        end_of_turn_ids=tuple(end_of_turn_ids),
        special_ids=tuple(sorted(special_ids(tokenizer))),
        trust_remote_code=trust_remote_code,
    )


def special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids of all special tokens, those that were added too."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, template: str | None = None) -> None:
    """Write its files, with another chat template if one is given. Raises StoreError where the disk refuses."""
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = own if template is None else template
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exceptions for what the disk says
        raise StoreError(f"cannot write {folder}: {one_line(error, 120)}; free some space or mend its rights") from error
    finally:
        tokenizer.chat_template = own
