"""Problems, their solutions right and flawed, and the words they are written in."""

import random
import re
from dataclasses import replace

import pytest

from pipelines.chats import Mix, chats, load_chats, stated_answer
from pipelines.flaws import flawed
from pipelines.pretrain import STAGES
from pipelines.problems import LARGER, OPERATIONS, SMALL, Numbers, Operand, Problem, Step, exceeds, make_problem
from pipelines.solutions import solve
from pipelines.tinymath import (
    DATA,
    LARGER_PROSE,
    SCARCE,
    SCARCE_ROWS,
    SCARCE_SEED,
    SFT_ROWS,
    SFT_SEED,
    held_out,
    held_out_questions,
)
from pipelines.wordings import NEW_STYLE, PRETRAINING_STYLES, STYLES

PRETRAINING = STAGES[-1].mix
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def problems(count: int, seed: int = 0) -> list[Problem]:
    rng = random.Random(seed)
    return [make_problem(rng) for _ in range(count)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_solution_ends_on_the_answer_and_every_equation_in_it_is_right(style, noise):
    rng = random.Random(1)
    for problem in problems(300):
        text = solve(problem, style, rng, noise).text
        assert stated_answer(text) == problem.answer
        for left, op, right, result in EQUATION.findall(text):
            assert OPERATIONS[op](int(left), int(right)) == int(result), text


def test_no_problem_exceeds_the_numbers_that_it_was_made_of_and_most_larger_ones_exceed_the_smaller():
    rng = random.Random(4)
    larger = [make_problem(rng, LARGER) for _ in range(500)]
    assert not any(exceeds(problem, SMALL) for problem in problems(500))
    assert not any(exceeds(problem, LARGER) for problem in larger)
    assert 0.5 < sum(exceeds(problem, SMALL) for problem in larger) / 500 < 0.8


@pytest.mark.parametrize(
    ("left", "op", "right", "kind"),
    [
        (Operand(2), "*", Operand(13), "hold"),  # 13 in each
        (Operand(7), "*", Operand(9), "hold"),  # 63 in all
        (Operand(41), "+", Operand(5), "gain"),  # a plain 41
        (Operand(180, 0), "+", Operand(20), "gain"),  # 200 in the end
        (Operand(61, 0), "*", Operand(2), "price"),  # 61 are sold
        (Operand(201, 0), "/", Operand(3), "share"),
        (Operand(100, 0), "*", Operand(2), "multiply"),
    ],
)
def test_a_number_that_is_too_large_in_its_place_exceeds(left, op, right, kind):
    step = Step(left, op, right, OPERATIONS[op](left.value, right.value), kind, {})
    problem = replace(problems(1)[0], steps=[step])
    assert exceeds(problem, SMALL)
    assert not exceeds(problem, Numbers(total=999, quantity=999, plain=999, each=999))


def test_operands_that_are_results_are_the_results_of_earlier_steps():
    for problem in problems(500):
        for number, step in enumerate(problem.steps):
            assert step.result == OPERATIONS[step.op](step.left.value, step.right.value)
            for operand in (step.left, step.right):
                assert operand.step is None or (operand.step < number and problem.steps[operand.step].result == operand.value)
        assert problem.answer == problem.steps[-1].result


def test_a_flawed_solution_has_one_flaw_and_follows_from_it_to_a_wrong_answer():
    rng = random.Random(2)
    for problem in problems(1000):
        wrong = flawed(problem, rng)
        assert wrong.answer != problem.answer
        flaws = 0
        for step, right in zip(wrong.steps, problem.steps, strict=True):
            slip = step.result != OPERATIONS[step.op](step.left.value, step.right.value)
            flaws += slip or step.op != right.op
            for operand in (step.left, step.right):
                assert operand.step is None or operand.value == wrong.steps[operand.step].result
            assert not (step.op == "/" and step.left.value % step.right.value and not slip)
        assert flaws == 1


def test_the_share_of_flawed_chats_is_what_was_asked_for():
    mix = Mix(PRETRAINING_STYLES, flawed=0.6)
    wrong = [stated_answer(c["messages"][1]["content"]) != c["answer"] for c in chats(4000, 3, mix)]
    assert abs(sum(wrong) / 4000 - 0.6) < 0.03  # 3.9 standard errors
    by_style = {style: [w for w, c in zip(wrong, chats(4000, 3, mix), strict=True) if c["style"] == style] for style in STYLES}
    for style in PRETRAINING_STYLES:
        assert abs(sum(by_style[style]) / len(by_style[style]) - 0.6) < 0.07, style


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def shape(sentence: str) -> str:
    """A sentence without its numbers."""
    return re.sub(r"\d+", "0", sentence)


def test_the_new_wording_has_only_words_that_pre_training_has():
    known = {w for c in chats(8_000, 4, PRETRAINING) for m in c["messages"] for w in words_of(m["content"])}
    used = {w for c in chats(3000, 5, Mix((NEW_STYLE,))) for w in words_of(c["messages"][1]["content"])}
    assert used <= known


def test_no_sentence_of_the_new_wording_is_one_of_pre_training():
    def shapes(count: int, seed: int, mix: Mix) -> set[str]:
        replies = (c["messages"][1]["content"] for c in chats(count, seed, mix))
        return {shape(sentence) for reply in replies for sentence in re.split(r"(?<=\.) |\n", reply)}

    assert not shapes(2000, 6, Mix((NEW_STYLE,))) & shapes(12_000, 7, replace(PRETRAINING, flawed=0.0))


def test_bundled_data_are_what_the_generator_makes_and_hold_no_question_that_is_held_out():
    rows = {name: load_chats(DATA / f"{name}.jsonl") for name in ("sft", "scarce", "test")}
    assert rows["test"] == held_out("test")
    assert rows["sft"] == list(chats(SFT_ROWS, SFT_SEED, LARGER_PROSE, held_out_questions()))
    assert rows["scarce"] == list(chats(SCARCE_ROWS, SCARCE_SEED, SCARCE, held_out_questions()))
    assert not {row["messages"][0]["content"] for name in ("sft", "scarce") for row in rows[name]} & held_out_questions()


def test_numbers_stay_within_their_limits():
    for numbers in (SMALL, LARGER):
        rng = random.Random(8)
        largest = max(step.result for _ in range(2000) for step in make_problem(rng, numbers).steps)
        assert largest <= max(numbers.total, 5 * numbers.quantity)


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style 'verse' is not one of"):
        solve(problems(1)[0], "verse", random.Random(0))
