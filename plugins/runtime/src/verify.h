// Checking a bundle where it runs: every checksum, and results on the reference inputs against PyTorch's.
#pragma once

#include <string>

#include "session.h"

namespace dyndeploy {
namespace runtime {

// Returns one line on what was compared. Throws Error(DYNDEPLOY_BUNDLE), which says what differs. What it
// does not do, and `dyndeploy verify` does: force the reference's masks, and run under random ones.
std::string verify(Session& session);

}  // namespace runtime
}  // namespace dyndeploy
