"""What the tests of rounds share: a store and a model that are made once; a store of one's own to write to."""

from pathlib import Path

import pytest
from rounds_fixtures import copied
from training_fixtures import build_store, save_tiny_model

from tokenstats.store import Store


@pytest.fixture(scope="session")
def unscored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without scorings. Nothing writes to it."""
    return build_store(tmp_path_factory.mktemp("rounds")).path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def store(unscored: Path, tmp_path: Path) -> Store:
    """A store without scorings, to write to."""
    return copied(unscored, tmp_path)
