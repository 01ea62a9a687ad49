// SPDX-License-Identifier: Apache-2.0

#include "log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace nq_tensorrt {

namespace {

constexpr size_t kBytes = 768;

// Builders call plugins from threads of their own, so the text is the process's, not the thread's.
pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;  // std::mutex would bring exceptions along
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
  pthread_mutex_lock(&g_lock);
  memcpy(g_last, text, sizeof text);
  pthread_mutex_unlock(&g_lock);
}

const char* last_error() {
  static thread_local char copy[kBytes];
  pthread_mutex_lock(&g_lock);
  memcpy(copy, g_last, sizeof copy);
  pthread_mutex_unlock(&g_lock);
  return copy;
}

}  // namespace nq_tensorrt
