// Which pixels and channels are active: sorted lists by prefix sums, with no atomics and no help from the
// host.
#pragma once

#include "arguments.h"
#include "scan.h"

namespace dyndeploy {
namespace cuda {

// Mask bits of the output pixels of one sample.
struct MaskView {
  const float* bits;
  int mask_height, mask_width, out_height, out_width;

  DYN_DEVICE MaskView(const BottleneckArguments& a, int sample)
      : bits(a.tensors.spatial_mask +
             static_cast<std::size_t>(sample) * a.shape.mask_height * a.shape.mask_width),
        mask_height(a.shape.mask_height),
        mask_width(a.shape.mask_width),
        out_height(a.out_height),
        out_width(a.out_width) {}

  // Where the bits of a row of outputs begin, and which of them is that of a column.
  DYN_DEVICE int row(int y) const { return y * mask_height / out_height * mask_width; }
  DYN_DEVICE int column(int x) const { return x * mask_width / out_width; }
  DYN_DEVICE bool at(int y, int x) const { return bits[row(y) + column(x)] > 0.5f; }
};

// Whether the 3x3 of any active output pixel reads input pixel (y, x).
DYN_DEVICE bool is_read(const BottleneckShape& shape, const MaskView& mask, int y, int x) {
  // A division costs as much as a dozen other steps: rows and columns are looked up once each.
  int row[3], column[3];
  DYN_UNROLL
  for (int i = 0; i < 3; ++i) {
    const int ys = y + (i - 1) * shape.dilation, xs = x + (i - 1) * shape.dilation;
    const int oy = shape.stride == 1 ? ys : ys / 2, ox = shape.stride == 1 ? xs : xs / 2;
    const bool above = ys < 0 || oy >= mask.out_height || oy * shape.stride != ys;
    const bool beside = xs < 0 || ox >= mask.out_width || ox * shape.stride != xs;
    row[i] = above ? -1 : mask.row(oy);
    column[i] = beside ? -1 : mask.column(ox);
  }
  bool read = false;
  DYN_UNROLL
  for (int i = 0; i < 3; ++i) {
    DYN_UNROLL
    for (int j = 0; j < 3; ++j) {
      if (row[i] >= 0 && column[j] >= 0) read = read || mask.bits[row[i] + column[j]] > 0.5f;
    }
  }
  return read;
}

// What a thread found of its chunk, so that it need not look again; chunks of more pixels than bits do.
struct Found {
  static constexpr int kBits = 32;
  std::uint32_t out, in;
};

// Whether a pixel is the first one of a patch of 2 x 2.
DYN_DEVICE bool begins_patch(const BottleneckArguments& a, int pixel) {
  return pixel % 2 == 0 && pixel / a.out_width % 2 == 0;
}

DYN_DEVICE Counts count_chunk(const BottleneckArguments& a, int sample, int t, Found& found) {
  const MaskView mask(a, sample);
  Counts counts = {0, 0, 0};
  found = {0u, 0u};
  const Chunk out(t, a.out_pixels);
  for (int p = out.begin; p < out.end; ++p) {
    if (!mask.at(p / a.out_width, p % a.out_width)) continue;
    ++counts.out;
    if (a.winograd && begins_patch(a, p)) ++counts.patches;
    if (p - out.begin < Found::kBits) found.out |= 1u << (p - out.begin);
  }
  if (a.dense_mean) return counts;
  const Chunk in(t, a.in_pixels);
  for (int p = in.begin; p < in.end; ++p) {
    if (!is_read(a.shape, mask, p / a.shape.width, p % a.shape.width)) continue;
    ++counts.in;
    if (p - in.begin < Found::kBits) found.in |= 1u << (p - in.begin);
  }
  return counts;
}

// Those of a sample, from the sums of its chunks.
DYN_DEVICE Counts whole_sample(const BottleneckArguments& a, Counts sums) {
  if (a.dense_mean) sums.in = sums.out > 0 ? a.in_pixels : 0;
  return sums;
}

// Counts of every sample, left in samples[n]; only for batches of two or more.
struct CountKernel {
  using Arguments = BottleneckArguments;
  static constexpr int kThreads = kListThreads;
  static constexpr int kBlocks = 1;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED_ARRAY(Counts, sums, kListThreads);
    for_threads<kThreads>([&](int t) {
      Found found;
      sums[t] = count_chunk(a, block.x, t, found);
    });
    sync();
    scan(sums);
    for_threads<kThreads>([&](int t) {
      if (t == 0) {
        const Counts counts = whole_sample(a, sums[kThreads - 1]);
        a.samples[block.x].out_count = counts.out;
        a.samples[block.x].in_count = counts.in;
      }
    });
  }
};

// Copies the inactive pixels of an identity shortcut, by blocks of so many threads.
template <class T, int kVector, int kThreads>
struct CopyInactive {
  static constexpr int kBytes = kThreads << 6;  // of the output, for one block

