// SPDX-License-Identifier: Apache-2.0

#include "cuda_library.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#ifndef NQ_ORT_CUDA_FILE
#define NQ_ORT_CUDA_FILE "libnanoquant_cuda.so"
#endif

namespace {

CudaLibrary loaded;
bool ready = false;

template <class Function>
bool find(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  return *function != nullptr;
}

// The file beside the one that holds this function.
bool path_of(char* path, size_t size) {
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&cuda_library), &self) == 0) return false;
  const char* slash = strrchr(self.dli_fname, '/');
  const int folder = slash == nullptr ? 0 : static_cast<int>(slash - self.dli_fname + 1);
  const int length = snprintf(path, size, "%.*s%s", folder, self.dli_fname, NQ_ORT_CUDA_FILE);
  // Without a slash, dlopen would search the system.
  return slash != nullptr && length > 0 && static_cast<size_t>(length) < size;
}

// Structs pass between the two libraries, so both have to come from one version.
bool same_build(void* handle) {
  const char* (*info)();
  if (!find(handle, "nq_cuda_info", &info)) return false;
  return strstr(info(), "\"version\": \"" NQ_VERSION "\"") != nullptr;
}

}  // namespace

const CudaLibrary* cuda_library(char* why, size_t size) {
  if (__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) return &loaded;
  char path[PATH_MAX];
  if (!path_of(path, sizeof path)) {
    snprintf(why, size, "the folder of this library is not known");
    return nullptr;
  }
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    snprintf(why, size, "%s", dlerror());
    return nullptr;
  }
  CudaLibrary found;
  const bool complete = same_build(handle) && find(handle, "nq_cuda_describe", &found.describe) &&
                        find(handle, "nq_cuda_tile_words", &found.tile_words) &&
                        find(handle, "nq_cuda_make_tiles", &found.make_tiles) &&
                        find(handle, "nq_cuda_copy_rows", &found.copy_rows) &&
                        find(handle, "nq_cuda_synchronize", &found.synchronize) &&
                        find(handle, "nq_cuda_workspace_bytes", &found.workspace_bytes) &&
                        find(handle, "nq_cuda_forward", &found.forward) &&
                        find(handle, "nq_cuda_error_text", &found.error_text);
  if (!complete) {
    snprintf(why, size, "%s is not of version %s", path, NQ_VERSION);
    dlclose(handle);
    return nullptr;
  }
  // Threads that race write the same addresses; the library stays for the life of the process.
  loaded = found;
  __atomic_store_n(&ready, true, __ATOMIC_RELEASE);
  return &loaded;
}
