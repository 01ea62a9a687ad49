// SPDX-License-Identifier: Apache-2.0
//
// Drives the plugin library through its public interface as TensorRT would: creators, fields,
// createPlugin, types, shapes, formats, configurePlugin, workspace, serialization, createPlugin
// again, clone, attachToContext, onShapeChange, enqueue (directly, on two streams, and through a
// captured graph), against float64.
//
//   nq_tensorrt_conformance LIBRARY            on the GPU
//   nq_tensorrt_conformance_host LIBRARY       without one, on the plugin over the stand-in kernels
//   nq_tensorrt_conformance_host LIBRARY all-but-enqueue      without one, on any plugin
//
// "brief" leaves the larger layers out, for emulated kernels. Exit status 0: all is well; 1:
// something failed; 77: no usable GPU.

#include "build_checks.h"
#include "run_checks.h"

using namespace conformance;

int main(int argc, char** argv) {
  const std::string mode = argc == 3 ? argv[2] : "";
  const bool enqueue = mode != "all-but-enqueue", brief = mode == "brief";
  if (argc < 2 || argc > 3 || (argc == 3 && enqueue && !brief)) {
    printf("usage: %s LIBRARY [all-but-enqueue|brief]\n", argv[0]);
    return 1;
  }
#ifdef NQ_ON_GPU
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    printf("no usable GPU\n");
    return 77;
  }
#endif
  Library library;
  if (!library.load(argv[1])) return 1;
  library.set_finder(nullptr);
  Report report;
  check_creators(library, &report);

  constexpr DataType kHalf = DataType::kHALF, kBf16 = DataType::kBF16, kFloat = DataType::kFLOAT;
  const char* one = "NanoQuantLinear";
  const char* group = "NanoQuantLinearGroup";
  // Odd sizes go through spaced copies; a width of 1 has one sign a row.
  const Case cases[] = {
      {one, 64, {{40, 72, true, true}}, kHalf, kHalf},
      {one, 70, {{33, 51, false, true}}, kBf16, kFloat},
      {one, 257, {{300, 8, true, false}}, kHalf, kBf16},
      {one, 1, {{1, 1, false, false}}, kBf16, kBf16},
      {one, 576, {{280, 192, true, true}}, kBf16, kHalf},
      {group, 576, {{280, 192, true, false}, {65, 64, true, false}}, kHalf, kHalf},
      {group,
       96,
       {{40, 72, true, true}, {33, 51, false, true}, {16, 24, true, false}},
       kBf16,
       kFloat},
      {group,
       70,
       {{40, 8, false, true}, {33, 9, true, false}, {9, 10, true, true}, {7, 40, false, false}},
       kHalf,
       kBf16},
  };
  for (const Case& c : cases) {
    if (brief && c.n > 300) continue;
    report.where = describe(c);
    const int failed = report.failures;
    Node node(c);
    check_fields(library, node, &report);
    check_build(library, node, &report);
    const double error = check_run(library, node, enqueue, &report);
    printf("%s %s: error %.2e\n", report.failures == failed ? "ok    " : "FAILED",
           report.where.c_str(), error);
  }
  printf("%d checks, %d failures\n", report.checks, report.failures);
  return report.failures == 0 ? 0 : 1;
}
