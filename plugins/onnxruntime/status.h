// SPDX-License-Identifier: Apache-2.0
//
// Statuses that carry a written-out message. Nothing here throws.

#ifndef NQ_ORT_STATUS_H
#define NQ_ORT_STATUS_H

#include <stdarg.h>
#include <stdio.h>

#include "ort_abi.h"

namespace ort {

// A status whose message is the operator's name, a colon and the formatted text.
__attribute__((format(printf, 4, 0))) inline Status* fail_list(const Api* api, ErrorCode code,
                                                               const char* op, const char* format,
                                                               va_list arguments) {
  char text[512];
  const int used = snprintf(text, sizeof text, "%s: ", op);
  vsnprintf(text + used, sizeof text - static_cast<size_t>(used), format, arguments);
  return call<CreateStatus>(api, kCreateStatus)(code, text);
}

// The same for NanoQuantLinear.
__attribute__((format(printf, 3, 4))) inline Status* fail(const Api* api, ErrorCode code,
                                                          const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Status* status = fail_list(api, code, "NanoQuantLinear", format, arguments);
  va_end(arguments);
  return status;
}

// The same for the operators on tables.
__attribute__((format(printf, 3, 4))) inline Status* fail_table(const Api* api, ErrorCode code,
                                                                const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Status* status = fail_list(api, code, "NanoQuantEmbedding/Head", format, arguments);
  va_end(arguments);
  return status;
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
