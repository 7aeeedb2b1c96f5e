// Runs a host program as the runtime does: run_host_program PROGRAM.npz TENSORS.npz OUTPUT NAME...
// TENSORS.npz holds what the program reads, and something of the type and shape of what it gives; NAME... are
// the inputs, then "--", then the outputs, whose bytes are written one after the other.

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "files.h"
#include "host_program.h"
#include "npz.h"

using namespace dyndeploy::runtime;

int main(int count, char** values) {
  if (count < 5) return 2;
  try {
    std::map<std::string, Array> arrays = parse_npz(read_file(values[2], std::uint64_t{1} << 31));
    std::vector<TensorInfo> inputs, outputs;
    std::vector<Slot> given, taken;
    bool after = false;
    for (int i = 4; i < count; ++i) {
      if (!std::strcmp(values[i], "--")) {
        after = true;
        continue;
      }
      Array& array = arrays.at(values[i]);
      (after ? outputs : inputs).push_back({values[i], array.shape, array.type});
      (after ? taken : given).push_back({values[i], array.type, array.shape, &array.bytes[0]});
    }
    const auto graph = open_host_program(values[1], inputs, outputs);
    const auto binding = graph->bind(given, taken);
    // What is dropped on the way is there again.
    binding->run();
    binding->run();
    std::string bytes;
    for (const TensorInfo& output : outputs) bytes += arrays.at(output.name).bytes;
    write_file(values[3], bytes);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
