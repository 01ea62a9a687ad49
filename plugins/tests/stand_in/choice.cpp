// SPDX-License-Identifier: Apache-2.0
//
// The choice of tokens of nq_cuda_table.h: sorts the whole vocabulary, keeps what the filters of
// nanoquant_edge/runtimes/sampling.py keep, and draws by an exponential race: with independent
// exponential variables E, the token of the smallest E / probability is a draw.

#include <math.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "table.h"

using stand_in::enqueue;
using stand_in::good;

namespace {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
struct Philox {
  uint32_t words[4];

  Philox(uint64_t seed, uint64_t place, uint32_t index) {
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    uint32_t c[4] = {index, 0, static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32)};
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xd2511f53u} * c[0], b = uint64_t{0xcd9e8d57u} * c[2];
      const uint32_t next[4] = {
          static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
      std::copy(next, next + 4, c);
      key[0] += 0x9e3779b9u;
      key[1] += 0xbb67ae85u;
    }
    std::copy(c, c + 4, words);
  }
};

// In (0, 1); two tokens share the four words of one call.
double uniform(uint64_t seed, uint64_t place, int64_t token) {
  const Philox random(seed, place, static_cast<uint32_t>(token / 2));
  const int first = token % 2 == 0 ? 0 : 2;
  return (random.words[first] + (random.words[first + 1] + 0.5) * 0x1p-32) * 0x1p-32;
}

void penalize(const nq_cuda_choice& c, int64_t sequence, int64_t place, float penalty,
              std::vector<double>& scores) {
  std::vector<bool> seen(scores.size());
  for (int64_t i = 0; i < place; ++i) {
    const int64_t token = c.history[sequence * c.capacity + i];
    if (token < 0 || token >= c.vocabulary || seen[static_cast<size_t>(token)]) continue;
    seen[static_cast<size_t>(token)] = true;
    double& score = scores[static_cast<size_t>(token)];
    score = score < 0.0 ? score * penalty : score / penalty;
  }
}

int64_t draw(const nq_cuda_sampling& by, uint64_t place, const std::vector<double>& scores) {
  const size_t count = scores.size();
  const double highest = *std::max_element(scores.begin(), scores.end());
  // Distances below the most likely token, which keep their order at any temperature.
  std::vector<double> distance(count);
  for (size_t i = 0; i < count; ++i) distance[i] = (highest - scores[i]) / by.temperature;
  // Most likely first; of equals the later token first, which top-p keeps longer.
  std::vector<size_t> order(count);
  std::iota(order.rbegin(), order.rend(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return distance[a] < distance[b]; });
  size_t kept = count;
  if (by.top_k > 0 && static_cast<size_t>(by.top_k) < count) {
    const double last = distance[order[static_cast<size_t>(by.top_k) - 1]];
    while (kept > 0 && distance[order[kept - 1]] > last) --kept;
  }
  if (by.top_p < 1.0f) {
    double total = 0.0, above = 0.0;
    for (size_t i = 0; i < kept; ++i) total += exp(-distance[order[i]]);
    size_t reached = 0;
    while (reached < kept && (reached == 0 || above < static_cast<double>(by.top_p) * total)) {
      above += exp(-distance[order[reached++]]);
    }
    kept = reached;
  }
  double best = INFINITY;
  int64_t token = -1;
  for (size_t i = 0; i < kept; ++i) {
    const size_t at = order[i];
    if (exp(-distance[at]) < static_cast<double>(by.min_p) || isinf(distance[at])) continue;
    const int64_t id = static_cast<int64_t>(at);
    const double arrival = log(-log1p(-uniform(by.seed, place, id))) + distance[at];
    if (arrival < best || (arrival == best && id < token)) best = arrival, token = id;
  }
  return token;
}

void choose_one(const nq_cuda_choice& c, int64_t sequence) {
  const int64_t fresh = c.starts != nullptr ? c.starts[sequence + 1] - c.starts[sequence] : 1;
  const int64_t place = c.positions[sequence] + fresh;
  if (c.positions[sequence] < 0 || fresh < 1 || place >= c.capacity) return;
  const float* logits = c.logits + sequence * c.logits_stride;
  std::vector<double> scores(logits, logits + c.vocabulary);
  if (c.sampling != nullptr && c.sampling[sequence].repetition_penalty != 1.0f) {
    penalize(c, sequence, place, c.sampling[sequence].repetition_penalty, scores);
  }
  const auto highest = std::max_element(scores.begin(), scores.end());
  const bool usable =
      std::none_of(scores.begin(), scores.end(), [](double x) { return isnan(x); }) &&
      isfinite(*highest);
  int64_t token = -1;
  if (usable && (c.sampling == nullptr || c.sampling[sequence].temperature == 0.0f)) {
    token = highest - scores.begin();
  } else if (usable) {
    token = draw(c.sampling[sequence], static_cast<uint64_t>(place), scores);
  }
  c.tokens[sequence] = token;
  c.history[sequence * c.capacity + place] = token;
  c.positions[sequence] = place;
}

nq_status choose(const nq_cuda_choice* choice, bool sampled, void* stream) {
  if (choice == nullptr) return NQ_BAD_ARGUMENT;
  nq_cuda_choice c = *choice;
  const size_t needed = nq_cuda_choice_workspace_bytes(c.sequences, c.vocabulary);
  if (needed == 0 || c.capacity < 1 || c.logits_stride < c.vocabulary || !good(c.logits) ||
      !good(c.tokens) || !good(c.history) || !good(c.positions)) {
    return NQ_BAD_ARGUMENT;
  }
  if (sampled && !good(c.sampling)) return NQ_BAD_ARGUMENT;
  if (!good(c.workspace) || c.workspace_bytes < needed) return NQ_WORKSPACE;
  if (!sampled) c.sampling = nullptr;
  return enqueue(stream, [c]() {
    for (int64_t s = 0; s < c.sequences; ++s) choose_one(c, s);
    return NQ_OK;
  });
}

}  // namespace

NQ_EXPORT size_t nq_cuda_choice_workspace_bytes(int64_t sequences, int64_t vocabulary) {
  if (sequences < 1 || vocabulary < 1 || sequences > 0xffff || vocabulary > (1 << 20)) return 0;
  return static_cast<size_t>(sequences) * 256;
}

NQ_EXPORT nq_status nq_cuda_choose(const nq_cuda_choice* choice, void* stream) {
  return choose(choice, false, stream);
}

NQ_EXPORT nq_status nq_cuda_sample(const nq_cuda_choice* choice, void* stream) {
  return choose(choice, true, stream);
}
