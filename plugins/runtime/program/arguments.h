// What stands on the command line of dyndeploy-run.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "session.h"

namespace dyndeploy {
namespace runtime {

struct Arguments {
  std::string bundle;
  std::vector<std::string> images;
  Options options;
  bool json = false, verify = false, info = false, statistics = false;
  double score = -1;  // below 0: not asked for
  bool has_classes = false;
  std::string classes;
  long repeat = 1, limit = 0;
  std::string stats;  // a file or unix:PATH; empty: none
  double stats_every = 1;
  std::int32_t frame_height = 0, frame_width = 0;  // 0: images are files
};

// Nothing for --help, which has been printed. Throws Error(DYNDEPLOY_USAGE).
std::unique_ptr<Arguments> parse(int count, char** values);

}  // namespace runtime
}  // namespace dyndeploy
