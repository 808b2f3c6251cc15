"""Labels of tokens, against all solutions that the generator really writes."""

import random
import re
from itertools import pairwise

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.labels import Label, token_labels
from pipelines.problems import Operand, Problem, make_problem
from pipelines.solutions import Solution, equation, solve
from pipelines.wordings import NEW_STYLE


@pytest.fixture(scope="module")
def tokenizer(base: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base)


def small_problem() -> Problem:
    """Two containers that may be counted in either order, then a loss: few solutions, and every kind of choice."""
    rng = random.Random(0)
    while True:
        problem = make_problem(rng)
        kinds = [step.kind for step in problem.steps]
        if kinds == ["hold", "hold", "together"]:
            return problem


def operation_of_each_token(solution: Solution, problem: Problem, tokenizer: PreTrainedTokenizerFast) -> list[int | None]:
    """The operation that each token belongs to, told by the equation in its piece."""
    found: list[int | None] = []
    for piece in solution.pieces:
        written = re.search(r"\d+[-+*/]\d+=\d+", piece.text)
        number = [equation(step) for step in problem.steps].index(written[0]) if written else None
        found += [number] * len(tokenizer(piece.text, add_special_tokens=False)["input_ids"])
    return found


@pytest.mark.parametrize("style", [NEW_STYLE, "prose"])
def test_labels_are_those_of_all_solutions_that_are_ever_written(style, tokenizer):
    problem = small_problem()
    drawn = {(s := solve(problem, style, random.Random(seed))).text: s for seed in range(6000)}.values()
    ids = [tokenizer(s.text, add_special_tokens=False)["input_ids"] for s in drawn]
    operations = [operation_of_each_token(s, problem, tokenizer) for s in drawn]
    for mine, solution in zip(ids[:150], drawn, strict=False):
        labels = token_labels(solution, tokenizer)
        assert len(labels) == len(mine) + 1
        for place, token in enumerate(mine):
            before = [i for i, other in enumerate(ids) if other[:place] == mine[:place] and len(other) > place]
            after = [i for i in before if ids[i][place] == token]
            next_before, next_after = ({operations[i][place] for i in some} - {None} for some in (before, after))
            if {ids[i][place] for i in before} == {token}:
                assert labels[place] == Label.FORCED
            elif next_after < next_before:
                assert labels[place] == Label.FORK
            else:
                assert labels[place] == Label.STYLE


def test_noise_is_labelled_whole_and_changes_no_other_label(tokenizer):
    rng = random.Random(1)
    for _ in range(200):
        solution = solve(make_problem(rng), NEW_STYLE, rng, noise=0.5)
        labels = token_labels(solution, tokenizer)
        quiet = Solution(tuple(p for p in solution.pieces if p.alternatives))
        noisy = sum(
            len(tokenizer(p.text, add_special_tokens=False)["input_ids"]) for p in solution.pieces if not p.alternatives
        )
        assert labels.count(Label.NOISE) == noisy
        if solution.pieces[0].alternatives:  # else the first sentence has a space before it that it would not have
            assert [label for label in labels if label != Label.NOISE] == token_labels(quiet, tokenizer)


def test_digits_of_a_result_are_forced_and_a_fork_only_where_two_operations_are_ready(tokenizer):
    rng = random.Random(2)
    for _ in range(200):
        problem = make_problem(rng)
        solution = solve(problem, NEW_STYLE, rng)
        labels = token_labels(solution, tokenizer)
        tokens = [tokenizer.decode([i]) for i in tokenizer(solution.text, add_special_tokens=False)["input_ids"]]
        for (before, _), (after, label) in pairwise(zip(tokens, labels, strict=False)):
            assert before != "=" or not after.isdigit() or label == Label.FORCED
        ready_at_once = sum(all(operand.step is None for operand in (s.left, s.right)) for s in problem.steps)
        assert ready_at_once > 1 or Label.FORK not in labels


def test_a_choice_that_shows_only_in_the_next_piece_is_refused(tokenizer):
    problem = small_problem()
    problem.steps[0] = problem.steps[0].__class__(Operand(2), "*", Operand(3), 6, "hold", problem.steps[0].words)
    problem.steps[1] = problem.steps[1].__class__(Operand(8), "*", Operand(8), 64, "hold", problem.steps[1].words)
    with pytest.raises(ValueError, match="another text that may stand there"):
        token_labels(solve(problem, "terse", random.Random(0)), tokenizer)
