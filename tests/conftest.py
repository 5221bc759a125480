# SPDX-License-Identifier: Apache-2.0
"""Which of many a run takes: of properties the same examples every time, of cross products a sample."""

from collections import defaultdict

import pytest
from hypothesis import settings
from products import SHARES, sample

# The time that one example takes says nothing.
settings.register_profile("lnbp", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("lnbp")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--products",
        choices=SHARES,
        default=SHARES[0],
        help="of each cross product: as few as have each value of each parameter (cover), a tenth, or the whole",
    )


@pytest.fixture
def share(pytestconfig: pytest.Config) -> str:
    """How much of a cross product is run, for tests that make one themselves."""
    given: str = pytestconfig.getoption("--products")
    return given


@pytest.fixture
def torch_seed() -> None:
    """Has torch draw the same numbers in every test."""
    import torch  # noqa: PLC0415 - most tests run without it

    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    products = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("product") and hasattr(item, "callspec"):
            products[item.nodeid.partition("[")[0]].append(item)
    left = set[pytest.Item]()
    for product in products.values():
        taken = sample(product, config.getoption("--products"), lambda item: item.callspec.params.items())
        left.update(set(product) - set(taken))
    if left:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]
