// Builds the kernel table of one vector type; the matrix product may use another one of the same width.
// Included once per instruction-set translation unit.
#pragma once

#include "data_impl.h"
#include "grouped_impl.h"
#include "regions_impl.h"
#include "sampling_impl.h"
#include "transformer_impl.h"
#include "winograd_impl.h"

namespace dyndeploy::cpu {
namespace {

template <class V>
constexpr auto winograd_of() -> decltype(Isa::winograd) {
  if constexpr (V::kInputsPerRow == 1)
    return &winograd<V>;
  else
    return nullptr;
}

template <class V, class Product = V>
constexpr Isa make_isa(const char* name, bool (*supported)()) {
  static_assert(V::kTileRows <= kMaxTileRows && V::kPanelVectors * V::kWidth <= kMaxPanelWidth,
                "scratch sizes");
  return Isa{name,
             V::kWidth,
             V::kPanelVectors * V::kWidth,
             V::kTileRows,
             Product::kInputsPerRow,
             supported,
             &gemm<Product>,
             winograd_of<Product>(),
             &grouped<V>,
             &grouped_vector<V>,
             &copy_group<V>,
             &pack<Product>,
             &copy_selected<Product>,
             &pooled_dot<V>,
             &dot<V>,
             &column_sums<V>,
             &byte_dot<V>,
             &byte_sums,
             &scale_rows<V>,
             &add_relu<V>,
             Product::kTileRows,
             &norm_rows<V, Product>,
             &product_rows<V, Product>,
             &key_panels<V>,
             &attend<V, Product>,
             &norm_logits<V>,
             &read_regions<V>,
             &sample_rows<V>};
}

}  // namespace
}  // namespace dyndeploy::cpu
