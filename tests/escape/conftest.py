"""One arena for all attacks, and the count of them at the end."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from escape.attacks import RECORD, Arena, Host
from integration.sandboxes import own_launcher

HERE = Path(__file__).parent
_STACK = pytest.StashKey[contextlib.ExitStack]()
_ARENA = pytest.StashKey[Arena]()


@pytest.fixture(scope="session")
def arena(request: pytest.FixtureRequest) -> Arena:
    """Made for the first test here, and ended after the last: see the hook below."""
    stash = request.config.stash
    if _ARENA not in stash:
        stack = stash[_STACK] = contextlib.ExitStack()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skt-escape-")))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(own_launcher())
        host = Host(folder)
        stack.callback(host.close)
        patch.setenv("HOME", str(host.home))
        (folder / "kernels").mkdir()
        stash[_ARENA] = Arena(host, folder / "kernels")
        stack.callback(stash[_ARENA].close)
    return stash[_ARENA]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """With the last test here, and not with the session: what is left is looked for before."""
    yield
    stash = item.config.stash
    if _ARENA in stash and (nextitem is None or HERE not in nextitem.path.parents):
        del stash[_ARENA]
        stash[_STACK].close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many attacks were tried, held, and shown to get through without their wall."""
    if not RECORD.tried:
        return
    terminalreporter.section("attacks")
    terminalreporter.line(
        f"{len(RECORD.tried)} attacks tried, {len(RECORD.held)} held; "
        f"{len(RECORD.through)} get through where their wall is taken away"
    )
    for name, reason in sorted(RECORD.not_shown.items()):
        terminalreporter.line(f"not shown: {name}: {reason}")
