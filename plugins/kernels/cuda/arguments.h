// What every kernel of a bottleneck is told: sizes, tensors and the lists in the workspace.
#pragma once

#include "kernels.h"
#include "platform.h"

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

  // Lists, all sorted. out_list holds the active pixels of all samples, then the inactive ones.
  SampleRows* samples;  // (N + 1)
  int* in_list;         // (N, H, W)
  int* out_list;        // (N, Ho, Wo)
  int* channels;        // (N, M): active channels
  int* channel_start;   // (N, groups + 1): where the channels of a group begin in `channels`

  // Hidden maps. A pixel of h1 stands where it stands in x, so that the 3x3 finds its neighbours with no
  // list; a row of h2 stands where its pixel stands in out_list. Channel skipping fills a row from its begin.
  void* h1;  // (N, H, W, M)
  void* h2;  // (N, Ho, Wo, M)

  // The grid of the convolution at hand.
  int row_tiles, column_tiles;
  bool columns_first;   // neighbouring blocks share rows, else columns
  bool aligned_groups;  // active channels come in aligned runs of a vector's width
};

}  // namespace cuda
}  // namespace dyndeploy
