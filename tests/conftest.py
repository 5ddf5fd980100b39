"""What all tests share."""

import pytest
import torch

torch.set_num_threads(1)  # as the scripts do: two threads each, on two workers, wait for one another


@pytest.fixture(scope="session", autouse=True)
def few_boards():
    """Collect with a batch of 64 boards instead of 2,048: the same episodes, sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.collect.BOARDS", 64)
        yield


@pytest.fixture
def uncached_worlds(monkeypatch):
    """Imagined boards and searches take a world model as it is, also the rules of the game themselves."""
    import hop_ppo

    monkeypatch.setattr(hop_ppo, "CachedWorldModel", lambda world_model: world_model)
