"""Spec and facts → the plan. Pure: no system call, unit-tested without privileges.

The order: the system, what is made up, own file systems, then everything of the user sorted by
depth, so that a parent is always mounted before what lies below it, then the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Final

from ...errors import MountError
from ...spec import KIB, MIB, Identity, Mount, MountMode, SandboxSpec, WorkspaceMode, is_system
from .facts import HostFacts
from .operations import (
    Absent,
    Bind,
    Device,
    Devpts,
    Directory,
    File,
    Mask,
    Operation,
    Overlay,
    Proc,
    ReadOnly,
    Seal,
    Symlink,
    Sysfs,
    Tmpfs,
)

#: The parts of the host's /etc that programs need and that tell nothing of its users.
ETC: Final = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "fonts", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "locale.alias", "matplotlibrc", "mime.types",
    "os-release", "pki", "protocols", "services", "ssl", "timezone", "terminfo",
)  # fmt: skip

#: (name, major, minor) of the only device nodes inside.
DEVICES: Final = (
    ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
    ("tty", 5, 0),
)  # fmt: skip

MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
    "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/proc/vmallocinfo", "/proc/slabinfo", "/proc/modules",
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/kernel/debug", "/sys/kernel/security",
    "/sys/kernel/tracing", "/sys/fs/bpf",
)  # fmt: skip

#: Counts what a processor is kept from, and so what others let it do; each has its own.
THERMAL: Final = "/sys/devices/system/cpu/cpu{}/thermal_throttle"

READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

#: Below the home: what holds keys and tokens. Empty inside, even where the workspace is the home.
SECRETS: Final = (
    ".aws", ".azure", ".boto", ".cache/huggingface/token", ".cargo/credentials",
    ".cargo/credentials.toml", ".config/containers", ".config/gcloud", ".config/gh", ".config/git",
    ".config/hub", ".config/op", ".config/rclone", ".config/sops", ".databrickscfg", ".docker",
    ".git-credentials", ".gnupg", ".huggingface", ".jupyter", ".kaggle", ".kube",
    ".local/share/jupyter", ".local/share/keyrings", ".mozilla", ".netrc", ".npmrc",
    ".password-store", ".pgpass", ".pki", ".pypirc", ".s3cfg", ".snowflake", ".ssh",
    ".terraform.d", ".terraformrc", ".thunderbird", ".vault-token",
)  # fmt: skip

#: Below the home: what a shell, a login or a Python *outside* would execute. No workspace and no
#: extra mount that is writable may lie there, or hold the home as a whole: a kernel could make the
#: ones that do not exist yet.
EXECUTED_OUTSIDE: Final = (
    ".bash_aliases", ".bash_login", ".bash_logout", ".bash_profile", ".bashrc", ".cargo", ".conda",
    ".config", ".cshrc", ".emacs", ".emacs.d", ".gdbinit", ".gitconfig", ".inputrc", ".ipython",
    ".kshrc", ".local", ".login", ".nvm", ".oh-my-zsh", ".pam_environment", ".profile", ".pyenv",
    ".pythonrc", ".rbenv", ".rustup", ".tcshrc", ".tmux.conf", ".vim", ".vimrc", ".xinitrc",
    ".xprofile", ".xsession", ".xsessionrc", ".zlogin", ".zlogout", ".zprofile", ".zshenv",
    ".zshrc", "bin",
)  # fmt: skip

#: Below the home: caches that are slow to make again. A layer in memory takes the writes.
CACHES: Final = (".cache/matplotlib", ".cache/fontconfig")


def plan_rootfs(
    spec: SandboxSpec, facts: HostFacts, *, uid: int, gid: int, cwd: str
) -> tuple[Operation, ...]:
    """The whole root file system for a kernel that is ``uid``/``gid`` inside and starts in ``cwd``.

    ``cwd`` is the workspace unless the spec names another one.

    Raises:
        MountError: the workspace or an extra mount would open a hole in a wall.
    """
    workspace = spec.workspace_path or cwd
    mounts = tuple(replace(m, target=_real_target(facts, m.target)) for m in spec.mounts)
    spec = replace(spec, mounts=mounts)
    _check_holes(spec, facts, workspace)
    user: list[Operation] = [*_home(spec, facts, workspace), *_python(facts)]
    user += _workspace(spec, facts, workspace)
    user += [_extra(spec, facts, mount) for mount in spec.mounts]
    user += _protected(spec, facts, workspace, {operation.target for operation in user})
    user.sort(key=lambda operation: operation.target.count("/"))
    return (
        *_system(facts),
        *_made_up(spec, facts, uid, gid),
        *_own_file_systems(spec, uid),
        *user,
        *(Mask(path) for path in masked(facts.processors)),
        *(ReadOnly(path) for path in READ_ONLY),
        *_secrets(spec, facts),
        Seal("/dev"),
    )


def masked(processors: int) -> tuple[str, ...]:
    """Everything that is hidden of /proc and /sys, on a machine with so many processors."""
    return (*MASKED, *(THERMAL.format(number) for number in range(processors)))


def writable_targets(plan: tuple[Operation, ...]) -> tuple[str, ...]:
    """Where the kernel may write, as Landlock is told and as the audit compares."""
    sealed = {operation.target for operation in plan if isinstance(operation, Seal)}
    return tuple(
        operation.target
        for operation in plan
        if operation.target not in sealed
        and (
            isinstance(operation, (Tmpfs, Device, Devpts, Proc))
            or (isinstance(operation, (Bind, Overlay)) and not operation.readonly)
        )
    )


def is_within(path: str, folder: str) -> bool:
    """Is ``path`` the folder or something below it? Both absolute and normal."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _system(facts: HostFacts) -> list[Operation]:
    operations: list[Operation] = []
    for path, link in facts.system:
        operations.append(Bind(path, path) if link is None else Symlink(path, link))
    operations.append(Directory("/etc"))
    operations += [
        Bind(f"/etc/{name}", f"/etc/{name}", absent=Absent.SKIP, follow=True) for name in ETC
    ]
    return operations


