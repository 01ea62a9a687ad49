// SPDX-License-Identifier: Apache-2.0
//
// Where errors go: the standard error stream, and a text that the process can ask for.
//
// TensorRT's own loggers are out of reach. getLogger() would tie the library to one libnvinfer, and
// the finder that setLoggerFinder brings cannot be used: TensorRT 11 and TensorRT-RTX 1.7 destroy
// it once the library is loaded, and its layout differs from TensorRT 10's (both seen).

#ifndef NQ_TENSORRT_LOG_H
#define NQ_TENSORRT_LOG_H

namespace nq_tensorrt {

// Reports an error: "PLUGIN (LAYER): " and the formatted text. `layer` may be empty.
__attribute__((format(printf, 3, 4))) void log_error(const char* plugin, const char* layer,
                                                     const char* format, ...);

// The last error of the process, "" if there was none. Valid until this thread asks again.
const char* last_error();

}  // namespace nq_tensorrt

#endif  // NQ_TENSORRT_LOG_H
