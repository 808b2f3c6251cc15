"""What most tests of training share. Nothing writes to the store but masks of names of their own."""

import pytest
from training_fixtures import masked_store, save_tiny_model

from tokenstats.store import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with masks of all kinds."""
    return masked_store(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
