// SPDX-License-Identifier: Apache-2.0

#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <mutex>

namespace nq_tensorrt {

namespace {

constexpr size_t kBytes = 768;

// Builders call plugins from threads of their own, so the text is the process's, not the thread's.
std::mutex g_lock;
char g_last[kBytes] = "";

}  // namespace

void log_error(const char* plugin, const char* layer, const char* format, ...) {
  char text[kBytes];
  const int used =
      snprintf(text, sizeof text, layer[0] != '\0' ? "%s (%.200s): " : "%s%s: ", plugin, layer);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, sizeof text - static_cast<size_t>(used), format, arguments);
  va_end(arguments);
  fprintf(stderr, "%s\n", text);
  const std::lock_guard<std::mutex> hold(g_lock);
  memcpy(g_last, text, sizeof text);
}

const char* last_error() {
  static thread_local char copy[kBytes];
  const std::lock_guard<std::mutex> hold(g_lock);
  memcpy(copy, g_last, sizeof copy);
  return copy;
}

}  // namespace nq_tensorrt
