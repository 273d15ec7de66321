"""The shell of IPython, made in the launcher as far as it is the same for all its kernels.

It is most of what an ipykernel makes before it can answer. :func:`prepare` makes it once, with no
folder and no file; :func:`adopt` makes it the shell of one kernel, in the sandbox: what IPython
itself derives from the process, its environment, its folders and its streams is derived anew there,
by IPython's own ``init_*`` methods. A kernel with a configuration of its own has its own shell.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from ipykernel.compiler import XCachingCompiler
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets.config import Config

if TYPE_CHECKING:
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelapp import IPKernelApp

#: Configuration that anything else overrides. A kernel's history ends with it, in a file of its own
#: file system or not; a file would take some of its start, and a thread.
DEFAULTS: Final = {"HistoryManager": {"hist_file": ":memory:"}}


class _NoProfile(ProfileDir):
    """Makes nothing where it lies."""

    def _mkdir(self, path: str, mode: int | None = None) -> bool:
        return False


def prepare() -> None:
    """Called by the launcher, before any fork. What it changes in this process besides is put back.

    Does nothing if it has been called before.
    """
    if ZMQInteractiveShell.initialized():
        return
    environment, main = dict(os.environ), sys.modules["__main__"]
    try:
        shell: Any = ZMQInteractiveShell.instance(
            ipython_dir="/",
            profile_dir=_NoProfile(location="/"),
            compiler_class=XCachingCompiler,
            config=Config(DEFAULTS),
        )
        _forget_history(shell)
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(environment)


def adopt(app: IPKernelApp) -> bool:
    """Called before ``app`` makes its kernel, which then finds the shell that was prepared.

    False if there is none that would do: the kernel makes its own.
    """
    if not ZMQInteractiveShell.initialized():
        return False
    if app.config != Config(DEFAULTS):
        ZMQInteractiveShell.clear_instance()
        return False
    shell: Any = ZMQInteractiveShell.instance()
    shell.init_ipython_dir(app.ipython_dir)
    shell.init_profile_dir(app.profile_dir)
    shell.init_instance_attrs()
    shell.init_environment()
    shell.save_sys_module_state()
    shell.init_sys_modules()
    shell.init_history()
    shell.configurables.insert(1, shell.configurables.pop())  # where it was
    shell.init_encoding()
    shell.init_pushd_popd_magic()
    shell.init_user_ns()
    shell.init_traceback_handlers(((), None))
    shell.init_prompts()
    return True


def belongs_to(kernel: IPythonKernel) -> None:
    """Called after :func:`adopt`, with the kernel that was made."""
    shell: Any = kernel.shell
    shell.parent = kernel
    shell.kernel = kernel


def _forget_history(shell: Any) -> None:
    """Nothing of SQLite may be open over a fork."""
    history = shell.history_manager
    shell.configurables.remove(history)
    history.end_session()
    history.db.close()
    shell.history_manager = None
