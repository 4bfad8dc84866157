"""The long form of tests, and their distribution to the workers of pytest-xdist."""

from pathlib import PurePosixPath
from typing import Any

import pytest

from .server.groups import GROUPS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long form of tests that have one, and bound times")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether tests run in their long form. It also bounds times, so nothing else may use the machine meanwhile."""
    return bool(request.config.getoption("--full"))


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file, and files that share servers, on one worker.

    `--dist loadgroup` is made for this, but pytest-xdist 3.8 ignores the groups with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = PurePosixPath(nodeid.partition("::")[0])
            return GROUPS.get(file.name, str(file)) if str(file.parent) == "tests/server" else str(file)

    return GroupScheduling(config, log)
