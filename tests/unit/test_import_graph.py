"""Imports point one way: docs/architecture.md's layers, held to the code.

Read from the syntax trees of all modules, so an import within a function counts as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).resolve().parents[2] / "sandbox_kernel"

# -- the rules, as data ----------------------------------------------------------------------------

#: Bottom first. A module or sub-package imports from the layers below its own, and from no other
#: member of its own layer but as PEERS allows.
LAYERS: Final[tuple[frozenset[str], ...]] = (
    frozenset({"errors"}),
    frozenset({"parsing"}),
    frozenset({"caps", "output"}),
    frozenset({"spec"}),
    frozenset({"syscalls"}),
    frozenset({"engine", "channels"}),
    frozenset(
        {
            "protocol",
            "environment",
            "console",
            "death",
            "rundir",
            "leftovers",
            "binding",
            "auditlog",
            "magics",
        }
    ),
    frozenset({"shell"}),
    frozenset({"application"}),
    frozenset({"kernel"}),
    frozenset(
        {"lifeline", "hostpaths", "capevents", "deadlines", "lockdown", "observe", "beneath"}
    ),
    frozenset({"meter"}),
    frozenset({"control", "waiting", "beside"}),
    frozenset({"supervisor"}),
    frozenset({"launcher", "client", "request"}),
    frozenset({"pool"}),
    frozenset({"provisioner", "spawner", "launch", "contents"}),
    frozenset({"cli", "ahead", "audit"}),
)

#: importer → what it may import of its own layer.
PEERS: Final[dict[str, frozenset[str]]] = {}

#: These compose the concepts of engine/. All others know only themselves.
ENGINE_COMPOSERS: Final = frozenset({"container", "init"})
#: Names that all of engine/ shares; they import nothing of engine/.
ENGINE_VOCABULARY: Final = frozenset({"steps"})
#: module of engine/ → the concept that it is a part of.
ENGINE_PARTS: Final = {"seccomp_profile": "seccomp", "seccomp_supervisor": "seccomp"}

#: layer member → top-level packages that it must not know.
FOREIGN: Final[dict[str, frozenset[str]]] = {
    "errors": frozenset({"cffi", "zmq", "traitlets", "pyroute2", "jeepney"}),
    "parsing": frozenset({"cffi", "zmq", "traitlets", "pyroute2", "jeepney"}),
    "caps": frozenset({"cffi", "zmq", "traitlets", "pyroute2", "jeepney"}),
    "output": frozenset({"cffi", "zmq", "traitlets", "pyroute2", "jeepney"}),
    "spec": frozenset({"cffi", "zmq", "traitlets", "pyroute2", "jeepney"}),
    "syscalls": frozenset({"zmq", "traitlets", "pyroute2", "jeepney"}),
    "engine": frozenset({"zmq", "traitlets"}),
    "channels": frozenset({"traitlets", "pyroute2", "jeepney"}),
}
JUPYTER: Final = ("jupyter", "IPython", "ipykernel", "nbclient", "nbformat")
#: members that may know Jupyter's packages; channels/ speaks its protocol without them.
KNOWS_JUPYTER: Final = frozenset(
    {
        "request",
        "shell",
        "application",
        "kernel",
        "launch",
        "provisioner",
        "spawner",
        "contents",
        "cli",
    }
)
#: top-level package → the one member that imports it: not everybody has it.
OPTIONAL: Final = {"jupyter_server": "contents"}
CFFI_ROOM: Final = "syscalls"

# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """``importer`` and ``imported`` are dotted names; those of ours begin with the package's."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def modules(package: Path) -> dict[str, Path]:
    """Dotted name → file, for every module below ``package``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> list[Import]:
    """Every import of every module of ``package``."""
    files = modules(package)
    return [
        Import(name, imported, line)
        for name, path in files.items()
        for imported, line in _imports_of(name, path, files)
    ]


def _imports_of(name: str, path: Path, files: dict[str, Path]) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                here = here[: len(here) - node.level + 1]
                base = ".".join([*here, base] if base else here)
            for alias in node.names:  # `from . import x` may mean a module
                whole = f"{base}.{alias.name}"
                yield (whole if whole in files else base), node.lineno


# -- judging ---------------------------------------------------------------------------------------


def violations(package: Path) -> list[str]:
    """Each import that breaks a rule, with the rule; empty if all is well."""
    return [
        f"{item}: {broken}" for item in imports(package) for broken in _broken(item, package.name)
    ]


def _broken(item: Import, package: str) -> Iterator[str]:
    importer = item.importer.split(".")[1:]
    if item.imported.split(".")[0] != package:
        yield from _broken_foreign(importer, item.imported.split(".")[0])
        return
    imported = item.imported.split(".")[1:]
    if not importer:
        yield "the package itself imports nothing of its modules"
    elif not imported or imported[0] == importer[0]:
        if importer[0] == "engine":
            yield from _broken_in_engine(importer[1:], imported[1:])
    elif _layer(imported[0]) > _layer(importer[0]):
        yield f"{imported[0]} lies above {importer[0]}"
    elif _layer(imported[0]) == _layer(importer[0]) and imported[0] not in PEERS.get(
        importer[0], ()
    ):
        yield f"{imported[0]} and {importer[0]} do not know each other"


def _layer(member: str) -> int:
    for height, members in enumerate(LAYERS):
        if member in members:
            return height
    raise LookupError(f"{member} has no layer: give it one in LAYERS")


def _broken_in_engine(importer: list[str], imported: list[str]) -> Iterator[str]:
    def concept(parts: list[str]) -> str:
        return ENGINE_PARTS.get(parts[0], parts[0]) if parts else "engine"

    ours, theirs = concept(importer), concept(imported)
    if ours == theirs or ours in ENGINE_COMPOSERS or theirs in ENGINE_VOCABULARY:
        return
    yield f"concepts of engine/ do not import each other; {sorted(ENGINE_COMPOSERS)} compose them"


def _broken_foreign(importer: list[str], top: str) -> Iterator[str]:
    member = importer[0] if importer else ""
    if top == "cffi" and member != CFFI_ROOM:
        yield f"only {CFFI_ROOM}/ imports cffi"
    elif member != OPTIONAL.get(top, member):
        yield f"only {OPTIONAL[top]} imports {top}"
    elif top in FOREIGN.get(member, ()):
        yield f"{member} must not know {top}"
    elif top.startswith(JUPYTER) and member not in KNOWS_JUPYTER:
        yield f"{member} must not know Jupyter"


# -- the tests -------------------------------------------------------------------------------------


def test_imports_point_one_way() -> None:
    assert violations(PACKAGE) == []


def test_every_member_of_the_package_has_a_layer() -> None:
    members = {name.split(".")[1] for name in modules(PACKAGE) if "." in name}
    assert members - frozenset().union(*LAYERS) == set()


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("spec.py", "from .engine import rootfs", "engine lies above spec"),
        ("errors.py", "from .spec import Caps", "spec lies above errors"),
        ("syscalls/mount.py", "def f():\n    from ..engine import x", "engine lies above"),
        ("channels/proxy.py", "from ..engine.idmap import x", "do not know each other"),
        ("supervisor.py", "import fake.provisioner", "provisioner lies above supervisor"),
        ("launch.py", "from . import provisioner", "do not know each other"),
        ("engine/idmap.py", "from . import rootfs", "concepts of engine/"),
        ("engine/idmap.py", "from .cgroups.v1 import x", "concepts of engine/"),
        ("engine/cgroups/v1.py", "from ..idmap import x", "concepts of engine/"),
        ("engine/__init__.py", "from .idmap import x", "concepts of engine/"),
        ("engine/steps.py", "from .idmap import x", "concepts of engine/"),
        ("engine/idmap.py", "import zmq.asyncio", "engine must not know zmq"),
        ("engine/idmap.py", "from cffi import FFI", "only syscalls/ imports cffi"),
        ("engine/idmap.py", "import jupyter_client", "engine must not know Jupyter"),
        ("channels/proxy.py", "from ipykernel import x", "channels must not know Jupyter"),
        ("launcher.py", "import ipykernel", "launcher must not know Jupyter"),
        ("provisioner.py", "import jupyter_server", "only contents imports jupyter_server"),
        ("__init__.py", "from . import spec", "the package itself"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, source: str, rule: str) -> None:
    (found,) = violations(_package(tmp_path, file, source))
    assert rule in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("spec.py", "from .errors import SpecError"),
        ("engine/container.py", "from . import idmap, rootfs\nfrom .cgroups import v1"),
        ("engine/cgroups/v1.py", "from . import v2\nfrom ...errors import CgroupError"),
        ("engine/seccomp.py", "from .seccomp_profile import DEFAULT"),
        ("engine/idmap.py", "from .steps import Step\nfrom ..syscalls import unshare"),
        ("channels/proxy.py", "import zmq\nfrom ..errors import ChannelError"),
        ("launcher.py", "from . import supervisor"),
        ("kernel.py", "import ipykernel"),
        ("syscalls/_build.py", "from cffi import FFI"),
    ],
)
def test_a_right_import_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    assert violations(_package(tmp_path, file, source)) == []


def _package(folder: Path, file: str, source: str) -> Path:
    """A package ``fake`` with the members that the cases use, ``file`` holding ``source``."""
    package = folder / "fake"
    names = (
        "__init__ errors spec supervisor provisioner channels/__init__ syscalls/__init__ "
        "engine/__init__ engine/idmap engine/steps engine/seccomp_profile engine/rootfs "
        "engine/cgroups/__init__ engine/cgroups/v1 engine/cgroups/v2"
    )
    for name in names.split():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (package / file).write_text(source, encoding="utf-8")
    return package
