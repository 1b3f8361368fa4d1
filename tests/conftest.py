"""One thread, so that tests share two cores fairly; tests marked `cuda` run only where there is one."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)
