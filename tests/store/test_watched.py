"""Who reads a store is told of each part, and can end it there."""

from pathlib import Path

import pytest
from synthetic import random_store

from tokenstats.inspect.audit.audit import audit
from tokenstats.inspect.rows.table import row_table


class GivenUpError(Exception):
    """The reader has had enough."""


@pytest.mark.parametrize("read", [lambda store: row_table(store, "warm"), audit], ids=["row table", "audit"])
def test_each_part_is_told_of_in_order_and_a_refusal_ends_the_reading(tmp_path: Path, read):
    store = random_store(tmp_path / "store", 40, seed=0, rows_per_part=10)
    add_tokenizer(store.tokenizer_folder)
    told: list[int] = []

    def tell(part: int, parts: int) -> None:
        assert parts == store.part_count == 4
        told.append(part)
        if patience == len(set(told)):
            raise GivenUpError

    patience = 0
    whole = read(store.watched(tell))
    assert sorted(set(told)) == [0, 1, 2, 3]
    assert told[0] == 0
    told.clear()
    patience = 2
    with pytest.raises(GivenUpError):
        read(store.watched(tell))
    assert set(told) == {0, 1}
    assert type(read(store)) is type(whole)  # the store itself is as it was


def add_tokenizer(folder: Path) -> None:
    from inspect_fixtures import byte_level_tokenizer

    folder.mkdir(exist_ok=True)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
