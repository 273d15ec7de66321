"""One Chromium for all tests of this folder, JupyterLabs of their own, and pictures.

Where ``SANDBOX_KERNEL_PICTURES`` names a folder the pictures stay there, and ``make test-browser``
names ``build/test``. A test that fails leaves one of each page, and its report has the logs of the
servers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from ._lab import Lab, running_chromium, running_lab

LABS = pytest.StashKey[list[Lab]]()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, running_chromium(playwright) as chromium:
        yield chromium


@pytest.fixture
def start_lab(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Callable[..., Lab]]:
    """Starts a JupyterLab; what is given by name are caps as in a kernelspec: ``memory="1G"``."""
    labs = request.node.stash[LABS] = []

    def start(**caps: Any) -> Lab:
        labs.append(stack.enter_context(running_lab(browser, caps)))
        return labs[-1]

    with contextlib.ExitStack() as stack:
        yield start


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The folder for them."""
    return _pictures() or tmp_path


def _pictures() -> Path | None:
    named = os.environ.get("SANDBOX_KERNEL_PICTURES")
    if not named:
        return None
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        labs: list[Lab] = item.stash.get(LABS, [])
        for number, lab in enumerate(labs):
            report.sections.append((f"JupyterLab {number}", "".join(lab.server.log)))
            if folder := _pictures():
                with contextlib.suppress(Error):  # a page that has crashed has no picture
                    lab.page.screenshot(path=folder / f"failed-{item.name}-{number}.png")
    return report
