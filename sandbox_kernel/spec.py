"""What a sandbox is to be, as frozen data: parsed and validated before anything is started.

Pure: no system call. What may be asked of cgroups is in :mod:`sandbox_kernel.caps`, the parsers of
single values in :mod:`sandbox_kernel.parsing`. The keys are those of
``metadata.kernel_provisioner.config`` in a kernelspec. Every key that is unknown, every value of a
wrong type and every value that cannot be is a :class:`~sandbox_kernel.errors.SpecError` that names
the key, the value and what is allowed: a typing error must never remove a limit.

Sizes are integers in bytes, or strings with a binary suffix: ``"512M"``, ``"2G"``, ``"1.5GiB"``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .caps import (
    CAP_KEYS,
    CAP_PARSERS,
    CPUS_MAXIMUM,
    CPUS_MINIMUM,
    DEVICE_NODES,
    MEMORY_MINIMUM,
    PIDS_MAXIMUM,
    PIDS_MINIMUM,
    RLIMITS,
    Caps,
    Change,
    IoLimit,
    UserTotal,
    parse_caps,
    parse_change,
    parse_rlimits,
    parse_user,
)
from .errors import SpecError
from .output import OUTPUT_PARSERS, PREFIX, OutputCaps
from .parsing import (
    GIB,
    KIB,
    MIB,
    NO_TABLE,
    Table,
    absolute_path,
    boolean,
    choice,
    integer,
    list_of,
    number,
    parse_size,
    pattern,
    size_of,
)

__all__ = [
    "CAP_KEYS",
    "CPUS_MAXIMUM",
    "CPUS_MINIMUM",
    "DEVICE_NODES",
    "GIB",
    "KEYS",
    "KIB",
    "MEMORY_MINIMUM",
    "MIB",
    "PIDS_MAXIMUM",
    "PIDS_MINIMUM",
    "POOL_MAXIMUM",
    "RLIMITS",
    "SHARED_TARGETS",
    "SPEC_VERSION",
    "SYSTEM_TARGETS",
    "TIME_MAXIMUM",
    "TIME_MINIMUM",
    "Caps",
    "Change",
    "Identity",
    "IoLimit",
    "MemoryPressure",
    "MissingCap",
    "Mount",
    "MountMode",
    "NetworkPolicy",
    "SandboxSpec",
    "Table",
    "TmpfsLimits",
    "Transport",
    "UserTotal",
    "WorkspaceMode",
    "change_to_dict",
    "check_workspace",
    "is_system",
    "parse_change",
    "parse_size",
    "parse_spec",
    "spec_from_dict",
]

SPEC_VERSION: Final = 1
#: Seconds that a cell or a kernel may be given: from one to a year.
TIME_MINIMUM: Final = 1.0
TIME_MAXIMUM: Final = 365 * 86400.0
#: Sandboxes that one server may have waiting.
POOL_MAXIMUM: Final = 32


class Identity(enum.Enum):
    """Who the kernel is, inside and outside."""

    KEEP_ID = "keep-id"
    """The user's own id inside and outside."""
    ROOT = "root"
    """Uid 0 inside, the user's own id outside. It has no capability all the same."""
    ISOLATED = "isolated"
    """A subordinate id outside: no file of the user is the kernel's."""


class WorkspaceMode(enum.Enum):
    """What the kernel may do with the folder that the notebook lies in."""

    RW = "rw"
    RO = "ro"
    OVERLAY = "overlay"
    """Writes work and vanish with the kernel."""
    NONE = "none"
    """An empty scratch folder stands in its place."""


class MountMode(enum.Enum):
    """How an extra mount appears."""

    RO = "ro"
    RW = "rw"
    OVERLAY = "overlay"


class NetworkPolicy(enum.Enum):
    """What the kernel reaches beyond its own loopback device."""

    NONE = "none"
    """Only the proxy's peer address, where nothing listens for it."""


class MissingCap(enum.Enum):
    """What happens when a cap was asked for and no controller can hold it."""

    ERROR = "error"
    WARN = "warn"


