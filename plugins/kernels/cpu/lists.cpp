#include "lists.h"

#include <cstring>

namespace dyndeploy::cpu {
namespace {

// The border bits of every coordinate along one axis.
void mark_borders(int count, int size, int stride, int dilation, int low, int high, std::uint8_t* border) {
  for (int i = 0; i < count; ++i) {
    const int centre = i * stride;
    border[i] =
        static_cast<std::uint8_t>((centre < dilation ? low : 0) | (centre + dilation >= size ? high : 0));
  }
}

}  // namespace

PixelLists make_lists(const BottleneckLayer& layer, const BottleneckShape& shape, const float* mask,
                      int mask_height, int mask_width, bool want_inactive, Workspace& workspace) {
  const int batch = shape.batch, H = shape.height, W = shape.width, Ho = shape.out_height,
            Wo = shape.out_width;
  const int s = layer.stride, d = layer.dilation;
  const std::size_t in_pixels = static_cast<std::size_t>(batch) * H * W;
  const std::size_t out_pixels = static_cast<std::size_t>(batch) * Ho * Wo;
  const bool same = s == 1;

  auto* active = workspace.take<std::int32_t>(out_pixels);
  auto* centre = same ? active : workspace.take<std::int32_t>(out_pixels);
  auto* valid = workspace.take<std::uint16_t>(out_pixels);
  auto* border = workspace.take<std::uint8_t>(out_pixels);
  auto* dilated = workspace.take<std::int32_t>(in_pixels + 1);
  auto* inactive = want_inactive ? workspace.take<std::int32_t>(out_pixels) : nullptr;
  auto* active_begin = workspace.take<std::int32_t>(batch + 1);
  auto* dilated_begin = workspace.take<std::int32_t>(batch + 1);
  auto* inactive_begin = workspace.take<std::int32_t>(batch + 1);

  auto* row_border = workspace.take<std::uint8_t>(Ho);
  auto* column_border = workspace.take<std::uint8_t>(Wo);
  mark_borders(Ho, H, s, d, kBorderTop, kBorderBottom, row_border);
  mark_borders(Wo, W, s, d, kBorderLeft, kBorderRight, column_border);
  std::uint16_t taps[kBorderClasses];
  for (int c = 0; c < kBorderClasses; ++c) taps[c] = static_cast<std::uint16_t>(border_taps(c));

  auto* mask_row = workspace.take<std::int32_t>(Ho);
  auto* mask_column = workspace.take<std::int32_t>(Wo);
  for (int y = 0; y < Ho; ++y)
    mask_row[y] = static_cast<std::int32_t>(static_cast<std::int64_t>(y) * mask_height / Ho);
  for (int x = 0; x < Wo; ++x)
    mask_column[x] = static_cast<std::int32_t>(static_cast<std::int64_t>(x) * mask_width / Wo);

  auto* columns = workspace.take<std::int32_t>(Wo);  // active x of the current mask row
  auto* others = workspace.take<std::int32_t>(Wo);
  auto* needed = workspace.take<std::uint8_t>(W);  // input columns under their taps
  auto* map = workspace.take<std::uint8_t>(static_cast<std::size_t>(H) * W);

  int A = 0, D = 0, I = 0;
  for (int n = 0; n < batch; ++n) {
    active_begin[n] = A;
    dilated_begin[n] = D;
    inactive_begin[n] = I;
    const float* sample = mask + static_cast<std::size_t>(n) * mask_height * mask_width;
    std::memset(map, 0, static_cast<std::size_t>(H) * W);
    int row = -1, on = 0, off = 0;
    for (int y = 0; y < Ho; ++y) {
      if (mask_row[y] != row) {
        row = mask_row[y];
        const float* bits = sample + static_cast<std::size_t>(row) * mask_width;
        on = off = 0;
        std::memset(needed, 0, static_cast<std::size_t>(W));
        for (int x = 0; x < Wo; ++x) {
          if (bits[mask_column[x]] > 0.5f) {
            columns[on++] = x;
            const int c = x * s;
            if (c >= d) needed[c - d] = 1;
            needed[c] = 1;
            if (c + d < W) needed[c + d] = 1;
          } else {
            others[off++] = x;
          }
        }
      }
      const int out_row = (n * Ho + y) * Wo;
      if (want_inactive) {
        for (int i = 0; i < off; ++i) inactive[I + i] = out_row + others[i];
        I += off;
      }
      if (!on) continue;
      const int in_row = (n * H + y * s) * W;
      for (int i = 0; i < on; ++i) {
        const int x = columns[i];
        const int c = row_border[y] | column_border[x];
        active[A + i] = out_row + x;
        if (!same) centre[A + i] = in_row + x * s;
        valid[A + i] = taps[c];
        border[A + i] = static_cast<std::uint8_t>(c);
      }
      A += on;
      for (int t = -1; t <= 1; ++t) {
        const int from = y * s + t * d;
        if (from < 0 || from >= H) continue;
        std::uint8_t* to = map + static_cast<std::size_t>(from) * W;
        for (int x = 0; x < W; ++x) to[x] |= needed[x];
      }
    }
    if (A > active_begin[n]) {
      const std::int32_t base = n * H * W;
      for (int i = 0; i < H * W; ++i) {
        dilated[D] = base + i;
        D += map[i];
      }
    }
  }
  active_begin[batch] = A;
  dilated_begin[batch] = D;
  inactive_begin[batch] = I;

  PixelLists lists;
  lists.active = active;
  lists.centre = centre;
  lists.valid = valid;
  lists.border = border;
  lists.active_begin = active_begin;
  lists.dilated = dilated;
  lists.dilated_begin = dilated_begin;
  lists.inactive = inactive;
  lists.inactive_begin = inactive_begin;
  return lists;
}

PixelLists make_full_lists(const BottleneckLayer& layer, const BottleneckShape& shape, Workspace& workspace) {
  auto* ones = workspace.take<float>(static_cast<std::size_t>(shape.batch));
  for (int n = 0; n < shape.batch; ++n) ones[n] = 1.0f;
  return make_lists(layer, shape, ones, 1, 1, false, workspace);
}

}  // namespace dyndeploy::cpu