  static DYN_BOTH int pixels(const BottleneckArguments& a) {
    const int bytes = static_cast<int>(sizeof(T)) * a.shape.outputs;
    return bytes > kBytes ? 1 : kBytes / bytes;
  }
  static int blocks(const BottleneckArguments& a) {
    return a.spatial && !a.shape.projection ? divide_up(a.shape.batch * a.out_pixels, pixels(a)) : 0;
  }

  static DYN_DEVICE void run(const BottleneckArguments& a, int part) {
    const T* x = static_cast<const T*>(a.tensors.x);
    T* y = static_cast<T*>(a.tensors.y);
    const int channels = a.shape.outputs;
    const int size = pixels(a);
    const int begin = part * size, end = smaller(begin + size, a.shape.batch * a.out_pixels);
    for_threads<kThreads>([&](int t) {
      for (int p = begin + t / 32; p < end; p += kThreads / 32) {
        const int sample = p / a.out_pixels, at = p % a.out_pixels;
        if (MaskView(a, sample).at(at / a.out_width, at % a.out_width)) continue;
        const T* from = x + static_cast<std::size_t>(p) * channels;
        T* to = y + static_cast<std::size_t>(p) * channels;
        for (int c = t % 32 * kVector; c < channels; c += 32 * kVector) {
          store_vector(to + c, load_vector<T, kVector>(from + c));
        }
      }
    });
  }
};

// One kernel for all that precedes the first convolution: blocks [0, N) write the pixel lists, the next N the
// channel lists, and the rest copies the inactive pixels of an identity shortcut.
template <class T, int kVector>
struct PrepareKernel {
  using Arguments = BottleneckArguments;
  static constexpr int kThreads = kListThreads;
  static constexpr int kBlocks = 1;
  using Copies = CopyInactive<T, kVector, kThreads>;

  static int blocks(const Arguments& a) {
    return (a.spatial ? a.shape.batch : 0) + (a.shape.channel_groups > 0 ? a.shape.batch : 0) +
           Copies::blocks(a);
  }

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    int at = block.x;
    if (a.spatial) {
      if (at < a.shape.batch) return list_pixels(a, at);
      at -= a.shape.batch;
    }
    if (a.shape.channel_groups > 0) {
      if (at < a.shape.batch) return list_channels(a, at);
      at -= a.shape.batch;
    }
    Copies::run(a, at);
  }

