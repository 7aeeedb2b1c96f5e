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

// Write a file that is absent or whole: under another name first, then moved into place. Throws
// std::runtime_error with what the system says; nothing is left behind.
void write_file(const std::string& path, const std::string& content);
// Make a folder and those above it. Throws as above.
void make_folders(const std::string& path);

// Keeps other processes that ask for the same path out while it lives; waits for them. Throws as above. The
// lock file has the name that dyndeploy/files.py gives it.
class FileLock {
 public:
  explicit FileLock(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  std::string name_;
  int handle_;
};

bool is_file(const std::string& path);
bool is_folder(const std::string& path);

// Files below a folder with one of the endings (lower case), sorted; hidden ones are passed over. Throws as
// above.
std::vector<std::string> files_below(const std::string& folder, const std::vector<std::string>& endings);

// The files that a shell's pattern finds, sorted as text.
std::vector<std::string> matching(const std::string& pattern);

// Where this library or program lies; "" where the system does not say.
std::string own_folder();

// The name behind the last slash, and what stands before it ("." without one).
std::string name_of(const std::string& path);
std::string folder_of(const std::string& path);
std::string joined(const std::string& folder, const std::string& name);

}  // namespace runtime
}  // namespace dyndeploy
