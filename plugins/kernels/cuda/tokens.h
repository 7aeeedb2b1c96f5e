// What every kernel of a transformer block is told, the lists of what a sample keeps, and the layer
// normalisation of kept rows.
#pragma once

#include "grid.h"
#include "kernels.h"
#include "normalise.h"
#include "scan.h"

namespace dyndeploy {
namespace cuda {

// What a sample computes. Channels: those of its kept heads. Units: hidden units of the MLP that they leave.
struct SampleTokens {
  int attention_rows, mlp_rows, channels, units;
};

struct TransformerArguments {
  TransformerShape shape;
  TransformerTensors tensors;
  int channels;  // A d

  // Lists, all sorted; a sample fills its part from the begin.
  SampleTokens* samples;  // (N)
  int* tokens;            // (N, T): kept tokens; nullptr: all
  int* kept_heads;        // (N, A): 0 or 1; nullptr: all
  int* channel_list;      // (N, A d): channels of kept heads; nullptr: all
  int* unit_list;         // (N, F): hidden units of kept heads; nullptr: all

  // Row i is that of the i-th kept token, a channel or a unit stands in its own place.
  void* rows;    // (N, T, max(D, A d)): normalised rows, then what attention gives, then normalised rows
  void* middle;  // (N, T, max(3 A d, F)): q, k and v, then the hidden units

  // The grid of the product at hand.
  TileGrid grid;
};

DYN_DEVICE bool keeps(const float* mask, std::size_t at) { return mask == nullptr || mask[at] > 0.5f; }

// Sorted indices of what `keep` is true of, and their number, which every thread gets.
template <class Keep>
DYN_DEVICE int list_kept(Counts (&sums)[kListThreads], int total, int* list, const Keep& keep) {
  PerThread<int, kListThreads> own;
  sync();  // who read the sums of a list before has done so
  for_threads<kListThreads>([&](int t) {
    const Chunk chunk(t, total);
    own[t] = 0;
    for (int i = chunk.begin; i < chunk.end; ++i) own[t] += keep(i) ? 1 : 0;
    sums[t] = {own[t], 0, 0};
  });
  sync();
  scan(sums);
  for_threads<kListThreads>([&](int t) {
    const Chunk chunk(t, total);
    int to = sums[t].out - own[t];
    for (int i = chunk.begin; i < chunk.end; ++i) {
      if (keep(i)) list[to++] = i;
    }
  });
  return sums[kListThreads - 1].out;
}

// All that precedes the first product: blocks [0, N) write the lists, the others copy the rows of x that the
// attention does not write.
template <class T, int kVector>
struct TokenListKernel {
  using Arguments = TransformerArguments;
  static constexpr int kThreads = kListThreads;
  static constexpr int kBlocks = 1;
  static constexpr int kCopied = 64;  // rows of a block

  static int blocks(const Arguments& a) {
    const bool copies = a.shape.token_mask || a.shape.sublayer_masks;
    return a.shape.batch + (copies ? divide_up(a.shape.batch * a.shape.tokens, kCopied) : 0);
  }

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    if (block.x < a.shape.batch) {
      list(a, block.x);
    } else {
      copy_rows(a, block.x - a.shape.batch);
    }
  }

