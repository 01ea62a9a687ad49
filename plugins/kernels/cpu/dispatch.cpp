// SPDX-License-Identifier: Apache-2.0
//
// Chooses the instruction set once per process: the widest one that was compiled in and that the
// processor and its operating system support, or the one that NQ_CPU_ISA names.

#include <stdlib.h>
#include <string.h>

#include "cpu/isa.h"
#include "cpu/signs/isa.h"
#include "cpu/table/isa.h"

namespace {

struct Choice {
  const char* name;
  const NqIsa* isa;
  const NqSigns* signs;
  const NqTableIsa* table;
  bool (*usable)();
};

#if defined(NQ_HAVE_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_vbmi() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif
bool always() { return true; }

constexpr Choice kChoices[] = {
#if defined(NQ_HAVE_X86)
    {"avx512vbmi", &kIsaAvx512, &kSignsVbmi, &kTableAvx512, has_vbmi},
    {"avx512", &kIsaAvx512, &kSignsAvx512, &kTableAvx512, has_avx512},
    {"avx2", &kIsaAvx2, &kSignsAvx2, &kTableAvx2, has_avx2},
#elif defined(NQ_HAVE_NEON)
    {"neon", &kIsaNeon, &kSignsNeon, &kTableNeon, always},
#endif
    {"scalar", &kIsaScalar, &kSignsScalar, &kTableScalar, always},
};

const Choice* choose() {
  const char* forced = getenv("NQ_CPU_ISA");
  for (const Choice& choice : kChoices) {
    const bool wanted = forced == nullptr || forced[0] == '\0' || strcmp(forced, choice.name) == 0;
    if (wanted && choice.usable()) return &choice;
  }
  return nullptr;
}

const Choice* chosen() {
  // Every thread would choose alike, so a race does no harm, and a plain atomic spares the library
  // the C++ runtime's guarded initialisation.
  static const Choice* kept = nullptr;
  const Choice* choice = __atomic_load_n(&kept, __ATOMIC_ACQUIRE);
  if (choice == nullptr) {
    choice = choose();
    __atomic_store_n(&kept, choice, __ATOMIC_RELEASE);
  }
  return choice;
}

}  // namespace

const NqIsa* nq_isa() { return chosen() == nullptr ? nullptr : chosen()->isa; }

const NqSigns* nq_signs() { return chosen() == nullptr ? nullptr : chosen()->signs; }

const NqTableIsa* nq_table_isa() { return chosen() == nullptr ? nullptr : chosen()->table; }

extern "C" const char* nq_cpu_isa(void) { return chosen() == nullptr ? nullptr : chosen()->name; }
