// Attention of one head over the kept tokens of a sample: softmax(q k) v with an online softmax. A block
// takes a tile of queries and of columns of v, and goes through the keys, a tile of products at a time.
#pragma once

#include "product.h"
#include "tokens.h"

namespace dyndeploy {
namespace cuda {

// Storage: the type of q, k and v in memory. Lanes multiply floats also of halves: the sums of halves that
// are good enough for a layer would show in the exponentials.
template <class Storage, class Chosen, int kVector>
struct AttentionKernel {
  using Arguments = TransformerArguments;
  using Tile = Chosen;
  using Element = typename Tile::Element;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocks = 2;
  static constexpr int kQueries = Tile::kRows;
  static constexpr int kKeys = Tile::kColumns;  // of a step, and columns of v
  static constexpr int kStride = kKeys + 4;
  static constexpr int kFactorStride = kQueries + 8;
  static constexpr int kSides = kThreads / kQueries;  // threads that share a row
  static constexpr bool kServes = kVector == 1 || sizeof(Storage) == sizeof(float) || Tile::kServed;
  static_assert(kThreads % kQueries == 0 && kKeys % Tile::kDepth == 0, "whole rows and whole strips");

  static int blocks(const Arguments& a) {
    return divide_up(a.shape.tokens, kQueries) * divide_up(a.shape.head_width, kKeys);
  }

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    if (!kServes) return;
    const TransformerShape& s = a.shape;
    const int sample = block.y / s.heads, head = block.y % s.heads;
    const int column_tiles = divide_up(s.head_width, kKeys);
    const int rows = a.samples[sample].attention_rows;
    const int query0 = block.x / column_tiles * kQueries, column0 = block.x % column_tiles * kKeys;
    if (query0 >= rows) return;
    const bool kept = a.kept_heads == nullptr || a.kept_heads[block.y] != 0;
    if (!kept && s.head_mode != 2) return;
    const std::size_t first = static_cast<std::size_t>(sample) * s.tokens, pitch = 3 * a.channels;
    const Storage* q = static_cast<const Storage*>(a.middle) + first * pitch + head * s.head_width;
    const Storage* v = q + 2 * a.channels + column0;
    Storage* to = static_cast<Storage*>(a.rows) + first * a.channels + head * s.head_width + column0;
    const int columns = smaller(kKeys, s.head_width - column0);
    const int queries = smaller(kQueries, rows - query0);
    if (!kept) {
      for_threads<kThreads>([&](int t) {
        const int runs = columns / kVector;
        for (int i = t; i < queries * runs; i += kThreads) {
          const std::size_t row = static_cast<std::size_t>(query0 + i / runs);
          const int column = i % runs * kVector;
          store_vector(to + row * a.channels + column,
                       load_vector<Storage, kVector>(v + row * pitch + column));
        }
      });
      return;
    }
    attend(a, q, v, to, rows, query0, queries, columns, pitch);
  }

  // A run of q, k or v on its way into the stage, in the tile's element type.
  using Run = Vector<Element, kVector>;
  static DYN_DEVICE Run load_run(const Storage* from, bool inside) {
    constexpr int kBytes = static_cast<int>(sizeof(Storage)) * kVector;
    Word<Storage, kVector> word;
    load_or_clear<kBytes>(&word, from, inside);
    return converted(word, std::is_same<Storage, Element>());
  }
  static DYN_DEVICE Run converted(const Word<Storage, kVector>& word, std::true_type) {
    Run run;
    copy<static_cast<int>(sizeof(Run))>(&run, &word);
    return run;
  }
  static DYN_DEVICE Run converted(const Word<Storage, kVector>& word, std::false_type) {
    Vector<Storage, kVector> v;
    copy<static_cast<int>(sizeof(v))>(&v, &word);
    Run run;
    DYN_UNROLL
    for (int e = 0; e < kVector; ++e) from_float(to_float(v.v[e]), run.v[e]);
    return run;
  }