  static DYN_DEVICE void list(const Arguments& a, int sample) {
    DYN_SHARED_ARRAY(Counts, sums, kListThreads);
    const TransformerShape& s = a.shape;
    const std::size_t n = static_cast<std::size_t>(sample);
    int tokens = s.tokens, channels = a.channels, units = s.hidden;
    if (a.tokens != nullptr) {
      const float* mask = a.tensors.token_mask + n * s.tokens;
      tokens = list_kept(sums, s.tokens, a.tokens + n * s.tokens, [&](int i) { return mask[i] > 0.5f; });
    }
    if (a.kept_heads != nullptr) {
      const float* mask = a.tensors.head_mask + n * s.heads;
      for_threads<kThreads>([&](int t) {
        for (int i = t; i < s.heads; i += kThreads) a.kept_heads[n * s.heads + i] = mask[i] > 0.5f ? 1 : 0;
      });
      channels = list_kept(sums, a.channels, a.channel_list + n * a.channels,
                           [&](int i) { return mask[i / s.head_width] > 0.5f; });
      if (a.unit_list != nullptr) {
        const int width = s.hidden / s.heads;
        units = list_kept(sums, s.hidden, a.unit_list + n * s.hidden,
                          [&](int i) { return mask[i / width] > 0.5f; });
      }
    }
    for_threads<kThreads>([&](int t) {
      if (t != 0) return;
      const bool attention = keeps(a.tensors.attention_mask, n), mlp = keeps(a.tensors.mlp_mask, n);
      a.samples[sample] = {attention ? tokens : 0,
                           !mlp          ? 0
                           : s.token_mlp ? tokens
                                         : s.tokens,
                           channels, units};
    });
  }

  static DYN_DEVICE void copy_rows(const Arguments& a, int part) {
    const TransformerShape& s = a.shape;
    const int begin = part * kCopied, end = smaller(begin + kCopied, s.batch * s.tokens);
    const T* x = static_cast<const T*>(a.tensors.x);
    T* y = static_cast<T*>(a.tensors.y);
    for_threads<kThreads>([&](int t) {
      for (int row = begin + t / 32; row < end; row += kThreads / 32) {
        const std::size_t at = static_cast<std::size_t>(row);
        if (keeps(a.tensors.attention_mask, at / static_cast<std::size_t>(s.tokens)) &&
            keeps(a.tensors.token_mask, at)) {
          continue;
        }
        const std::size_t first = at * static_cast<std::size_t>(s.width);
        for (int c = t % 32 * kVector; c < s.width; c += 32 * kVector) {
          store_vector(y + first + c, load_vector<T, kVector>(x + first + c));
        }
      }
    });
  }
};

// Layer normalisation of the rows that a sublayer reads: those of x for the attention, of y for the MLP.
template <class T, int kVector>
struct LayerNormKernel {
  struct Arguments {
    TransformerArguments block;
    bool mlp;
  };
  static constexpr int kThreads = kNormThreads;
  static constexpr int kBlocks = 2;

  static DYN_DEVICE void run(const Arguments& arguments, Index block) {
    DYN_SHARED_ARRAY(float, sums, kNormThreads);
    const TransformerArguments& a = arguments.block;
    const TransformerShape& s = a.shape;
    const bool mlp = arguments.mlp;
    const int sample = block.y;
    const int rows = mlp ? a.samples[sample].mlp_rows : a.samples[sample].attention_rows;
    const int row0 = block.x * kNormRows;
    if (row0 >= rows) return;
    const std::size_t base = static_cast<std::size_t>(sample) * s.tokens;
    const int* tokens = a.tokens != nullptr && (!mlp || s.token_mlp) ? a.tokens + base : nullptr;
    const T* x = static_cast<const T*>(mlp ? a.tensors.y : a.tensors.x);
    const float* weight = mlp ? a.tensors.norm2_weight : a.tensors.norm1_weight;
    const float* bias = mlp ? a.tensors.norm2_bias : a.tensors.norm1_bias;
    T* to = static_cast<T*>(a.rows) + (base + row0) * s.width;
    normalise_rows<T, kVector>(
        sums, s.width, s.epsilon,
        [&](int i) -> const T* {
          if (row0 + i >= rows) return nullptr;
          return x + (base + (tokens != nullptr ? tokens[row0 + i] : row0 + i)) * s.width;
        },
        [&](int t, int c, const float* values) {
          Vector<T, kVector> v;
          DYN_UNROLL
          for (int e = 0; e < kVector; ++e)
            from_float(multiply_add(values[e], weight[c + e], bias[c + e]), v.v[e]);
          store_vector(to + static_cast<std::size_t>(t / 32) * s.width + c, v);
        });
  }
};

}  // namespace cuda
}  // namespace dyndeploy
