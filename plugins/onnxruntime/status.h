// SPDX-License-Identifier: Apache-2.0
//
// Statuses that carry a written-out message. Nothing here throws.

#ifndef NQ_ORT_STATUS_H
#define NQ_ORT_STATUS_H

#include <stdarg.h>
#include <stdio.h>

#include "ort_abi.h"

namespace ort {

// A status whose message is "NanoQuantLinear: " and the formatted text.
__attribute__((format(printf, 3, 4))) inline Status* fail(const Api* api, ErrorCode code,
                                                          const char* format, ...) {
  char text[512] = "NanoQuantLinear: ";
  const size_t used = sizeof("NanoQuantLinear: ") - 1;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, sizeof text - used, format, arguments);
  va_end(arguments);
  return call<CreateStatus>(api, kCreateStatus)(code, text);
}

}  // namespace ort

// Hands a status on to the caller unless it is null, which means success.
#define NQ_ORT_RETURN(expression)                \
  do {                                           \
    if (ort::Status* nq_failed = (expression)) { \
      return nq_failed;                          \
    }                                            \
  } while (0)

#endif  // NQ_ORT_STATUS_H