  static DYN_DEVICE void list_pixels(const Arguments& a, int sample) {
    DYN_SHARED_ARRAY(Counts, sums, kListThreads);
    DYN_SHARED(Counts, before);
    DYN_SHARED(Counts, total);
    // Rows of the samples before this one, and of all.
    if (a.shape.batch > 1) {
      PerThread<Counts, kThreads> mine, all;
      for_threads<kThreads>([&](int t) {
        mine[t] = all[t] = {0, 0, 0};
        for (int n = t; n < a.shape.batch; n += kThreads) {
          const Counts counts = {a.samples[n].out_count, a.samples[n].in_count, 0};
          all[t] = all[t] + counts;
          if (n < sample) mine[t] = mine[t] + counts;
        }
        sums[t] = mine[t];
      });
      sync();
      scan(sums);
      for_threads<kThreads>([&](int t) {
        if (t == kThreads - 1) before = sums[t];
      });
      sync();
      for_threads<kThreads>([&](int t) { sums[t] = all[t]; });
      sync();
      scan(sums);
      for_threads<kThreads>([&](int t) {
        if (t == kThreads - 1) total = sums[t];
      });
      sync();
    }
    PerThread<Counts, kThreads> own;
    PerThread<Found, kThreads> found;
    for_threads<kThreads>([&](int t) { sums[t] = own[t] = count_chunk(a, sample, t, found[t]); });
    sync();
    scan(sums);
    for_threads<kThreads>([&](int t) {
      if (a.shape.batch == 1 && t == kThreads - 1) {
        before = {0, 0, 0};
        total = whole_sample(a, sums[t]);
      }
    });
    sync();
    const bool some = sums[kThreads - 1].out > 0;
    for_threads<kThreads>([&](int t) {
      const MaskView mask(a, sample);
      const Chunk out(t, a.out_pixels);
      int active = before.out + sums[t].out - own[t].out;
      const int first = sample * a.out_pixels;
      int inactive = total.out + first + out.begin - active;
      // A patch is active as a whole.
      int patch = before.out / 4 + sums[t].patches - own[t].patches;
      for (int p = out.begin; p < out.end; ++p) {
        const int at = p - out.begin;
        const bool is_active =
            at < Found::kBits ? (found[t].out >> at & 1u) != 0 : mask.at(p / a.out_width, p % a.out_width);
        const int to = is_active ? active++ : inactive++;
        a.out_list[to] = first + p;
        if (a.winograd && is_active && p % 2 == 0) {
          a.pair_rows[(first + p) / 2] = to;
          if (begins_patch(a, p)) a.patch_list[patch++] = first + p;
        }
      }
      const Chunk in(t, a.in_pixels);
      int read = before.in + (a.dense_mean ? in.begin : sums[t].in - own[t].in);
      for (int p = in.begin; p < in.end; ++p) {
        const int at = p - in.begin;
        const bool needed = a.dense_mean ? some
                            : at < Found::kBits
                                ? (found[t].in >> at & 1u) != 0
                                : is_read(a.shape, mask, p / a.shape.width, p % a.shape.width);
        if (needed) a.in_list[read++] = sample * a.in_pixels + p;
      }
      if (t == kThreads - 1) {
        SampleRows& rows = a.samples[sample];
        rows.out_start = before.out;
        rows.in_start = before.in;
        if (a.shape.batch == 1) {
          rows.out_count = total.out;
          rows.in_count = total.in;
        }
        if (sample == 0) a.samples[a.shape.batch] = {total.out, 0, total.in, 0};
      }
    });
  }

  static DYN_DEVICE void list_channels(const Arguments& a, int sample) {
    DYN_SHARED_ARRAY(Counts, sums, kListThreads);
    const int middle = a.shape.middle;
    const int width = middle / a.shape.channel_groups;
    const float* mask = a.tensors.channel_mask + static_cast<std::size_t>(sample) * a.shape.channel_groups;
    PerThread<Counts, kThreads> own;
    for_threads<kThreads>([&](int t) {
      const Chunk chunk(t, middle);
      own[t] = {0, 0, 0};
      for (int c = chunk.begin; c < chunk.end; ++c) own[t].out += mask[c / width] > 0.5f ? 1 : 0;
      sums[t] = own[t];
    });
    sync();
    scan(sums);
    for_threads<kThreads>([&](int t) {
      int* channels = a.channels + static_cast<std::size_t>(sample) * middle;
      int* start = a.channel_start + static_cast<std::size_t>(sample) * (a.shape.groups + 1);
      const Chunk chunk(t, middle);
      int to = sums[t].out - own[t].out;
      for (int c = chunk.begin; c < chunk.end; ++c) {
        if (c % a.group_channels == 0) start[c / a.group_channels] = to;
        if (mask[c / width] > 0.5f) channels[to++] = c;
      }
      if (t == kThreads - 1) start[a.shape.groups] = sums[t].out;
    });
  }
};

}  // namespace cuda
}  // namespace dyndeploy
