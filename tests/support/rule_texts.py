"""Texts of rules: hypothesis strategies for valid ones, and a generator of valid, broken and hostile ones."""

import random
import string

from hypothesis import strategies as st

COLUMNS = ["entropy", "kl", "nll", "prob", "ppl", "position", "turn", "length", "token_id", "ref_nll", "warm.entropy"]
SCOPES = ["dataset", "sequence", "turn", "role"]

numbers = st.one_of(st.integers(0, 10**6).map(str), st.floats(0, 100, allow_nan=False).map(repr))
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
columns = st.sampled_from([*COLUMNS, 'stats["warm"].kl', 'stats["Qwen3-8B"].entropy'])


def value_texts(columns: st.SearchStrategy[str] = columns) -> st.SearchStrategy[str]:
    """Texts that are numbers."""
    return st.recursive(
        st.one_of(numbers, columns),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(st.sampled_from(["abs({})", "-{}", "+{}", "following({})", "clip({}, -1, 7.50)"]), inner).map(
                lambda t: t[0].format(t[1])
            ),
            st.tuples(
                st.sampled_from(["quantile({}, 0.50, per={})", "zscore({}, per={})", "minmax({}, per={})"]),
                inner,
                st.sampled_from(SCOPES),
            ).map(lambda t: t[0].format(*t[1:])),
            st.tuples(inner, st.sampled_from(SCOPES)).map(lambda t: f"percent_rank({t[0]}, per={t[1]})"),
        ),
        max_leaves=6,
    )


def boolean_texts(columns: st.SearchStrategy[str] = columns) -> st.SearchStrategy[str]:
    """Texts that are conditions."""
    values = value_texts(columns)
    return st.recursive(
        st.one_of(
            st.tuples(values, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), values).map(" ".join),
            st.tuples(st.sampled_from(["top", "bottom"]), values, st.sampled_from(["0.2", "5"]), st.sampled_from(SCOPES)).map(
                lambda t: f"{t[0]}({t[1]}, {t[2]}, per={t[3]})"
            ),
            st.sampled_from(["is_special", "following(is_special)", "random(0.1, seed=3)", "random(0.3, per=role)"]),
            st.sampled_from(["role == 'assistant'", "role != 'tool'", "'user' == role", "token_class == 'digits'"]),
            texts.map(lambda text: f"part_of({text!r})"),
            st.tuples(texts, texts).map(lambda pair: f"between({pair[0]!r}, {pair[1]!r})"),
        ),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda v: f"not {v}"),
            inner.map(lambda v: f"following({v})"),
            st.tuples(values, st.sampled_from(SCOPES), inner).map(lambda t: f"top({t[0]}, 0.3, among={t[2]}, per={t[1]})"),
        ),
        max_leaves=6,
    )


VALID = [
    "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)",
    "top(following(entropy), 0.2, per=turn) and not is_special",
    "zscore(nll, per=sequence) > 2 or percent_rank(entropy, per=role) >= 0.9",
    "role == 'assistant' and 0.5 <= entropy < 1.5",
    'stats["Qwen3-8B"].entropy > quantile(warm.kl, 0.9)',
    "random(0.25, per=sequence, seed=7)",
    "top(entropy, 0.2, per=sequence, among=is_special or kl > 1) or random(0.1, among=entropy > 1, seed=2)",
    "between('<think>', '</think>') and not part_of('####') or token_class == 'digits'",
    "clip(nll - ref_nll, -1e3, 1_000) > log(exp(sqrt(abs(kl)))) / 2",
]
WORDS = [*VALID[0].split(), *COLUMNS, *SCOPES, "top(", "bottom(", "zscore(", "following(", "clip(", ")", "(", ",", "per=", "="]
WORDS += ["between(", "part_of(", "token_class", "'<think>'", "'####'", "'\\n'"]
WORDS += ["seed=", "and", "or", "not", "<", ">=", "==", "0.2", "1", "1e999", "-", "*", "/", "**", "//", "%", "@", "~", "^", ":"]
WORDS += [
    "if",
    "else",
    "lambda",
    "await",
    "yield",
    "import",
    "True",
    "None",
    "'a'",
    '"',
    "'",
    "\\",
    "#",
    "\n",
    "\r",
    "\t",
    "\x00",
]
WORDS += [
    "\ud800",
    "é",
    "ﬁ",
    "½",
    "𝟐",
    "\u202e",
    "\u2028",
    "🙂",
    "[",
    "]",
    "{",
    "}",
    ".",
    "...",
    ";",
    "stats[",
    "f'",
    "{x!r:\\n}'",
]
WORDS += ["__class__", "0x", "1j", "1_0", "b''", ":=", "->", "!", "?", "$", "`", "9" * 30, "0" * 50, "is_special", "role"]
DEEP = [
    lambda n: "top(" * n + "entropy" + ", 0.2)" * n,
    lambda n: "following(" * n + "entropy" + ")" * n + " > 1",
    lambda n: "(" * n + "is_special" + ")" * n,
    lambda n: "not " * n + "is_special",
    lambda n: "-" * n + "entropy > 0",
    lambda n: "9" * n + " > entropy",
    lambda n: "0." + "3" * n + " > entropy",
    lambda n: "1" + "+1" * n + " > entropy",
    lambda n: "is_special" + " or is_special" * n,
    lambda n: "1 <" * n + " entropy",
    lambda n: "entropy" + ".entropy" * n + " > 1",
    lambda n: "[" * n,
    lambda n: "f'" + "{" * n,
    lambda n: "é" * n,
    lambda n: "entropy > 1" + " " * n,
]


def random_text(rng: random.Random) -> str:
    """A valid rule, a mutated one, a chain of words, noise, or one shape over and over."""
    kind = rng.random()
    if kind < 0.01:
        return rng.choice(DEEP)(rng.choice([1, 5, 40, 60, 120, 900, 10_000]))
    if kind < 0.2:
        return "".join(rng.choice(string.printable + "é½\u202e\x00") for _ in range(rng.randrange(40)))
    if kind < 0.5:
        return rng.choice(["", " "]).join(rng.choice(WORDS) for _ in range(rng.randrange(12)))
    text = rng.choice(VALID)
    for _ in range(rng.randrange(4)):
        place, length = rng.randrange(len(text) + 1), rng.randrange(6)
        new = rng.choice([rng.choice(WORDS), rng.choice(string.printable), "", text[place : place + 20]])
        text = text[:place] + new + text[place + length :]
    return text
