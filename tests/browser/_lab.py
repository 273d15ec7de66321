"""A JupyterLab of its own for one test, and what a person sees and does in it, in Chromium.

Nothing here sleeps: each wait is for a state of the page that stays once it is reached. What takes
longer than :data:`TIMEOUT` raises, with the selector that was waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import probes
from conformance._notebook import write
from conformance._server import JupyterServer
from conformance.conftest import kernel_environment
from jupyter_client.kernelspec import KernelSpecManager
from playwright.sync_api import Browser, Locator, Page, Playwright, ViewportSize, expect

KERNELSPEC: Final = "sandboxed-python"
DISPLAY_NAME: Final = "Sandboxed Python"

TIMEOUT: Final = 60_000 * probes.TIMEOUT_FACTOR
"""Milliseconds until a wait gives up. Only a failure ever takes that long."""

VIEWPORT: Final[ViewportSize] = {"width": 1440, "height": 800}
"""Pixels of CSS: as wide as it takes for a sentence about a death to stay on one line."""

#: JupyterLab asks nobody for news or newer versions and looks for no build, and all cells of a
#: notebook are in the page, those that are scrolled away too.
OPTIONS: Final = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)
PAGE_CONFIG: Final = {"buildAvailable": False, "buildCheck": False}
SETTINGS: Final = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}

#: Writes into the cell's ``data-run`` where its execution is, by what the prompt says: ``began``
#: while it is a star, ``ended`` from then on. The prompt of a cell whose kernel died is as blank
#: afterwards as before, so a look at it now and then would not tell.
WATCH: Final = """cell => {
    cell.dataset.run = 'asked';
    new MutationObserver((_, observer) => {
        if (cell.querySelector('.jp-InputPrompt').textContent.includes('*')) {
            cell.dataset.run = 'began';
        } else if (cell.dataset.run === 'began') {
            cell.dataset.run = 'ended';
            observer.disconnect();
        }
    }).observe(cell, {childList: true, characterData: true, subtree: true});
}"""


# -- the browser -----------------------------------------------------------------------------------


@contextlib.contextmanager
def running_chromium(playwright: Playwright) -> Iterator[Browser]:
    """The system's Chromium without a window and with its own sandbox.

    That sandbox needs what ours needs, a user namespace of an ordinary user; Playwright would leave
    it out if it were not asked for. No name but this machine's is resolved.
    """
    home = tempfile.mkdtemp(prefix="skt-")
    browser = playwright.chromium.launch(
        executable_path=probes.chromium(),
        chromium_sandbox=True,
        args=["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"],
        env={"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8"},
    )
    try:
        yield browser
    finally:
        browser.close()
        shutil.rmtree(home)


# -- the server ------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_lab(browser: Browser, caps: dict[str, Any]) -> Iterator[Lab]:
    """A server whose :data:`KERNELSPEC` has ``caps`` in its ``config``, and a page of it.

    All that it writes goes into a folder of its own, which is removed at the end. Then nothing of
    the server or of its kernels may be left.
    """
    base = Path(tempfile.mkdtemp(prefix="skt-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base)
        _install_kernelspec(base / "data" / "kernels" / KERNELSPEC, caps)
        _write_json(base / "config" / "labconfig" / "page_config.json", PAGE_CONFIG)
        _write_json(base / "config" / "labconfig" / "default_setting_overrides.json", SETTINGS)
        (base / "root").mkdir()
        environment = kernel_environment() | {
            "HOME": str(base),  # an npm that JupyterLab finds leaves logs there
            "JUPYTER_CONFIG_DIR": str(base / "config"),
            "JUPYTER_DATA_DIR": str(base / "data"),
            "JUPYTER_RUNTIME_DIR": str(base / "run"),
            "IPYTHONDIR": str(base / "ipython"),
        }
        server = JupyterServer(base / "root", environment, *OPTIONS, module="jupyterlab")
        try:
            with browser.new_context(viewport=VIEWPORT, device_scale_factor=1.5) as context:
                context.set_default_timeout(TIMEOUT)
                yield Lab(server, base / "root", context.new_page())
        finally:
            left = server.stop()
        assert left == []


def _install_kernelspec(folder: Path, caps: dict[str, Any]) -> None:
    """The one that is installed with the package, with caps, where the server looks first."""
    shutil.copytree(KernelSpecManager().get_kernel_spec(KERNELSPEC).resource_dir, folder)
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["display_name"] == DISPLAY_NAME
    spec["metadata"]["kernel_provisioner"]["config"] |= caps
    _write_json(folder / "kernel.json", spec)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# -- what is seen and done -------------------------------------------------------------------------


class Lab:
    """One server and the page that shows it."""

    def __init__(self, server: JupyterServer, root: Path, page: Page) -> None:
        self.server = server
        self.root = root
        """The folder that JupyterLab shows."""
        self.page = page

    def open_launcher(self) -> None:
        """Load the page; without a notebook in it, it shows the launcher."""
        self._go("lab")
        expect(self.page.locator(".jp-Launcher")).to_be_visible(timeout=TIMEOUT)

    def card(self, display_name: str = DISPLAY_NAME) -> Locator:
        """What the launcher offers for a notebook with this kernel."""
        return self.page.locator(
            f'.jp-LauncherCard[data-category="Notebook"][title="{display_name}"]'
        )

    def new_notebook(self, display_name: str = DISPLAY_NAME) -> Notebook:
        """Click the card of the launcher; a new notebook opens and its kernel is idle."""
        self.card(display_name).click()
        return self._shown_notebook(display_name)

    def open_notebook(
        self, *sources: str, kernel: str = DISPLAY_NAME, name: str = "cells.ipynb"
    ) -> Notebook:
        """Open a new notebook with these cells, which names no kernel, and choose one for it."""
        write(self.root / name, *sources)
        self._go(f"lab/tree/{name}")
        self.choose_kernel(kernel)
        return self._shown_notebook(kernel)

    def choose_kernel(self, display_name: str) -> None:
        """Answer JupyterLab's question for the kernel of a notebook."""
        dialog = self.page.locator(".jp-Dialog", has_text="Select Kernel")
        dialog.locator("select").select_option(label=display_name)
        dialog.locator(".jp-mod-accept").click()
        expect(dialog).to_have_count(0, timeout=TIMEOUT)

    def dismiss(self, words: str) -> None:
        """Wait for the dialog with these words and answer it with its only button."""
        dialog = self.page.locator(".jp-Dialog", has_text=words)
        dialog.get_by_role("button").click()
        expect(dialog).to_have_count(0, timeout=TIMEOUT)

    def _go(self, path: str) -> None:
        """Load a page as at the first visit: what was open before is not opened again."""
        query = f"token={self.server.token}&reset"
        self.page.goto(f"http://{self.server.address}/{path}?{query}")

    def _shown_notebook(self, display_name: str) -> Notebook:
        notebook = Notebook(self.page)
        expect(self.page.locator(".jp-KernelName:visible")).to_have_text(
            display_name, timeout=TIMEOUT
        )
        notebook.wait_until_idle()
        return notebook


