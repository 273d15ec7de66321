"""One arena for all attacks, and the count of them at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape.attacks import RECORD, Arena, Host
from integration.sandboxes import own_launcher


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A home with secrets, and launchers that know it as the home."""
    with tempfile.TemporaryDirectory(prefix="skt-escape-") as folder:
        with pytest.MonkeyPatch.context() as patch, own_launcher():
            found = Host(Path(folder))
            patch.setenv("HOME", str(found.home))
            try:
                yield found
            finally:
                found.close()


@pytest.fixture(scope="session")
def arena(host: Host) -> Iterator[Arena]:
    with tempfile.TemporaryDirectory(prefix="skt-arena-") as folder:
        found = Arena(host, Path(folder))
        try:
            yield found
        finally:
            found.close()


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
