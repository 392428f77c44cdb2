/* libcublas.so.12 for faiss-gpu 1.15.1 on a machine that has only libcublas.so.13: the eight functions that libfaiss
   imports, each a jump to the function of the same name, whose binary interface is the same in both. libcublas.so.13
   must be loaded before (`import torch` does that); pack.sh builds this file. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define EACH(F) F(cublasCreate_v2) F(cublasDestroy_v2) F(cublasSetStream_v2) F(cublasSetMathMode) \
    F(cublasGetMathMode) F(cublasSgemmEx) F(cublasGemmEx) F(cublasGemmStridedBatchedEx)

#define JUMP(name) \
    __attribute__((visibility("hidden"))) void *to_##name; \
    __attribute__((naked)) void name(void) { __asm__("jmp *to_" #name "(%rip)"); }
EACH(JUMP)

__attribute__((constructor)) static void find(void) {
    void *lib = dlopen("libcublas.so.13", RTLD_NOW | RTLD_GLOBAL);
    if (!lib) { fprintf(stderr, "cublas12: %s\n", dlerror()); abort(); }
#define FIND(name) if (!(to_##name = dlsym(lib, #name))) { fprintf(stderr, "cublas12: no " #name "\n"); abort(); }
    EACH(FIND)
}
