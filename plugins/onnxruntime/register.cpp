// SPDX-License-Identifier: Apache-2.0
//
// What the library exports beside nq_ort_sign_rate (rate.cpp): RegisterCustomOps, which ONNX
// Runtime calls, and nq_ort_info, which says what was built and which kernels this processor gets.

#include <stdio.h>
#include <stdlib.h>

#include "../kernels/nq_kernels.h"
#include "attention_cpu.h"
#include "group_cpu.h"
#include "linear_shape.h"
#include "linear_variants.h"
#include "ort_abi.h"
#include "status.h"
#include "table_ops.h"

#define NQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// API version 1 exists in every release and has CreateStatus in the same slot, so that even a
// runtime too old for the operator can be told so. Where even that is refused there is no way to
// report anything: nothing is registered, and the session will say that it lacks the operator.
ort::Status* too_old(const ort::ApiBase* base) {
  const ort::Api* oldest = base->GetApi(1);
  if (oldest == nullptr) return nullptr;
  return ort::fail(
      oldest, ort::kFail,
      "ONNX Runtime %s has no API version %u; this library needs ONNX Runtime 1.18 or newer",
      base->GetVersionString(), ort::kApiVersion);
}

ort::Status* make_domain(const ort::Api* api, ort::CustomOpDomain** domain) {
  NQ_ORT_RETURN(
      ort::call<ort::CreateDomain>(api, ort::kCreateCustomOpDomain)("com.nanoquant", domain));
  const struct {
    int count;
    const ort::CustomOp* (*op)(int);
  } families[] = {{linear_variant_count(), linear_variant},
                  {group_variant_count(), group_variant},
                  {attention_op_count(), attention_op},
                  {table_op_count(), table_op}};
  for (const auto& family : families) {
    for (int i = 0; i < family.count; ++i) {
      ort::Status* status =
          ort::call<ort::DomainAdd>(api, ort::kCustomOpDomainAdd)(*domain, family.op(i));
      if (status != nullptr) {
        ort::call<ort::ReleaseDomain>(api, ort::kReleaseCustomOpDomain)(*domain);
        *domain = nullptr;
        return status;
      }
    }
  }
  return nullptr;
}

// Session options keep the domain's address, and sessions may be made from them at any later time:
// the domain has to live as long as the library. One is made for the first runtime that asks and
// never released; a second runtime in the same process gets its own.
struct Made {
  const ort::Api* api;
  ort::CustomOpDomain* domain;
};
Made* shared_domain = nullptr;

ort::Status* domain_of(const ort::Api* api, ort::CustomOpDomain** domain) {
  Made* made = __atomic_load_n(&shared_domain, __ATOMIC_ACQUIRE);
  if (made != nullptr && made->api == api) {
    *domain = made->domain;
    return nullptr;
  }
  NQ_ORT_RETURN(make_domain(api, domain));
  Made* mine = static_cast<Made*>(malloc(sizeof(Made)));
  if (mine == nullptr) return nullptr;
  *mine = Made{api, *domain};
  made = nullptr;
  if (!__atomic_compare_exchange_n(&shared_domain, &made, mine, false, __ATOMIC_ACQ_REL,
                                   __ATOMIC_RELAXED)) {
    free(mine);  // another thread was first; this domain stays with its session options
  }
  return nullptr;
}

}  // namespace

NQ_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return too_old(base);
  if (nq_cpu_isa() == nullptr) return ort::fail(api, ort::kFail, "%s", nq_status_text(NQ_NO_ISA));
  ort::CustomOpDomain* domain = nullptr;
  use_api_for_shapes(api);
  NQ_ORT_RETURN(domain_of(api, &domain));
  return ort::call<ort::AddDomain>(api, ort::kAddCustomOpDomain)(options, domain);
}

NQ_EXPORT const char* nq_ort_info(void) {
  static char text[500];
  const char* isa = nq_cpu_isa();
  snprintf(
      text, sizeof text,
      "{\"version\": \"%s\", \"isa\": \"%s\", \"ort_api\": %u, \"operators\": "
      "[\"com.nanoquant::NanoQuantLinear-1\", \"com.nanoquant::NanoQuantLinearGroup-1\", "
      "\"com.nanoquant::NanoQuantAttention-1\", "
      "\"com.nanoquant::NanoQuantAttentionHalfCache-1\", \"com.nanoquant::NanoQuantEmbedding-1\", "
      "\"com.nanoquant::NanoQuantHead-1\"]}",
      NQ_VERSION, isa == nullptr ? "" : isa, ort::kApiVersion);
  return text;
}
