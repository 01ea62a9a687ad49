// SPDX-License-Identifier: Apache-2.0
//
// The three stages of all layers of a node as the phases of one parallel region.

#include "linear_passes.h"

#include "phases.h"
#include "status.h"
#include "workspace.h"

namespace {

using Stage = nq_status (*)(const nq_pass*, int64_t, int64_t);
constexpr Stage kStages[] = {nq_stage_scale, nq_stage_rank, nq_stage_out};
constexpr int kStageCount = 3;

// One stage of one layer, over [0, size), cut into pieces.
struct Part {
  int64_t size;
  int64_t piece;
  int64_t pieces;
};

struct Node {
  nq_pass passes[kMaxLayers];
  Part parts[kStageCount][kMaxLayers];
};

nq_status run_piece(void* data, int stage, int64_t piece) {
  const Node& node = *static_cast<const Node*>(data);
  size_t layer = 0;
  while (piece >= node.parts[stage][layer].pieces) piece -= node.parts[stage][layer++].pieces;
  const Part& part = node.parts[stage][layer];
  const int64_t begin = piece * part.piece;
  const int64_t end = begin + part.piece < part.size ? begin + part.piece : part.size;
  return kStages[stage](&node.passes[layer], begin, end);
}

// Cuts a stage of `size` entries, `cost` sign-adds each, into pieces of whole steps.
Part cut(int64_t size, int64_t step, int64_t cost) {
  constexpr int64_t kPiece = 1 << 17;  // some microseconds of one core
  constexpr int64_t kMostPieces = 64;
  const int64_t steps = (size + step - 1) / step;
  int64_t each = 1;
  if (cost * step < kPiece) each = (kPiece + cost * step - 1) / (cost * step);
  if (each < (steps + kMostPieces - 1) / kMostPieces) {
    each = (steps + kMostPieces - 1) / kMostPieces;
  }
  return {size, each * step, (steps + each - 1) / each};
}

ort::Status* run_node(const ort::Api* api, const ort::KernelContext* context, Node* node,
                      size_t count) {
  // Sign-adds that one core does in about the time that it takes to wake another.
  constexpr int64_t kWorthwhile = 3 << 17;
  int64_t total = 0;
  Phases phases = {run_piece, node, kStageCount, {}};
  for (size_t i = 0; i < count; ++i) {
    const nq_pass& pass = node->passes[i];
    const nq_linear& layer = *pass.layer;
    node->parts[0][i] = cut(pass.rows, 1, layer.in_features);
    node->parts[1][i] = cut(layer.rank, NQ_RANGE_STEP, pass.rows * layer.in_features);
    node->parts[2][i] = cut(layer.out_features, NQ_RANGE_STEP, pass.rows * layer.rank);
    total += pass.rows * layer.rank * (layer.in_features + layer.out_features);
    for (int stage = 0; stage < kStageCount; ++stage) {
      phases.pieces[stage] += node->parts[stage][i].pieces;
    }
  }
  return run_phases(api, context, phases, total >= kWorthwhile);
}

size_t bytes_of(nq_type type) { return type == NQ_FLOAT32 ? 4 : 2; }

}  // namespace

ort::Status* run_layers(const ort::Api* api, const ort::KernelContext* context,
                        const nq_linear* layers, size_t count, nq_type type, int64_t rows,
                        const void* x, void* const* y) {
  int64_t limit = NQ_PASS_ROWS;
  for (size_t i = 0; i < count; ++i) {
    const nq_status status = nq_linear_check(&layers[i]);
    if (status != NQ_OK) return ort::fail(api, ort::kInvalidArgument, "%s", nq_status_text(status));
    const int64_t own = nq_pass_rows(&layers[i]);
    if (own < limit) limit = own;
  }
  if (limit < 1) return ort::fail(api, ort::kFail, "%s", nq_status_text(NQ_NO_ISA));
  // Passes of nearly equal height, so that the last one is not a sliver.
  const int64_t passes = (rows - 1) / limit + 1;
  const int64_t tallest = (rows - 1) / passes + 1;
  size_t offsets[kMaxLayers];
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    offsets[i] = bytes;
    bytes += (nq_workspace_bytes(&layers[i], tallest) + 63) / 64 * 64;
  }
  const Workspace workspace(bytes);
  if (workspace.data() == nullptr) {
    return ort::fail(api, ort::kFail, "%zu bytes of scratch memory are not to be had", bytes);
  }
  const size_t element = bytes_of(type);
  Node node;
  for (int64_t row = 0; row < rows; row += tallest) {
    const size_t at = static_cast<size_t>(row);
    for (size_t i = 0; i < count; ++i) {
      const size_t n = static_cast<size_t>(layers[i].in_features);
      const size_t m = static_cast<size_t>(layers[i].out_features);
      node.passes[i] = {
          &layers[i],
          type,
          rows - row < tallest ? rows - row : tallest,
          static_cast<const char*>(x) + at * n * element,
          static_cast<char*>(y[i]) + at * m * element,
          static_cast<char*>(workspace.data()) + offsets[i],
      };
    }
    NQ_ORT_RETURN(run_node(api, context, &node, count));
  }
  return nullptr;
}
