"""The cffi builder of ``sandbox_kernel.syscalls._seccomp_abi``: what we use of libseccomp.

Out-of-line ABI mode: the result is a Python file, so neither a compiler nor libseccomp's headers
are needed, and one file serves every libseccomp from 2.5 on. What a compiler would have checked
is therefore only this: the declarations below are libseccomp's public, stable ABI (soname 2).
"""

from __future__ import annotations

from cffi import FFI

_CDEF = """
typedef void *scmp_filter_ctx;
enum scmp_filter_attr { SCMP_FLTATR_ACT_BADARCH = 2, SCMP_FLTATR_CTL_OPTIMIZE = 8 };
enum scmp_compare { SCMP_CMP_MASKED_EQ = 7 };
struct scmp_version { unsigned int major; unsigned int minor; unsigned int micro; };
struct scmp_arg_cmp {
    unsigned int arg;
    enum scmp_compare op;
    uint64_t datum_a;
    uint64_t datum_b;
};
const struct scmp_version *seccomp_version(void);
scmp_filter_ctx seccomp_init(uint32_t def_action);
void seccomp_release(scmp_filter_ctx ctx);
uint32_t seccomp_arch_native(void);
int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int seccomp_syscall_resolve_name_arch(uint32_t arch_token, const char *name);
char *seccomp_syscall_resolve_num_arch(uint32_t arch_token, int num);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall,
                           unsigned int arg_cnt, const struct scmp_arg_cmp *arg_array);
int seccomp_export_bpf(scmp_filter_ctx ctx, int fd);
void free(void *memory);
"""

ffibuilder = FFI()
ffibuilder.cdef(_CDEF)
ffibuilder.set_source("sandbox_kernel.syscalls._seccomp_abi", None)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
