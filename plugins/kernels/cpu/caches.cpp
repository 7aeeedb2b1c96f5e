#include "caches.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace dyndeploy::cpu {
namespace {

// The first line of a file about one of the caches; false where there is none.
bool read_line(const char* folder, int index, const char* name, char (&line)[64]) {
  char path[256];
  const int length = std::snprintf(path, sizeof path, "%s/index%d/%s", folder, index, name);
  if (length >= static_cast<int>(sizeof path)) return false;
  std::FILE* const file = std::fopen(path, "re");
  if (!file) return false;
  const bool read = std::fgets(line, sizeof line, file) != nullptr;
  std::fclose(file);
  return read;
}

// Of a list like "0-3,8".
int count_cores(const char* list) {
  int count = 0, first = 0, last = 0, used = 0;
  while (std::sscanf(list, "%d%n", &first, &used) == 1) {
    list += used;
    last = first;
    if (std::sscanf(list, "-%d%n", &last, &used) == 1) list += used;
    count += last - first + 1;
    if (*list != ',') break;
    ++list;
  }
  return std::max(count, 1);
}

}  // namespace

Caches read_caches(const char* folder) {
  Caches found;
  for (int index = 0; index < 8; ++index) {
    char level[64], type[64], size[64], shared[64];
    if (!read_line(folder, index, "level", level) || !read_line(folder, index, "type", type) ||
        !read_line(folder, index, "size", size))
      continue;
    int kib = 0;
    if (std::strncmp(type, "Instruction", 11) == 0 || std::sscanf(size, "%dK", &kib) != 1 || kib <= 0)
      continue;
    const int sharers = read_line(folder, index, "shared_cpu_list", shared) ? count_cores(shared) : 1;
    const std::int64_t bytes = (std::int64_t{kib} << 10) / sharers;
    if (level[0] == '1') found.l1_data = bytes;
    if (level[0] == '2') found.l2 = bytes;
  }
  return found;
}

const Caches& caches() {
  static const Caches found = read_caches("/sys/devices/system/cpu/cpu0/cache");
  return found;
}

const Blocks& blocks() {
  static const Blocks made = [] {
    const std::int64_t l2 = caches().l2;
    Blocks b;
    b.panel = caches().l1_data / 4 * 3;
    b.resident_weights = l2 / 8 * 5;
    b.slice = std::min(l2 / 4, kMaxSlice);
    b.widest_slice = std::min(l2 / 8 * 3, kMaxSlice);
    b.compact_weights = l2 / 8;
    b.shared_weights = l2 / 8 * 7;
    b.band = l2 / 2;
    b.planes = l2 / 2;
    return b;
  }();
  return made;
}

}  // namespace dyndeploy::cpu