class MemoryPressure(enum.Enum):
    """What happens to a cell when the memory of its kernel nears the cap."""

    WARN = "warn"
    """It says so."""
    INTERRUPT = "interrupt"
    """It says so and gets a KeyboardInterrupt, once a cell."""


class Transport(enum.Enum):
    """How the client reaches the proxy."""

    IPC = "ipc"
    """Unix sockets in a directory that only the user can enter."""
    TCP = "tcp"
    """The connection file's own address and ports; any local user can connect."""


@dataclass(frozen=True)
class Mount:
    """One extra mount: host path ``source`` appears at ``target`` (absolute, inside)."""

    source: str
    target: str
    mode: MountMode = MountMode.RO


@dataclass(frozen=True)
class TmpfsLimits:
    """Sizes in bytes of each writable in-memory file system, and its number of inodes."""

    home: int = 1 * GIB
    tmp: int = 1 * GIB
    shm: int = 1 * GIB
    run: int = 64 * MIB
    overlay: int = 1 * GIB
    inodes: int = 100_000


@dataclass(frozen=True)
class SandboxSpec:
    """Everything about one sandbox that is decided before it starts."""

    identity: Identity = Identity.KEEP_ID
    id_range: int = 0
    """Subordinate ids mapped besides the kernel's own, through newuidmap; 0 is none."""
    workspace: WorkspaceMode = WorkspaceMode.RW
    workspace_path: str | None = None
    """Host path of the workspace; ``None`` is the working directory of the kernel."""
    mounts: tuple[Mount, ...] = ()
    hide: tuple[str, ...] = ()
    """Paths below the home that stay hidden besides the built-in list of secret folders."""
    caps: Caps = field(default_factory=Caps)
    user: UserTotal = field(default_factory=UserTotal)
    on_missing_cap: MissingCap = MissingCap.ERROR
    rlimits: Table = NO_TABLE
    """Limits of each process by name, such as ``nofile``; they only lower what is there."""
    tmpfs: TmpfsLimits = field(default_factory=TmpfsLimits)
    on_memory_pressure: MemoryPressure = MemoryPressure.WARN
    warn_throttled: float = 0.5
    """Share of a cell's time beyond which it says that the cap ``cpus`` held it back."""
    output: OutputCaps = field(default_factory=OutputCaps)
    network: NetworkPolicy = NetworkPolicy.NONE
    env_pass: tuple[str, ...] = ()
    """Names of variables that reach the kernel besides the built-in list."""
    hostname: str = "sandbox"
    transport: Transport = Transport.IPC
    start_timeout: float = 30.0
    """Seconds from the request until the kernel must have bound its channels."""
    cell_timeout: float | None = None
    """Seconds that one cell may run before it is interrupted."""
    lifetime: float | None = None
    """Seconds after which the kernel ends, whatever it does."""
    idle_timeout: float | None = None
    """Seconds without use after which it ends."""
    time_grace: float = 10.0
    """Seconds that who was interrupted or terminated by one of these has before it is killed."""
    zygote: bool = True
    """Fork the kernel from the launcher. If not, it is a new program: slower, with a memory layout
    and a hash seed of its own."""
    preload: tuple[str, ...] = ()
    """Modules that the launcher imports once for all its kernels, such as ``numpy``."""
    pool: int = 0
    """How many sandboxes wait, complete, for the next starts in the same folder."""
    audit_log: str | None = None
    """Host path of the file that gets a line for each request that runs code."""
    audit_code: bool = False
    """The text of the code too, not its hash alone."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, see :func:`spec_from_dict`."""
        return {"version": SPEC_VERSION} | {k: _plain(v) for k, v in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Table):
        return dict(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def spec_from_dict(data: Mapping[str, Any]) -> SandboxSpec:
    """The spec that :meth:`SandboxSpec.to_dict` described on the other side of a process border."""
    if data.get("version") != SPEC_VERSION:
        raise SpecError("version", data.get("version"), f"{SPEC_VERSION}")
    flat = {k: v for k, v in data.items() if k not in _TABLES}
    flat |= data["caps"]
    flat |= {("inodes" if k == "inodes" else f"{k}_size"): v for k, v in data["tmpfs"].items()}
    flat |= {PREFIX + k: v for k, v in data["output"].items()}
    total = _known(data["user"]["caps"] | {"kernels": data["user"]["kernels"]})
    return parse_spec(_known(flat | {"user": total}))


#: Of :meth:`SandboxSpec.to_dict`: their fields are keys of their own.
_TABLES: Final = ("version", "caps", "tmpfs", "user", "output")


def change_to_dict(change: Change) -> dict[str, Any]:
    """Plain JSON types, as :func:`~sandbox_kernel.caps.parse_change` reads them."""
    user = _asked(change.user)
    return _asked(change.caps) | ({"user": user} if user else {})


def _asked(caps: Caps) -> dict[str, Any]:
    asked = caps.asked()
    return _known({k: _plain(v) for k, v in asdict(caps).items() if k in asked})


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is ``None``, in the tables of a list too."""

    def known(value: Any) -> Any:
        if isinstance(value, list):
            return [_known(v) if isinstance(v, Mapping) else v for v in value]
        return value

    return {k: known(v) for k, v in fields.items() if v is not None}


def parse_spec(config: Mapping[str, Any]) -> SandboxSpec:
    """Validate a kernelspec's ``config`` (flat keys) and return the spec it describes.

    Raises:
        SpecError: an unknown key, a wrong type or a value that cannot be; nothing was started.
    """
    unknown = sorted(set(config) - set(_PARSERS))
    if unknown:
        raise SpecError(unknown[0], config[unknown[0]], "one of the keys " + ", ".join(_PARSERS))
    asked = {key: value for key, value in config.items() if key in CAP_PARSERS}
    caps = parse_caps(asked)
    values = {k: _PARSERS[k](k, value) for k, value in config.items() if k not in asked}
    sizes = {k.removesuffix("_size"): values.pop(k) for k in _TMPFS_KEYS if k in values}
    output = {k.removeprefix(PREFIX): values.pop(k) for k in OUTPUT_PARSERS if k in values}
    spec = SandboxSpec(caps=caps, tmpfs=TmpfsLimits(**sizes), output=OutputCaps(**output), **values)
    if spec.preload and not spec.zygote:
        raise SpecError("preload", list(spec.preload), "no modules when zygote is false")
    if spec.workspace is WorkspaceMode.NONE and spec.workspace_path is not None:
        raise SpecError("workspace_path", spec.workspace_path, "no path when workspace is 'none'")
    if spec.audit_code and spec.audit_log is None:
        raise SpecError("audit_code", True, "false where audit_log is off")
    return spec


#: ``metadata.kernel_provisioner`` of a kernelspec may have these keys and no other.
_PROVISIONER_KEYS: Final = ("provisioner_name", "config")


def kernelspec_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config`` of a kernelspec's metadata, whose place must be spelled right as well.

    Raises:
        SpecError: another key beside it, such as ``confg`` or a cap that was put there.
    """
    stanza = metadata.get("kernel_provisioner", {})
    allowed = "a table with the keys " + ", ".join(_PROVISIONER_KEYS)
    if not isinstance(stanza, Mapping):
        raise SpecError("kernel_provisioner", stanza, allowed)
    for key, value in stanza.items():
        if key not in _PROVISIONER_KEYS:
            raise SpecError(f"kernel_provisioner.{key}", value, allowed)
    config = stanza.get("config", {})
    if not isinstance(config, Mapping):
        raise SpecError("kernel_provisioner.config", config, "a table")
    return dict(config)


# -- parsers ----------------------------------------------------------------------------------

_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOSTNAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def _mount(key: str, value: object) -> Mount:
    if isinstance(value, Mount):
        return value
    allowed = "a table {source, target, mode}, mode one of 'ro', 'rw', 'overlay'"
    keys = set(value) if isinstance(value, Mapping) else set()
    if not isinstance(value, Mapping) or not {"source"} <= keys <= {"source", "target", "mode"}:
        raise SpecError(key, value, allowed)
    source = absolute_path(f"{key}.source", value["source"])
    target = absolute_path(f"{key}.target", value.get("target", source))
    if is_system(target):
        raise SpecError(f"{key}.target", target, f"a path outside {', '.join(SYSTEM_TARGETS)}")
    return Mount(source, target, choice(MountMode)(f"{key}.mode", value.get("mode", "ro")))


#: No workspace and no extra mount may stand in for these or lie below them: they are the walls.
SYSTEM_TARGETS: Final = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run",
    "/sbin", "/sys", "/usr", "/var/run",
)  # fmt: skip