class Notebook:
    """The notebook that is in front."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.panel = page.locator(".jp-NotebookPanel:visible")

    def wait_until_idle(self) -> None:
        """Until the round indicator in the toolbar says so, of a kernel that is connected."""
        indicator = self.panel.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
        expect(indicator).to_be_attached(timeout=TIMEOUT)

    def cell(self, index: int) -> Cell:
        """A cell by its place, from 0, or from the end if negative."""
        return Cell(self.page, self.panel.locator(".jp-CodeCell").nth(index))

    def run(self, source: str) -> Cell:
        """Write ``source`` into the last cell and run it to its end; a new last cell follows."""
        count = self.panel.locator(".jp-CodeCell").count()
        cell = self.cell(count - 1)
        cell.write(source)
        cell.run()
        expect(self.panel.locator(".jp-CodeCell")).to_have_count(count + 1, timeout=TIMEOUT)
        return cell

    def take_picture(self, path: Path, last: Cell) -> None:
        """A PNG of the toolbar, with the kernel's name, and of all cells down to ``last``."""
        panel, lowest = self.panel.bounding_box(), last.locator.bounding_box()
        assert panel and lowest, "what is not in the page cannot be pictured"
        height = lowest["y"] + lowest["height"] - panel["y"]
        assert height <= panel["height"], f"{path.name}: the cells are scrolled out of view"
        self.page.screenshot(
            path=path,
            clip={"x": panel["x"], "y": panel["y"], "width": panel["width"], "height": height},
            animations="disabled",
            caret="hide",
        )


class Cell:
    """A code cell, whether it is scrolled into view or not."""

    def __init__(self, page: Page, locator: Locator) -> None:
        self.page = page
        self.locator = locator
        self.outputs = locator.locator(".jp-OutputArea-output")

    def write(self, source: str) -> None:
        """Replace what is written in it, as if pasted: no bracket is closed, no line indented."""
        self.locator.locator(".cm-content").fill(source)

    def run(self) -> None:
        """Run it by Shift+Enter and wait until it has ended, by a death of the kernel also."""
        self.start()
        self.wait_until_ended()

    def start(self) -> None:
        """Run it by Shift+Enter, and do not wait for the end."""
        self.locator.evaluate(WATCH)
        self.locator.locator(".cm-content").press("Shift+Enter")

    def wait_until_ended(self) -> None:
        """Until the star is gone from the prompt of a cell that was started."""
        expect(self.locator).to_have_attribute("data-run", "ended", timeout=TIMEOUT)

    def assert_shows(self, text: str | re.Pattern[str]) -> None:
        """One of its outputs has this text, or will have it in a moment: they are drawn later."""
        shown = self.outputs.filter(has_text=text)
        expect(shown).not_to_have_count(0, timeout=TIMEOUT)

    def assert_prompt(self, text: str) -> None:
        """The prompt is ``[1]:`` or another; ``[ ]:`` of a cell that no kernel has finished."""
        expect(self.locator.locator(".jp-InputPrompt")).to_have_text(text, timeout=TIMEOUT)
