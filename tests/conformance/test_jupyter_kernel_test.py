"""The suite of the Jupyter project for kernels, with every sample filled in."""

from __future__ import annotations

import tempfile
from typing import Any

import jupyter_kernel_test as jkt  # type: ignore[import-untyped]
from jupyter_client.manager import KernelManager, start_new_kernel

from .conftest import kernel_under_test

KERNEL = kernel_under_test()


class TestKernel(jkt.KernelTests):  # type: ignore[misc]
    kernel_name = KERNEL
    language_name = "python"
    file_extension = ".py"

    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import collec", "matches": {"collections"}},
    ]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2", "for _ in range(3):"]
    invalid_code_samples = ["import = 7q", "1 +* 2"]
    code_page_something = "zip?"
    code_generate_error = "raise RuntimeError('on purpose')"
    code_execute_result = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
        {"code": "5+5", "result": "10"},
        {"code": "5+5", "result": "10"},
    ]
    code_display_data = [
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
        {
            "code": "from IPython.display import Math, display; display(Math('\\frac{1}{2}'))",
            "mime": "text/latex",
        },
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    workspace: tempfile.TemporaryDirectory[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.workspace = tempfile.TemporaryDirectory(prefix="skt-")
        cls.km, cls.kc = start_new_kernel(kernel_name=cls.kernel_name, cwd=cls.workspace.name)

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        cls.workspace.cleanup()

    def history_helper(self, *args: Any, **histargs: Any) -> dict[str, Any]:
        """The suite wants the session's number where IPython says 0, "the current one"."""
        reply: dict[str, Any] = super().history_helper(*args, **histargs)
        if histargs["hist_access_type"] == "range":
            history = reply["content"]["history"]
            reply["content"]["history"] = [[h[0] or histargs["session"], *h[1:]] for h in history]
        return reply

    def test_no_sample_is_missing(self) -> None:
        """An attribute that a newer suite adds shows up here, not as one more silent skip."""
        base = vars(jkt.KernelTests)
        samples = [n for n, v in base.items() if n[0] != "_" and v in ("", (), [])]
        assert samples
        assert [name for name in samples if not getattr(self, name)] == []


class TestIopubWelcome(jkt.IopubWelcomeTests):  # type: ignore[misc]
    """Each client that subscribes is greeted: behind the proxy this one is not the first."""

    kernel_name = KERNEL
    support_iopub_welcome = True

    workspace: tempfile.TemporaryDirectory[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.workspace = tempfile.TemporaryDirectory(prefix="skt-")
        cls.km = KernelManager(kernel_name=cls.kernel_name)
        cls.km.start_kernel(cwd=cls.workspace.name)
        cls.kc = cls.km.client()

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        cls.workspace.cleanup()