  // Calls put(e, word) for the words of a run, which no access takes at once where halves became floats.
  static constexpr int kPiece = kVector * static_cast<int>(sizeof(Element)) > 16 ? 4 : kVector;
  template <class Put>
  static DYN_DEVICE void in_words(const Run& run, const Put& put) {
    DYN_UNROLL
    for (int e = 0; e < kVector; e += kPiece) {
      Word<Element, kPiece> word;
      copy<static_cast<int>(sizeof(Element)) * kPiece>(&word, &run.v[e]);
      put(e, word);
    }
  }
  static DYN_DEVICE void attend(const Arguments& a, const Storage* q, const Storage* v, Storage* to, int rows,
                                int query0, int queries, int columns, std::size_t pitch) {
    DYN_SHARED(typename Tile::Stage, stage);
    struct alignas(32) Scores {
      float at[kQueries][kStride];
    };
    struct alignas(32) Factors {
      float at[16][kFactorStride];
    };
    DYN_SHARED(Scores, scores);
    DYN_SHARED(Factors, factors);
    DYN_SHARED_ARRAY(float, largest, kQueries);
    DYN_SHARED_ARRAY(float, total, kQueries);
    DYN_SHARED_ARRAY(float, part, kThreads);
    const int width = a.shape.head_width;
    const Storage* k = q + a.channels;
    typename Tile::State sums;
    Tile::clear(sums);
    for_threads<kThreads>([&](int t) {
      for (int i = t; i < kQueries; i += kThreads) {
        largest[i] = -kHuge;
        total[i] = 0.0f;
      }
    });

    for (int key0 = 0; key0 < rows; key0 += kKeys) {
      const int keys = smaller(kKeys, rows - key0);
      typename Tile::State products;
      Tile::clear(products);
      for (int depth = 0; depth < width; depth += Tile::kDepth) {
        sync();
        for_threads<kThreads>([&](int t) {
          constexpr int kRuns = Tile::kDepth / kVector;
          for (int i = t; i < kQueries * kRuns; i += kThreads) {
            const int row = i / kRuns, at = i % kRuns * kVector;
            const bool inside = query0 + row < rows && depth + at < width;
            in_words(load_run(q + (query0 + row) * pitch + depth + at, inside),
                     [&](int e, const Word<Element, kPiece>& word) {
                       Tile::template put_a<kPiece>(stage, row, at + e, word);
                     });
          }
          for (int i = t; i < kKeys * kRuns; i += kThreads) {
            const int key = i / kRuns, at = i % kRuns * kVector;
            in_words(load_run(k + (key0 + key) * pitch + depth + at, key < keys && depth + at < width),
                     [&](int e, const Word<Element, kPiece>& word) {
                       Tile::template put_column<kPiece>(stage, at + e, key, word);
                     });
          }
        });
        sync();
        Tile::accumulate_columns(stage, products, true);
      }
      Tile::leave(products, &scores.at[0][0], kStride);
      sync();

      // The largest product so far, and with it the exponentials.
      for_threads<kThreads>([&](int t) {
        float most = -kHuge;
        for (int i = t % kSides; i < keys; i += kSides) {
          const float score = scores.at[t / kSides][i];
          most = score > most ? score : most;
        }
        part[t] = most;
      });
      sync();
      PerThread<float, kThreads> own;
      for_threads<kThreads>([&](int t) {
        const int row = t / kSides;
        const float most = largest_of(largest[row], &part[row * kSides]);
        float sum = 0.0f;
        for (int i = t % kSides; i < kKeys; i += kSides) {
          const float weight = i < keys ? exponential(scores.at[row][i] - most) : 0.0f;
          scores.at[row][i] = weight;
          sum += weight;
        }
        own[t] = sum;
        if (t % kSides == 0) {
          const float factor = exponential(largest[row] - most);
          for (int i = 0; i < 16; ++i) factors.at[i][row] = factor;
        }
      });
      sync();
      for_threads<kThreads>([&](int t) {
        if (t % kSides == 0) largest[t / kSides] = largest_of(largest[t / kSides], &part[t]);
      });
      sync();
      for_threads<kThreads>([&](int t) { part[t] = own[t]; });
      sync();
      for_threads<kThreads>([&](int t) {
        if (t % kSides != 0) return;
        float sum = total[t / kSides] * factors.at[0][t / kSides];
        for (int i = 0; i < kSides; ++i) sum += part[t + i];
        total[t / kSides] = sum;
      });
      Tile::scale_rows(sums, &factors.at[0][0], kFactorStride);

      for (int depth = 0; depth < keys; depth += Tile::kDepth) {
        sync();
        for_threads<kThreads>([&](int t) {
          constexpr int kTaken = Tile::kTensorCores ? 8 : 1;  // weights that become one word
          for (int i = t; i < kQueries * Tile::kDepth / kTaken; i += kThreads) {
            const int row = i * kTaken / Tile::kDepth, at = i * kTaken % Tile::kDepth;
            Vector<Element, kTaken> weights;
            DYN_UNROLL
            for (int e = 0; e < kTaken; ++e) from_float(scores.at[row][depth + at + e], weights.v[e]);
            Word<Element, kTaken> word;
            copy<static_cast<int>(sizeof(weights))>(&word, &weights);
            Tile::template put_a<kTaken>(stage, row, at, word);
          }
          constexpr int kRuns = kKeys / kVector;
          for (int i = t; i < Tile::kDepth * kRuns; i += kThreads) {
            const int key = i / kRuns, at = i % kRuns * kVector;
            in_words(load_run(v + (key0 + depth + key) * pitch + at, depth + key < keys && at < columns),
                     [&](int e, const Word<Element, kPiece>& word) {
                       Tile::template put_b<kPiece>(stage, key, at + e, word);
                     });
          }
        });
        sync();
        Tile::accumulate(stage, sums, true);
      }
    }

    sync();
    Tile::leave(sums, &scores.at[0][0], kStride);
    sync();
    for_threads<kThreads>([&](int t) {
      const int runs = columns / kVector;
      for (int i = t; i < queries * runs; i += kThreads) {
        const int row = i / runs, column = i % runs * kVector;
        Vector<Storage, kVector> out;
        DYN_UNROLL
        for (int e = 0; e < kVector; ++e) from_float(scores.at[row][column + e] / total[row], out.v[e]);
        store_vector(to + static_cast<std::size_t>(query0 + row) * a.channels + column, out);
      }
    });
  }

  // Below every product that counts; finite, so that nothing is the difference of two infinities.
  static constexpr float kHuge = 3.0e38f;

  static DYN_DEVICE float largest_of(float before, const float* parts) {
    DYN_UNROLL
    for (int i = 0; i < kSides; ++i) before = parts[i] > before ? parts[i] : before;
    return before;
  }
};

}  // namespace cuda
}  // namespace dyndeploy
