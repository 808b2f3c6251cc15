"""How far a policy has taken on the wording of its SFT rows. Exploratory: added when the first results had been seen."""

import re
from collections.abc import Iterable
from functools import cache

from pipelines.study.design import ARMS, PRIMARY, SEEDS, Run
from pipelines.study.measures import FEW_PROMPTS, FEW_SAMPLES, Policy, problems_for
from pipelines.study.results import Results
from pipelines.study.runner import Runner
from pipelines.wordings import NEW_STYLE, STYLES, TAILS

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
_PLACE = re.compile(r"\\\{(\w+)\\\}")  # as re.escape leaves it
_SEED = 600


def wording_plan(base: str) -> Iterable[Run]:
    """The policies that RL starts from, which are kept, arms side by side."""
    arms = [arm for arm in ARMS if arm.starts_rl]
    return (Run(base, PRIMARY, arm, seed) for seed in SEEDS for arm in arms if arm.passes != 0 or seed == SEEDS[0])


def do_wording(runs: Iterable[Run], runner: Runner, results: Results) -> None:
    """Measure the policies that have results; those that are gone are trained again."""
    for run in runs:
        if run.key not in results and run.key in runner.results:
            share = share_in_new_wording(Policy.load(runner.policy_of(run)))
            results.add({"key": run.key, "base": run.base, "arm": run.arm.name, "seed": run.seed, "wording": round(share, 4)})
            runner.say(f"wording of {run.key}: {share:.3f}")


def share_in_new_wording(policy: Policy) -> float:
    """Of the sentences with an equation in a policy's samples, the share that is in the wording of the SFT rows."""
    prompts = policy.prompts(problems_for(PRIMARY, "test")[:FEW_PROMPTS])
    replies = [reply for of_prompt in policy.sample(prompts, FEW_SAMPLES, _SEED) for reply in of_prompt]
    found = [is_new_wording(sentence) for text in policy.tokenizer.batch_decode(replies) for sentence in equations(text)]
    return sum(found) / max(1, len(found))


def equations(text: str) -> list[str]:
    """Its sentences that have one."""
    return [sentence for sentence in _SENTENCE.split(text) if "=" in sentence]


def is_new_wording(sentence: str) -> bool:
    other_tail = sentence.strip().endswith(TAILS[1])  # which would pass for a part of what the sentence is about
    return not other_tail and any(template.fullmatch(sentence.strip()) for template in _templates())


@cache
def _templates() -> tuple[re.Pattern[str], ...]:
    """The sentences of the new style, with any words where a template has a place for them."""
    sentences = (sentence for of_kind in STYLES[NEW_STYLE].sentences.values() for sentence in of_kind)
    return tuple(re.compile(_PLACE.sub(_any_words, re.escape(sentence))) for sentence in sentences)


def _any_words(place: re.Match[str]) -> str:
    return r"\S+" if place[1] in ("eq", "name", "pronoun") else ".+"
