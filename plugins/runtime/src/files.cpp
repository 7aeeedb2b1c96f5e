#include "files.h"

#include <dirent.h>
#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "sha256.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr int kDeepestFolder = 64;

std::string reason() { return std::strerror(errno); }

bool mode_is(const std::string& path, mode_t kind) {
  struct stat found;
  return ::stat(path.c_str(), &found) == 0 && (found.st_mode & S_IFMT) == kind;
}

struct Closer {
  void operator()(std::FILE* file) const { std::fclose(file); }
  void operator()(DIR* folder) const { ::closedir(folder); }
};
using File = std::unique_ptr<std::FILE, Closer>;

File opened(const std::string& path) {
  struct stat found;
  if (::stat(path.c_str(), &found) != 0) throw std::runtime_error(reason());
  // A pipe or a device would be waited for.
  if (!S_ISREG(found.st_mode)) throw std::runtime_error("it is no file");
  File file(std::fopen(path.c_str(), "rb"));
  if (!file) throw std::runtime_error(reason());
  return file;
}

template <class Take>
void for_each_part(const std::string& path, Take take) {
  const File file = opened(path);
  std::vector<char> part(1 << 18);
  while (const std::size_t size = std::fread(part.data(), 1, part.size(), file.get()))
    take(part.data(), size);
  if (std::ferror(file.get())) throw std::runtime_error(reason());
}

bool ends_with(std::string name, const std::vector<std::string>& endings) {
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return std::any_of(endings.begin(), endings.end(), [&](const std::string& ending) {
    return name.size() >= ending.size() &&
           name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
  });
}

void add_below(const std::string& folder, const std::vector<std::string>& endings, int depth,
               std::vector<std::string>& found) {
  if (depth == kDeepestFolder) return;  // a link that leads round in a circle
  std::vector<std::string> names;
  {
    const std::unique_ptr<DIR, Closer> listing(::opendir(folder.c_str()));
    if (!listing) throw std::runtime_error("cannot look into the folder " + folder + ": " + reason());
    while (const dirent* entry = ::readdir(listing.get()))
      if (entry->d_name[0] != '.') names.push_back(entry->d_name);
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    const std::string path = joined(folder, name);
    if (is_folder(path)) {
      add_below(path, endings, depth + 1, found);
    } else if (ends_with(name, endings) && is_file(path)) {
      found.push_back(path);
    }
  }
}

}  // namespace

bool is_file(const std::string& path) { return mode_is(path, S_IFREG); }
bool is_folder(const std::string& path) { return mode_is(path, S_IFDIR); }

std::string joined(const std::string& folder, const std::string& name) {
  return folder.empty() || folder.back() == '/' ? folder + name : folder + "/" + name;
}

std::string read_file(const std::string& path, std::uint64_t most) {
  std::string content;
  for_each_part(path, [&](const char* data, std::size_t size) {
    if (content.size() + size > most)
      throw std::runtime_error("it is larger than " + std::to_string(most) + " bytes");
    content.append(data, size);
  });
  return content;
}

std::string file_sha256(const std::string& path) {
  Sha256 sum;
  for_each_part(path, [&](const char* data, std::size_t size) { sum.update(data, size); });
  return sum.hex();
}

std::vector<std::string> files_below(const std::string& folder, const std::vector<std::string>& endings) {
  std::vector<std::string> found;
  add_below(folder, endings, 0, found);
  return found;
}

std::vector<std::string> matching(const std::string& pattern) {
  std::vector<std::string> found;
  glob_t paths;
  if (::glob(pattern.c_str(), 0, nullptr, &paths) == 0)
    found.assign(paths.gl_pathv, paths.gl_pathv + paths.gl_pathc);
  ::globfree(&paths);
  return found;
}

}  // namespace runtime
}  // namespace dyndeploy
