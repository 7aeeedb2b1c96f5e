// Files, read whole or summed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dyndeploy {
namespace runtime {

// Throw std::runtime_error with what the system says, or that it is no file, or that it is larger than
// `most`.
std::string read_file(const std::string& path, std::uint64_t most);
std::string file_sha256(const std::string& path);

bool is_file(const std::string& path);
bool is_folder(const std::string& path);

// Files below a folder with one of the endings (lower case), sorted; hidden ones are passed over. Throws as
// above.
std::vector<std::string> files_below(const std::string& folder, const std::vector<std::string>& endings);

// The files that a shell's pattern finds, sorted as text.
std::vector<std::string> matching(const std::string& pattern);

std::string joined(const std::string& folder, const std::string& name);

}  // namespace runtime
}  // namespace dyndeploy
