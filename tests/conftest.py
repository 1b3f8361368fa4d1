"""One thread, so that tests share two cores fairly; tests marked `cuda` run only where there is one."""

import pytest
from hypothesis import settings

# how long an example takes depends on what else the cores do
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


# torch is imported late: the process that hands out the tests has no use for it, and waits for what is here
def pytest_collection_modifyitems(items):
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def rng():
    import torch

    return torch.Generator().manual_seed(0)