def _made_up(spec: SandboxSpec, facts: HostFacts, uid: int, gid: int) -> list[Operation]:
    """passwd, group, hosts, resolv.conf and their kin: nobody of the host but the user."""
    user = "root" if uid == 0 else facts.user if facts.user != "root" else "kernel"
    group = "root" if gid == 0 else facts.group if facts.group != "root" else "kernel"
    passwd = [f"{user}:x:{uid}:{gid}::{facts.home}:/bin/bash"]
    groups = [f"{group}:x:{gid}:"]
    if uid != 0:
        passwd.append("root:x:0:0:root:/:/usr/sbin/nologin")
    if gid != 0:
        groups.append("root:x:0:")
    passwd.append("nobody:x:65534:65534:nobody:/:/usr/sbin/nologin")
    groups.append("nogroup:x:65534:")
    return [
        File("/etc/passwd", "\n".join(passwd) + "\n"),
        File("/etc/group", "\n".join(groups) + "\n"),
        File("/etc/hosts", f"127.0.0.1 localhost {spec.hostname}\n::1 localhost\n"),
        File("/etc/hostname", spec.hostname + "\n"),
        File("/etc/resolv.conf", "# no name server: the network policy is 'none'\n"),
        File("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        File("/etc/machine-id", ""),
        Symlink("/etc/mtab", "/proc/self/mounts"),
    ]


def _devices(spec: SandboxSpec) -> Iterator[Device]:
    """What the cap ``devices`` leaves out is not there; the walls need ``/dev/null``."""
    allowed = spec.caps.devices
    for name, major, minor in DEVICES:
        if allowed is None or name == "null" or f"/dev/{name}" in allowed:
            yield Device(f"/dev/{name}", major, minor)


def _own_file_systems(spec: SandboxSpec, uid: int) -> list[Operation]:
    limits = spec.tmpfs
    few = min(limits.inodes, 10_000)
    return [
        Proc(),
        Sysfs(),
        Tmpfs("/dev", 64 * KIB, 64, noexec=True),
        *_devices(spec),
        Directory("/dev/pts"),
        Devpts(),
        Symlink("/dev/ptmx", "pts/ptmx"),
        Symlink("/dev/fd", "/proc/self/fd"),
        Symlink("/dev/stdin", "/proc/self/fd/0"),
        Symlink("/dev/stdout", "/proc/self/fd/1"),
        Symlink("/dev/stderr", "/proc/self/fd/2"),
        Tmpfs("/dev/shm", limits.shm, limits.inodes, mode=0o1777, noexec=False),
        Tmpfs("/tmp", limits.tmp, limits.inodes, mode=0o1777),
        Tmpfs("/run", limits.run, few),
        Directory("/run/user"),
        Directory(f"/run/user/{uid}", mode=0o700),
        Directory("/var"),
        Tmpfs("/var/tmp", limits.tmp, limits.inodes, mode=0o1777),
        Symlink("/var/run", "/run"),
        Bind("/var/cache/fontconfig", "/var/cache/fontconfig", absent=Absent.SKIP, follow=True),
    ]


def _home(spec: SandboxSpec, facts: HostFacts, workspace: str) -> list[Operation]:
    if spec.workspace is not WorkspaceMode.NONE and workspace == facts.home:
        return []
    caches: list[Operation] = []
    if spec.identity is not Identity.ISOLATED:
        caches = [
            Overlay(f"{facts.home}/{c}", f"{facts.home}/{c}", 64 * MIB, 1000, Absent.SKIP)
            for c in CACHES
        ]
    home = Tmpfs(facts.home, spec.tmpfs.home, spec.tmpfs.inodes, mode=0o700)
    return [home, *caches]


def _python(facts: HostFacts) -> list[Operation]:
    binds = [Bind(path, path) for path in facts.prefixes]
    return [*binds, *(Symlink(link, real) for link, real in _links(facts))]


def _links(facts: HostFacts) -> list[tuple[str, str]]:
    """(place inside, real path) of each alias that is not there already with its prefix."""
    links = []
    for alias, real in facts.aliases:
        others = [pair for pair in facts.aliases if pair[0] != alias]
        place = _through_aliases(others, alias)  # a link below a link lies behind the first
        if place != real and not any(is_within(place, f) for f in (*facts.prefixes, "/usr")):
            links.append((place, real))
    return links


def _through_aliases(aliases: Sequence[tuple[str, str]], path: str) -> str:
    """``path`` with the longest alias that it begins with replaced by what that stands for."""
    for alias, real in sorted(aliases, key=lambda pair: -len(pair[0])):
        if is_within(path, alias):
            return real + path[len(alias) :]
    return path


def _real_target(facts: HostFacts, target: str) -> str:
    """A target that was named through a link of the environment, such as the home's other name."""
    path = _through_aliases(_links(facts), _through_aliases(facts.aliases, target))
    if is_system(path):
        raise MountError(f"{target} cannot be a mount target", cause=f"it is {path} inside")
    return path


def _workspace(spec: SandboxSpec, facts: HostFacts, workspace: str) -> list[Operation]:
    limits = spec.tmpfs
    match spec.workspace:
        case WorkspaceMode.RW:
            return [Bind(workspace, workspace, readonly=False)]
        case WorkspaceMode.RO:
            return [_read_only(spec, facts, workspace, workspace)]
        case WorkspaceMode.OVERLAY:
            return [_overlay(spec, facts, workspace, workspace)]
        case WorkspaceMode.NONE:
            return [Tmpfs(workspace, limits.overlay, limits.inodes, mode=0o700)]


def _extra(spec: SandboxSpec, facts: HostFacts, mount: Mount) -> Operation:
    match mount.mode:
        case MountMode.RW:
            return Bind(mount.source, mount.target, readonly=False)
        case MountMode.RO:
            return _read_only(spec, facts, mount.source, mount.target)
        case MountMode.OVERLAY:
            return _overlay(spec, facts, mount.source, mount.target)


def _read_only(spec: SandboxSpec, facts: HostFacts, source: str, target: str) -> Operation:
    """A bind, or where something below is hidden, an overlay that nobody can write to."""
    if hidden := _hidden_below(spec, facts, source):
        return Overlay(source, target, MIB, len(hidden) * 16 + 64, hidden=hidden, readonly=True)
    return Bind(source, target)


def _overlay(spec: SandboxSpec, facts: HostFacts, source: str, target: str) -> Overlay:
    hidden = _hidden_below(spec, facts, source)
    return Overlay(source, target, spec.tmpfs.overlay, spec.tmpfs.inodes, hidden=hidden)


def _hidden_below(spec: SandboxSpec, facts: HostFacts, source: str) -> tuple[str, ...]:
    """Hidden paths relative to ``source``, none below another."""
    below = sorted({p for p in _hidden(spec, facts) if is_within(p, source) and p != source})
    outermost = [p for p in below if not any(is_within(p, q) for q in below if q != p)]
    return tuple(p[len(source) :].strip("/") for p in outermost)


def _shown(spec: SandboxSpec, workspace: str) -> list[tuple[str, str, bool]]:
    """(source, target, writable through) of everything of the user's that is shown inside."""
    shown = [(m.source, m.target, m.mode is MountMode.RW) for m in spec.mounts]
    if spec.workspace is not WorkspaceMode.NONE:
        shown.append((workspace, workspace, spec.workspace is WorkspaceMode.RW))
    return shown


def _inside(path: str, source: str, target: str) -> str:
    """Where the host's ``path`` below ``source`` appears below ``target``."""
    return target + path[len(source) :] if source != "/" else target.rstrip("/") + path


def _protected(
    spec: SandboxSpec, facts: HostFacts, workspace: str, targets: Set[str]
) -> list[Operation]:
    """Read-only again inside what is writable: the Python environment and ``.git``, from which a
    ``git status`` outside runs programs. ``targets`` are those of the plan so far."""
    operations: list[Operation] = []
    for source, target, writable in _shown(spec, workspace):
        if not writable:
            continue
        paths = [f"{shown}/.git" for shown, _, _ in _shown(spec, workspace)]
        if source != target:  # at its own place each prefix is bound by _python
            paths += facts.prefixes
        below = [p for p in dict.fromkeys(paths) if is_within(p, source) and p != source]
        operations += [
            Bind(path, _inside(path, source, target), absent=Absent.SKIP)
            for path in below
            if not _is_covered(targets, target, _inside(path, source, target))
        ]
        held = [*below, *(m.source for m in spec.mounts)]
        held += facts.prefixes if source == target else ()
        operations += [
            Bind(path, _inside(path, source, target), readonly=False, absent=Absent.SKIP)
            for path in _pinned(source, held)
            if not any(is_within(path, protected) for protected in below)
            and not _is_covered(targets, target, _inside(path, source, target))
        ]
    return operations


def _pinned(top: str, paths: list[str]) -> list[str]:
    """The folders strictly between ``top`` and each of ``paths``. Bound onto themselves they become
    mount points, which cannot be renamed: otherwise ``mv a x`` would take the protection of
    a/.venv away, and what is hidden would be seen by the next kernel."""
    folders: dict[str, None] = {}
    for path in paths:
        if is_within(path, top):
            names = path[len(top) :].strip("/").split("/")[:-1]
            folders |= {f"{top}/{'/'.join(names[: n + 1])}": None for n in range(len(names))}
    return list(folders)


def _is_covered(targets: Set[str], top: str, target: str) -> bool:
    """Does something else of the plan below ``top`` stand at ``target`` or above? It stays."""
    return any(t != top and is_within(t, top) and is_within(target, t) for t in targets)


def _hidden(spec: SandboxSpec, facts: HostFacts) -> tuple[str, ...]:
    return (*_in_homes(facts, SECRETS), *spec.hide)


def _in_homes(facts: HostFacts, names: Sequence[str]) -> list[str]:
    return [f"{home}/{name}" for home in facts.homes for name in names]


def _secrets(spec: SandboxSpec, facts: HostFacts) -> list[Operation]:
    """What lies below a folder of the Python environment. Elsewhere a layer hides it, or the start
    is refused."""
    return [
        Mask(path)
        for path in dict.fromkeys(_hidden(spec, facts))
        if any(is_within(path, prefix) for prefix in facts.prefixes)
    ]


def _check_holes(spec: SandboxSpec, facts: HostFacts, workspace: str) -> None:
    for source, _, writable in _shown(spec, workspace):
        for path in _hidden(spec, facts):
            if is_within(source, path):
                raise MountError(
                    f"{source} cannot be shown inside",
                    cause=f"it lies in {path}, which is hidden: it holds secrets or configuration",
                    remedy="use another folder",
                )
        if writable:
            _check_writable_hole(facts, source)
            if below := _hidden_below(spec, facts, source):
                raise MountError(
                    f"{source} cannot be writable inside",
                    cause=f"it holds {source}/{below[0]}, which is hidden, and what hides a file "
                    "goes when the file is replaced",
                    remedy="use mode 'ro' or 'overlay', or another folder",
                )


def _check_writable_hole(facts: HostFacts, source: str) -> None:
    """Nothing that the sandbox can write is ever executed outside it (CVE-2019-5736)."""
    fact = f"{source} cannot be writable inside"
    for home in facts.homes:
        if is_within(home, source):
            raise MountError(
                fact,
                cause="it is the home or holds it, and a kernel could make a ~/.bash_profile "
                "there, which the next login outside would run",
                remedy="put the notebook in a folder below the home, or set workspace to 'overlay' "
                "or 'ro'",
            )
    for path in (*_in_homes(facts, EXECUTED_OUTSIDE), *facts.executed):
        if is_within(source, path):
            raise MountError(
                fact,
                cause=f"it lies in {path}, which programs outside read and execute",
                remedy="use mode 'ro' or 'overlay', or another folder",
            )
        if is_within(path, source):
            raise MountError(
                fact,
                cause=f"it holds {path}, which programs outside read and execute",
                remedy="use mode 'ro' or 'overlay', or another folder",
            )
    for prefix in (*facts.prefixes, "/usr"):
        if is_within(source, prefix):
            raise MountError(
                fact,
                cause=f"it lies in the Python environment {prefix}, which runs outside as well",
                remedy="use mode 'ro' or 'overlay', or another folder",
            )
    if ".git" in source.split("/"):
        raise MountError(
            fact,
            cause="it lies in a .git folder, from which git outside runs programs",
            remedy="use mode 'ro' or 'overlay'",
        )
