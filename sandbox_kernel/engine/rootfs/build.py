"""Execute a plan through descriptors, then pivot into it.

Called by the init, in its own mount namespace, still with the capabilities of its user namespace.
Two phases: first, as the user it was on the host, :func:`open_sources` clones every source into a
detached mount; then, as the user it is inside, :func:`build` makes the tree and attaches them.
After the first phase no host path is looked up again, so a symlink that is exchanged later
changes nothing. Targets are resolved with ``openat2`` beneath the new root, without symlinks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from ...errors import MountError, describe_errno
from ...syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MountAttr,
    MountFlag,
    OpenTreeFlag,
    Resolve,
    SyscallError,
    UmountFlag,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    openat2,
    pivot_root,
    umount2,
)
from .operations import (
    NULL,
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

#: The root itself: directories, links and the small files of /etc.
_ROOT_SIZE: Final = 16 * 1024 * 1024
_ROOT_INODES: Final = 10_000
#: Where the new root is mounted; any directory that every system has would do.
_SCAFFOLD: Final = "/tmp"
# Flags of every operation are put together once: each ``|`` of an enum costs as much as a mount.
_SAFE: Final = MountFlag.NOSUID | MountFlag.NODEV
_SAFE_NOEXEC: Final = _SAFE | MountFlag.NOEXEC
_SAFE_ATTR: Final = MountAttr.NOSUID | MountAttr.NODEV
_SAFE_RDONLY_ATTR: Final = _SAFE_ATTR | MountAttr.RDONLY
_IN_ROOT: Final = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
_IN_ROOT_NO_SYMLINKS: Final = _IN_ROOT | Resolve.NO_SYMLINKS
_BENEATH_NO_SYMLINKS: Final = Resolve.BENEATH | Resolve.NO_SYMLINKS
_CLONE_MOUNT: Final = int(OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC) | AT_EMPTY_PATH


@dataclass(frozen=True)
class Source:
    """A detached mount, and whether its root is a directory."""

    fd: int
    is_directory: bool
    origin: int
    """What was cloned, as O_PATH among the mounts of the host."""


@dataclass
class Sources:
    """The detached mounts of a plan by operation index."""

    by_index: dict[int, Source] = field(default_factory=dict)

    def close(self) -> None:
        for source in self.by_index.values():
            os.close(source.fd)
            os.close(source.origin)
        self.by_index.clear()


def open_sources(plan: tuple[Operation, ...]) -> Sources:
    """First phase: clone every source of ``plan`` into a detached mount.

    Raises:
        MountError: a source that must be there is not, or is not what it should be.
    """
    make_private()
    sources = Sources()
    with ExitStack() as stack:
        stack.callback(sources.close)
        folders: dict[str, int] = {}
        for index, operation in enumerate(plan):
            if isinstance(operation, (Bind, Overlay)):
                source = _source(operation, folders)
                if source is not None:
                    sources.by_index[index] = source
                    folders.setdefault(operation.source, source.origin)
            elif isinstance(operation, Device):
                sources.by_index[index] = _clone_device(operation)
        stack.pop_all()
    return sources


def make_private() -> None:
    """Nothing mounted from here on is seen outside, and nothing mounted outside arrives here."""
    try:
        mount("none", "/", "", MountFlag.REC | MountFlag.SLAVE)
    except SyscallError as error:
        raise MountError(
            "the mounts of the host could not be made private",
            cause=describe_errno(error.errno or 0),
            path="/",
        ) from error


_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)


def _source(operation: Bind | Overlay, folders: dict[str, int]) -> Source | None:
    """The clone of an operation's source. ``folders`` are the origins so far, by path.

    What lies in one of them is looked up from *its* descriptor: whoever exchanges the workspace
    between two look-ups would else have the .git of one folder protected, and show another.
    """
    path = operation.source
    if isinstance(operation, Bind) and operation.follow:
        return _clone(path, operation.absent, follow=True)
    above = max((f for f in folders if path.startswith(f"{f}/")), key=len, default=None)
    if above is None:
        return _clone(path, operation.absent, follow=False)
    relative = path[len(above) + 1 :]
    return _clone_at(folders[above], relative, _BENEATH_NO_SYMLINKS, path, operation.absent)


def _clone(path: str, absent: Absent, *, follow: bool) -> Source | None:
    resolve = Resolve.NO_MAGICLINKS if follow else Resolve.NO_SYMLINKS
    return _clone_at(AT_FDCWD, path, resolve, path, absent)


def _clone_at(
    folder: int, relative: str, resolve: Resolve, path: str, absent: Absent
) -> Source | None:
    """``path`` is for people: what ``relative`` is, seen from ``folder``."""
    try:
        fd = openat2(folder, relative, os.O_PATH, resolve=resolve)
    except SyscallError as error:
        if absent is Absent.SKIP and error.errno in _NOT_THERE:
            return None
        raise MountError(
            f"{path} cannot be mounted", cause=describe_errno(error.errno or 0)
        ) from error
    try:
        kind = os.fstat(fd).st_mode
        return Source(_detach(fd, path), stat.S_ISDIR(kind), fd)
    except BaseException:
        os.close(fd)
        raise


def _clone_device(device: Device) -> Source:
    fd = os.open(device.target, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _check_device(fd, device)
        return Source(_detach(fd, device.target), False, fd)
    except BaseException:
        os.close(fd)
        raise


def _check_device(fd: int, device: Device) -> None:
    """CVE-2025-31133: what is bound as /dev/null must *be* 1:3, whatever the name says."""
    found = os.fstat(fd)
    numbers = os.major(found.st_rdev), os.minor(found.st_rdev)
    if not stat.S_ISCHR(found.st_mode) or numbers != (device.major, device.minor):
        raise MountError(
            f"{device.target} is not the character device {device.major}:{device.minor}",
            cause=f"it is mode {found.st_mode:o}, device {numbers[0]}:{numbers[1]}",
        )


def _detach(fd: int, path: str) -> int:
    try:
        return open_tree(fd, "", _CLONE_MOUNT | AT_RECURSIVE)
    except SyscallError as error:
        raise MountError(
            f"{path} cannot be mounted", cause=f"open_tree: {describe_errno(error.errno or 0)}"
        ) from error


def build(plan: tuple[Operation, ...], sources: Sources) -> int:
    """Second phase: make the root and everything in it; a descriptor of the new root.

    The caller is the id it will be inside: what is made belongs to it.
    """
    options = f"size={_ROOT_SIZE},nr_inodes={_ROOT_INODES},mode=0755"
    old_umask = os.umask(0o022)
    try:
        mount("sandbox", _SCAFFOLD, "tmpfs", _SAFE, options)
        root = os.open(_SCAFFOLD, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        builder = _Builder(root, sources)
        for index, operation in enumerate(plan):
            _execute(builder, index, operation)
        return root
    except SyscallError as error:
        raise MountError(
            "the root file system could not be built",
            cause=f"{error.syscall}: {describe_errno(error.errno or 0)}",
            path=error.path,
        ) from error
    finally:
        os.umask(old_umask)


def _execute(builder: _Builder, index: int, operation: Operation) -> None:
    try:
        builder.run(index, operation)
    except OSError as error:
        number = error.errno or 0
        syscall = getattr(error, "syscall", "open")
        cause, remedy = f"{syscall}: {describe_errno(number)}", None
        if isinstance(operation, (Proc, Sysfs)) and number == errno.EPERM:
            cause += (
                f"; the kernel refuses a new {operation.target} where the outer one has something "
                "mounted over it, as inside Docker or a pod"
            )
        raise MountError(
            f"could not do '{' '.join(operation.describe().split())}'", cause=cause, remedy=remedy
        ) from error


class _Builder:
    """One execution: the new root, and a method for each kind of operation."""

    def __init__(self, root: int, sources: Sources) -> None:
        self.root = root
        self.sources = sources

    def run(self, index: int, operation: Operation) -> None:
        match operation:
            case Directory():
                fd = self._directory(operation.target)
                os.chmod(f"/proc/self/fd/{fd}", operation.mode)
                os.close(fd)
            case Symlink():
                self._symlink(operation)
            case File():
                self._file(operation.target, operation.content, operation.mode)
            case Bind():
                self._bind(index, operation)
            case Device():
                mount_point = self._file(operation.target, "")
                self._attach(self.sources.by_index[index].fd, mount_point, MountAttr.NOSUID)
            case Overlay():
                self._overlay(index, operation)
            case Tmpfs():
                self._tmpfs(operation)
            case Proc() | Sysfs() | Devpts():
                self._kernel_file_system(operation)
            case Mask():
                self._mask(operation.target)
            case ReadOnly():
                self._read_only(operation.target)
            case Seal():
                point = self._open(operation.target)
                mount_setattr(point, set_=MountAttr.RDONLY)
                os.close(point)

    def _open(self, target: str, flags: int = os.O_PATH) -> int:
        """A descriptor of ``target``, beneath the new root, with no symlink on the way."""
        relative = target.lstrip("/") or "."
        return openat2(self.root, relative, flags, resolve=_IN_ROOT_NO_SYMLINKS)

    def _directory(self, target: str) -> int:
        """The directory ``target``, made with its parents where it is not there yet."""
        try:
            return self._open(target, os.O_PATH | os.O_DIRECTORY)
        except SyscallError as error:
            if error.errno != errno.ENOENT:
                raise
        parent = self._directory(os.path.dirname(target))
        try:
            os.mkdir(os.path.basename(target), 0o755, dir_fd=parent)
        finally:
            os.close(parent)
        return self._open(target, os.O_PATH | os.O_DIRECTORY)

    def _file(self, target: str, content: str, mode: int = 0o644) -> int:
        """The file ``target`` with ``content``, made where it is not there, as O_PATH."""
        parent = self._directory(os.path.dirname(target))
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(os.path.basename(target), flags, mode, dir_fd=parent)
            try:
                os.write(fd, content.encode())
            finally:
                os.close(fd)
        except FileExistsError:
            if content:
                raise
        finally:
            os.close(parent)
        return self._open(target)

    def _symlink(self, operation: Symlink) -> None:
        parent = self._directory(os.path.dirname(operation.target))
        try:
            os.symlink(operation.to, os.path.basename(operation.target), dir_fd=parent)
        except FileExistsError:
            pass  # a prefix that was bound before has it already
        finally:
            os.close(parent)

    def _bind(self, index: int, operation: Bind) -> None:
        source = self.sources.by_index.get(index)
        if source is None:
            return
        point = (
            self._directory(operation.target)
            if source.is_directory
            else self._file(operation.target, "")
        )
        self._attach(source.fd, point, _SAFE_RDONLY_ATTR if operation.readonly else _SAFE_ATTR)

    def _attach(self, detached: int, mount_point: int, attributes: MountAttr) -> None:
        """Set the attributes on the whole detached tree, then attach it: never the other way."""
        try:
            mount_setattr(detached, set_=attributes, propagation=MountFlag.PRIVATE, recursive=True)
            move_mount(detached, mount_point)
        finally:
            os.close(mount_point)

    def _tmpfs(self, operation: Tmpfs) -> None:
        point = self._directory(operation.target)
        options = f"size={operation.size},nr_inodes={operation.inodes},mode={operation.mode:04o}"
        self._mount_at(point, "tmpfs", _SAFE_NOEXEC if operation.noexec else _SAFE, options)

    def _mount_at(self, point: int, kind: str, flags: MountFlag, options: str = "") -> None:
        try:
            mount(kind, f"/proc/self/fd/{point}", kind, flags, options)
        finally:
            os.close(point)

    def _kernel_file_system(self, operation: Proc | Sysfs | Devpts) -> None:
        flags = _SAFE_NOEXEC
        point = self._directory(operation.target)
        match operation:
            case Proc():
                self._mount_at(point, "proc", flags)
            case Sysfs():
                self._mount_at(point, "sysfs", flags | MountFlag.RDONLY)
            case Devpts():
                self._mount_at(
                    point, "devpts", MountFlag.NOSUID | MountFlag.NOEXEC,
                    "newinstance,ptmxmode=0666,mode=0620,max=256",
                )  # fmt: skip

    def _overlay(self, index: int, operation: Overlay) -> None:
        """The lower layer is the clone itself, the upper one a tmpfs that is then hidden."""
        source = self.sources.by_index.get(index)
        if source is None:
            return
        mount_setattr(source.fd, set_=_SAFE_RDONLY_ATTR, recursive=True)
        layers = self._directory(f"/.layers/{index}")
        options = f"size={operation.size},nr_inodes={operation.inodes},mode=0700"
        self._mount_at(layers, "tmpfs", _SAFE, options)
        base = self._directory(f"/.layers/{index}")
        for name in ("lower", "upper", "work"):
            os.mkdir(name, 0o755, dir_fd=base)
        for path in operation.hidden:
            _white_out(source.fd, base, path)
        lower = self._directory(f"/.layers/{index}/lower")
        move_mount(source.fd, lower)
        os.close(lower)
        point = self._directory(operation.target)
        where = f"/proc/self/fd/{base}"
        data = f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work,userxattr"
        try:
            flags = _SAFE | (MountFlag.RDONLY if operation.readonly else MountFlag.NONE)
            self._mount_at(point, "overlay", flags, data)
            umount2(where, UmountFlag.DETACH)  # the overlay keeps its layers, nobody else sees them
        finally:
            os.close(base)
        os.rmdir(f"/proc/self/fd/{self.root}/.layers/{index}")
        os.rmdir(f"/proc/self/fd/{self.root}/.layers")

    def _mask(self, target: str) -> None:
        try:
            point = self._open(target)
        except SyscallError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            if error.errno == errno.ELOOP:
                self._mask_symlink(target)
                return
            raise
        if stat.S_ISDIR(os.fstat(point).st_mode):
            flags = _SAFE_NOEXEC | MountFlag.RDONLY
            self._mount_at(point, "tmpfs", flags, "size=4k,nr_inodes=2,mode=0555")
            return
        null = self._null()
        try:
            self._attach(null, point, MountAttr.RDONLY | MountAttr.NOSUID | MountAttr.NOEXEC)
        finally:
            os.close(null)

    def _null(self) -> int:
        """A new mount of the sandbox's own /dev/null: before Linux 6.15 only a mount that is
        attached can be cloned, so not one of the sources."""
        own = self._open(NULL.target)
        try:
            _check_device(own, NULL)
            return open_tree(own, "", int(OpenTreeFlag.CLONE) | AT_EMPTY_PATH)
        finally:
            os.close(own)

    def _mask_symlink(self, target: str) -> None:
        """A hidden path with a symlink on it: refused, unless it leads nowhere inside."""
        try:
            point = openat2(self.root, target.lstrip("/"), os.O_PATH, resolve=_IN_ROOT)
        except SyscallError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            raise
        os.close(point)
        raise MountError(
            f"{target} cannot be hidden",
            cause="there is a symbolic link on its path inside, and what it points to is visible",
            remedy="name the real path in 'hide', or choose a workspace that does not hold it",
        )

    def _read_only(self, target: str) -> None:
        try:
            point = self._open(target)
        except SyscallError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        clone = open_tree(point, "", int(OpenTreeFlag.CLONE) | AT_EMPTY_PATH | AT_RECURSIVE)
        try:
            attributes = MountAttr.RDONLY | MountAttr.NOSUID | MountAttr.NODEV | MountAttr.NOEXEC
            self._attach(clone, point, attributes)
        finally:
            os.close(clone)


def _white_out(lower: int, base: int, path: str) -> None:
    """Hide ``path`` in the upper layer: a whiteout, the 0:0 device that anybody may make.

    Folders above it get the mode that they have below. The first that is missing there, or is not
    a folder, is hidden itself, with whatever it may hold later.
    """
    upper = os.open("upper", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
    *folders, last = path.split("/")
    done: list[str] = []
    for name in folders:
        done.append(name)
        try:
            found = os.stat("/".join(done), dir_fd=lower, follow_symlinks=False)
        except OSError:
            found = None
        if found is None or not stat.S_ISDIR(found.st_mode):
            last = name
            break
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=upper)
        deeper = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=upper)
        os.close(upper)
        upper = deeper
        os.chmod(f"/proc/self/fd/{upper}", stat.S_IMODE(found.st_mode))
    with contextlib.suppress(FileExistsError):
        os.mknod(last, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=upper)
    os.close(upper)


def pivot(root: int) -> None:
    """``pivot_root(".", ".")`` into ``root``; the host's tree is gone afterwards.

    The root itself becomes read-only: what is writable is what the plan mounted on it.
    """
    try:
        old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchdir(root)
        pivot_root(".", ".")
        os.fchdir(old)
        mount("none", ".", "", MountFlag.REC | MountFlag.SLAVE)
        umount2(".", UmountFlag.DETACH)
        os.close(old)
        os.chdir("/")
        top = open_tree(AT_FDCWD, "/", int(OpenTreeFlag.CLOEXEC))
        mount_setattr(top, set_=_SAFE_RDONLY_ATTR)
        os.close(top)
    except SyscallError as error:
        raise MountError(
            "the root file system could not be entered",
            cause=f"{error.syscall}: {describe_errno(error.errno or 0)}",
            path=error.path,
        ) from error
