// What every kernel of a bottleneck is told: sizes, tensors and the lists in the workspace.
#pragma once

#include "grid.h"
#include "kernels.h"
#include "platform.h"
#include "rows.h"

namespace dyndeploy {
namespace cuda {

// Where the rows of one sample stand in the lists; entry `batch` holds the totals.
struct SampleRows {
  int out_start, out_count;  // active output pixels
  int in_start, in_count;    // input pixels that their 3x3 reads
};

struct BottleneckArguments {
  BottleneckShape shape;
  BottleneckTensors tensors;
  int out_height, out_width;
  int in_pixels, out_pixels;  // of one sample
  int group_channels;         // M / groups
  bool spatial;
  bool excites;     // a squeeze-and-excitation follows conv2; skipped channels are zero
  bool dense_mean;  // conv1 and conv2 compute all of a sample that has an active pixel
  bool winograd;    // conv2 multiplies transformed patches of 2 x 2 outputs

  // Lists, all sorted. out_list holds the active pixels of all samples, then the inactive ones.
  SampleRows* samples;  // (N + 1)
  int* in_list;         // (N, H, W)
  int* out_list;        // (N, Ho, Wo)
  int* channels;        // (N, M): active channels
  int* channel_start;   // (N, groups + 1): where the channels of a group begin in `channels`

  // Hidden maps. A pixel of h1 stands where it stands in x, so that the 3x3 finds its neighbours with no
  // list; a row of h2 stands where its pixel stands in out_list, or, with a dense mean, in y. Channel
  // skipping fills a row from its begin.
  void* h1;  // (N, H, W, M)
  void* h2;  // (N, Ho, Wo, M)

  // Of Winograd's conv2: for every place of a patch a matrix whose rows are the active patches. With a
  // spatial mask the patches stand in a list, by their first pixel, and of two neighbouring pixels the row of
  // the left one in h2, which that of the right one follows.
  void* patches;    // (16, N Ho Wo / 4, M)
  void* products;   // likewise
  int* patch_list;  // (N Ho Wo / 4)
  int* pair_rows;   // (N, Ho, Wo / 2)

  // Of a squeeze-and-excitation.
  float* partial;   // (N, parts, M): sums of parts of h2
  float* squeezed;  // (N, S)
  int parts;

  // Which size of tile is for how many rows, where kernels of several sizes are launched and each leaves the
  // others' rows to them (see choose.h). Of the launch at hand; -1: it takes any number of rows.
  TilesByRows tiles;
  int tile;

  // The grid of the convolution at hand.
  TileGrid grid;
  bool columns_first;   // neighbouring blocks share rows, else columns
  bool aligned_groups;  // active channels come in aligned runs of a vector's width
};

// Rows of h2 that conv2 writes of a sample, one behind the other, and the hidden channels that they hold.
struct HiddenRows {
  int first, count, channels;
};
DYN_DEVICE HiddenRows hidden_rows(const BottleneckArguments& a, int sample) {
  HiddenRows rows = {sample * a.out_pixels, a.out_pixels, a.shape.middle};
  if (a.spatial) {
    const SampleRows& active = a.samples[sample];
    if (!a.dense_mean) rows.first = active.out_start;
    if (!a.dense_mean || active.out_count == 0) rows.count = active.out_count;
  }
  if (a.shape.channel_groups > 0) {
    rows.channels = a.channel_start[static_cast<std::size_t>(sample + 1) * (a.shape.groups + 1) - 1];
  }
  return rows;
}

}  // namespace cuda
}  // namespace dyndeploy
