"""The cffi builder of ``sandbox_kernel.syscalls._lib``: C facts, nothing else.

API mode: the compiler supplies every constant and the layout of every structure, so a wrong guess
is a build error. Names newer than the oldest headers we build on have a fall-back, which is the
kernel's own stable ABI. Needs a C compiler and Python's headers.
"""

from __future__ import annotations

from cffi import FFI

#: (name, fall-back or None): constants that Python code reads.
CONSTANTS: tuple[tuple[str, str | None], ...] = (
    ("CLONE_NEWNS", None),
    ("CLONE_NEWUTS", None),
    ("CLONE_NEWIPC", None),
    ("CLONE_NEWUSER", None),
    ("CLONE_NEWPID", None),
    ("CLONE_NEWNET", None),
    ("CLONE_NEWCGROUP", "0x02000000"),
    ("CLONE_NEWTIME", "0x00000080"),
    ("MS_RDONLY", None),
    ("MS_NOSUID", None),
    ("MS_NODEV", None),
    ("MS_NOEXEC", None),
    ("MS_REMOUNT", None),
    ("MS_BIND", None),
    ("MS_REC", None),
    ("MS_SLAVE", None),
    ("MS_PRIVATE", None),
    ("MNT_DETACH", None),
    ("UMOUNT_NOFOLLOW", None),
    ("OPEN_TREE_CLONE", "1"),
    ("OPEN_TREE_CLOEXEC", "02000000"),
    ("AT_EMPTY_PATH", "0x1000"),
    ("AT_RECURSIVE", "0x8000"),
    ("AT_SYMLINK_NOFOLLOW", None),
    ("MOVE_MOUNT_F_EMPTY_PATH", "0x00000004"),
    ("MOVE_MOUNT_T_EMPTY_PATH", "0x00000040"),
    ("MOUNT_ATTR_RDONLY", "0x00000001"),
    ("MOUNT_ATTR_NOSUID", "0x00000002"),
    ("MOUNT_ATTR_NODEV", "0x00000004"),
    ("MOUNT_ATTR_NOEXEC", "0x00000008"),
    ("MOUNT_ATTR_IDMAP", "0x00100000"),
    ("RESOLVE_NO_MAGICLINKS", "0x02"),
    ("RESOLVE_NO_SYMLINKS", "0x04"),
    ("RESOLVE_BENEATH", "0x08"),
    ("RESOLVE_IN_ROOT", "0x10"),
    ("PR_SET_PDEATHSIG", None),
    ("PR_SET_DUMPABLE", None),
    ("PR_GET_DUMPABLE", None),
    ("PR_SET_KEEPCAPS", None),
    ("PR_SET_NAME", None),
    ("PR_SET_NO_NEW_PRIVS", None),
    ("PR_GET_NO_NEW_PRIVS", None),
    ("PR_SET_CHILD_SUBREAPER", None),
    ("PR_CAPBSET_DROP", None),
    ("PR_CAPBSET_READ", None),
    ("PR_SET_SECUREBITS", None),
    ("PR_CAP_AMBIENT", "47"),
    ("PR_CAP_AMBIENT_CLEAR_ALL", "4"),
    ("SECBIT_NOROOT", "1"),
    ("SECBIT_NOROOT_LOCKED", "2"),
    ("SECBIT_NO_SETUID_FIXUP", "4"),
    ("SECBIT_NO_SETUID_FIXUP_LOCKED", "8"),
    ("SECBIT_KEEP_CAPS_LOCKED", "32"),
    ("SECBIT_NO_CAP_AMBIENT_RAISE", "64"),
    ("SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED", "128"),
    ("CAP_KILL", None),
    ("CAP_NET_ADMIN", None),
    ("CAP_SYS_ADMIN", None),
    ("CAP_SETUID", None),
    ("CAP_SETGID", None),
    ("LANDLOCK_CREATE_RULESET_VERSION", "1"),
)

_CDEF_FUNCTIONS = """
int sk_unshare(int flags);
int sk_setns(int fd, int nstype);
int sk_mount(const char *source, const char *target, const char *fstype,
             unsigned long flags, const char *data);
int sk_umount2(const char *target, int flags);
int sk_pivot_root(const char *new_root, const char *put_old);
int sk_sethostname(const char *name, size_t length);
int sk_prctl(int option, unsigned long arg2, unsigned long arg3, unsigned long arg4,
             unsigned long arg5);
int sk_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable);
int sk_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable);
int sk_open_tree(int dirfd, const char *path, unsigned int flags);
int sk_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path,
                  unsigned int flags);
int sk_mount_setattr(int dirfd, const char *path, unsigned int flags, uint64_t attr_set,
                     uint64_t attr_clr, uint64_t propagation, uint64_t userns_fd);
int sk_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int sk_join_session_keyring(void);
int sk_seccomp_set_mode_filter(const void *filters, unsigned short count);
int sk_landlock_create_ruleset(uint64_t fs, uint64_t net, uint64_t scoped, size_t size,
                               unsigned int flags);
int sk_landlock_abi(void);
int sk_landlock_add_path(int ruleset, uint64_t access, int parent);
int sk_landlock_add_port(int ruleset, uint64_t access, uint64_t port);
int sk_landlock_restrict_self(int ruleset, unsigned int flags);
int sk_close_range(unsigned int first, unsigned int last, unsigned int flags);
void sk_malloc_trim(void);
"""

