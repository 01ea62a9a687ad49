// SPDX-License-Identifier: Apache-2.0
//
// Chooses the instruction set once per process: the widest one that was compiled in and that the
// processor and its operating system support, or the one that NQ_CPU_ISA names.

#include <stdlib.h>
#include <string.h>

#include "cpu/isa.h"

namespace {

struct Candidate {
  const NqIsa* isa;
  bool usable;
};

const NqIsa* choose() {
  const Candidate candidates[] = {
#if defined(NQ_HAVE_X86)
      {&kIsaAvx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {&kIsaAvx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c")},
#elif defined(NQ_HAVE_NEON)
      {&kIsaNeon, true},
#endif
      {&kIsaScalar, true},
  };
  const char* forced = getenv("NQ_CPU_ISA");
  for (const Candidate& candidate : candidates) {
    const bool wanted =
        forced == nullptr || forced[0] == '\0' || strcmp(forced, candidate.isa->name) == 0;
    if (wanted && candidate.usable) return candidate.isa;
  }
  return nullptr;
}

}  // namespace

const NqIsa* nq_isa() {
  // Every thread would choose alike, so a race does no harm, and a plain atomic spares the library
  // the C++ runtime's guarded initialisation.
  static const NqIsa* chosen = nullptr;
  const NqIsa* isa = __atomic_load_n(&chosen, __ATOMIC_ACQUIRE);
  if (isa == nullptr) {
    isa = choose();
    __atomic_store_n(&chosen, isa, __ATOMIC_RELEASE);
  }
  return isa;
}

extern "C" const char* nq_cpu_isa(void) {
  const NqIsa* isa = nq_isa();
  return isa == nullptr ? nullptr : isa->name;
}
