// Deformable attention: every head of every query sums bilinear samples of several maps, at points of its
// own.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "parallel.h"
#include "sampling_kernels.h"

namespace dyndeploy::cpu {

// Half-pixel coordinates, zeros outside the maps.
void run_sampling(const Isa& isa, const Sampling& call, const ThreadPool& pool);

}  // namespace dyndeploy::cpu