_SOURCE_HEAD = r"""
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>

/* Uniform numbers on every architecture since Linux 5.1. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif
#define SK_KEYCTL_JOIN_SESSION_KEYRING 1
#define SK_LANDLOCK_RULE_PATH_BENEATH 1
#define SK_LANDLOCK_RULE_NET_PORT 2
"""

_SOURCE_FUNCTIONS = r"""
struct sk_mount_attr { uint64_t attr_set, attr_clr, propagation, userns_fd; };
struct sk_open_how { uint64_t flags, mode, resolve; };
struct sk_landlock_ruleset { uint64_t fs, net, scoped; };
struct sk_landlock_path { uint64_t access; int32_t parent; } __attribute__((packed));
struct sk_landlock_port { uint64_t access, port; };

static int sk_unshare(int flags) { return unshare(flags); }
static int sk_setns(int fd, int nstype) { return setns(fd, nstype); }
static int sk_mount(const char *source, const char *target, const char *fstype,
                    unsigned long flags, const char *data)
{ return mount(source, target, fstype, flags, data); }
static int sk_umount2(const char *target, int flags) { return umount2(target, flags); }
static int sk_pivot_root(const char *new_root, const char *put_old)
{ return (int)syscall(SYS_pivot_root, new_root, put_old); }
static int sk_sethostname(const char *name, size_t length) { return sethostname(name, length); }
static int sk_prctl(int option, unsigned long arg2, unsigned long arg3, unsigned long arg4,
                    unsigned long arg5)
{ return prctl(option, arg2, arg3, arg4, arg5); }

static int sk_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2] = {
        { (uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable },
        { (uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32) },
    };
    return (int)syscall(SYS_capset, &header, data);
}
static int sk_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2];
    memset(data, 0, sizeof data);
    int rc = (int)syscall(SYS_capget, &header, data);
    *effective = data[0].effective | (uint64_t)data[1].effective << 32;
    *permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
    *inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
    return rc;
}
static int sk_open_tree(int dirfd, const char *path, unsigned int flags)
{ return (int)syscall(SYS_open_tree, dirfd, path, flags); }
static int sk_move_mount(int from_dirfd, const char *from_path, int to_dirfd,
                         const char *to_path, unsigned int flags)
{ return (int)syscall(SYS_move_mount, from_dirfd, from_path, to_dirfd, to_path, flags); }
static int sk_mount_setattr(int dirfd, const char *path, unsigned int flags, uint64_t attr_set,
                            uint64_t attr_clr, uint64_t propagation, uint64_t userns_fd)
{
    struct sk_mount_attr attr = { attr_set, attr_clr, propagation, userns_fd };
    return (int)syscall(SYS_mount_setattr, dirfd, path, flags, &attr, sizeof attr);
}
static int sk_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct sk_open_how how = { flags, mode, resolve };
    return (int)syscall(SYS_openat2, dirfd, path, &how, sizeof how);
}
static int sk_join_session_keyring(void)
{ return (int)syscall(SYS_keyctl, SK_KEYCTL_JOIN_SESSION_KEYRING, 0); }
static int sk_seccomp_set_mode_filter(const void *filters, unsigned short count)
{
    struct sock_fprog program = { count, (struct sock_filter *)filters };
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}
static int sk_landlock_create_ruleset(uint64_t fs, uint64_t net, uint64_t scoped, size_t size,
                                      unsigned int flags)
{
    struct sk_landlock_ruleset attr = { fs, net, scoped };
    return (int)syscall(SYS_landlock_create_ruleset, &attr, size, flags);
}
static int sk_landlock_abi(void)
{ return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION); }
static int sk_landlock_add_path(int ruleset, uint64_t access, int parent)
{
    struct sk_landlock_path attr = { access, parent };
    return (int)syscall(SYS_landlock_add_rule, ruleset, SK_LANDLOCK_RULE_PATH_BENEATH, &attr, 0);
}
static int sk_landlock_add_port(int ruleset, uint64_t access, uint64_t port)
{
    struct sk_landlock_port attr = { access, port };
    return (int)syscall(SYS_landlock_add_rule, ruleset, SK_LANDLOCK_RULE_NET_PORT, &attr, 0);
}
static int sk_landlock_restrict_self(int ruleset, unsigned int flags)
{ return (int)syscall(SYS_landlock_restrict_self, ruleset, flags); }
static int sk_close_range(unsigned int first, unsigned int last, unsigned int flags)
{ return (int)syscall(SYS_close_range, first, last, flags); }
static void sk_malloc_trim(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
"""


def _fall_backs() -> str:
    lines = []
    for name, value in CONSTANTS:
        if value is not None:
            lines.append(f"#ifndef {name}\n#define {name} {value}\n#endif")
    return "\n".join(lines)


ffibuilder = FFI()
ffibuilder.cdef("\n".join(f"#define {name} ..." for name, _ in CONSTANTS) + "\n" + _CDEF_FUNCTIONS)
ffibuilder.set_source(
    "sandbox_kernel.syscalls._lib",
    "\n".join((_SOURCE_HEAD, _fall_backs(), _SOURCE_FUNCTIONS)),
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