#: Not these themselves, though folders below them: others' files lie there, or other kernels'.
SHARED_TARGETS: Final = ("/", "/home", "/tmp", "/var", "/var/tmp")


def is_system(path: str) -> bool:
    """Is ``path`` one that belongs to the sandbox itself, or lies in one?"""
    return path in SHARED_TARGETS or any(
        path == t or path.startswith(t + "/") for t in SYSTEM_TARGETS
    )


def check_workspace(path: str) -> str:
    """The workspace path if it may be one, else :class:`SpecError`: never ``/``, ``/etc`` …"""
    if is_system(path):
        raise SpecError(
            "workspace_path",
            path,
            f"a folder that is none of {', '.join(SHARED_TARGETS)} and not within "
            + ", ".join(SYSTEM_TARGETS),
        )
    return path


def _audit_log(key: str, value: object) -> str | None:
    if value == "off":
        return None
    path = absolute_path(key, value)
    if path == "/" or str(value).endswith("/"):
        raise SpecError(key, value, "the path of a file, or 'off'")
    return path


_TMPFS_KEYS: Final = (
    "home_size", "tmp_size", "shm_size", "run_size", "overlay_size", "inodes",
)  # fmt: skip

_PARSERS: Final[dict[str, Callable[[str, object], Any]]] = {
    "identity": choice(Identity),
    "id_range": integer(0, 2**31 - 1),
    "workspace": choice(WorkspaceMode),
    "workspace_path": lambda key, value: check_workspace(absolute_path(key, value)),
    "mounts": list_of(_mount, "a list of tables {source, target, mode}"),
    "hide": list_of(absolute_path, "a list of absolute paths or of paths that begin with ~/"),
    **CAP_PARSERS,
    "user": parse_user,
    "on_missing_cap": choice(MissingCap),
    "rlimits": parse_rlimits,
    "home_size": size_of(MIB),
    "tmp_size": size_of(MIB),
    "shm_size": size_of(MIB),
    "run_size": size_of(MIB),
    "overlay_size": size_of(MIB),
    "inodes": integer(1000, 2**31 - 1),
    "on_memory_pressure": choice(MemoryPressure),
    "warn_throttled": number(0.01, 1.0),
    **OUTPUT_PARSERS,
    "network": choice(NetworkPolicy),
    "env_pass": list_of(
        pattern(_NAME, "the name of an environment variable"), "a list of names of variables"
    ),
    "hostname": pattern(_HOSTNAME, "a host name of small letters, digits and '-', up to 63"),
    "transport": choice(Transport),
    "start_timeout": number(1.0, 600.0),
    "cell_timeout": number(TIME_MINIMUM, TIME_MAXIMUM),
    "lifetime": number(TIME_MINIMUM, TIME_MAXIMUM),
    "idle_timeout": number(TIME_MINIMUM, TIME_MAXIMUM),
    "time_grace": number(0.1, 3600.0),
    "zygote": boolean,
    "preload": list_of(pattern(_MODULE, "the name of a module"), "a list of names of modules"),
    "pool": integer(0, POOL_MAXIMUM),
    "audit_log": _audit_log,
    "audit_code": boolean,
}

#: Every key that a kernelspec's config may have, for the reference and for completion.
KEYS: Final = tuple(_PARSERS)
