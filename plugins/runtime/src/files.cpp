#include "files.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <glob.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
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

std::string own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&own_folder), &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string name_of(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : slash ? path.substr(0, slash) : "/";
}

void make_folders(const std::string& path) {
  if (is_folder(path)) return;
  const std::string above = folder_of(path);
  if (above != path && !is_folder(above)) make_folders(above);
  if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST)
    throw std::runtime_error("cannot make the folder " + path + ": " + reason());
}

void write_file(const std::string& path, const std::string& content) {
  std::string temporary = joined(folder_of(path), "." + name_of(path).substr(0, 40) + ".XXXXXX.part");
  const int handle = ::mkstemps(&temporary[0], 5);
  if (handle < 0) throw std::runtime_error("cannot write into " + folder_of(path) + ": " + reason());
  const std::unique_ptr<std::FILE, Closer> file(::fdopen(handle, "wb"));
  const mode_t mask = ::umask(0);
  ::umask(mask);
  const bool whole = file && std::fwrite(content.data(), 1, content.size(), file.get()) == content.size() &&
                     std::fflush(file.get()) == 0 && ::fchmod(handle, 0666 & ~mask) == 0 &&
                     ::fsync(handle) == 0 && std::rename(temporary.c_str(), path.c_str()) == 0;
  if (whole) return;
  const std::string why = reason();
  if (!file) ::close(handle);
  ::unlink(temporary.c_str());
  throw std::runtime_error("cannot write " + path + ": " + why);
}

FileLock::FileLock(const std::string& path)
    : name_(joined(folder_of(path), "." + name_of(path).substr(0, 40) + ".lock")), handle_(-1) {
  for (;;) {
    handle_ = ::open(name_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (handle_ < 0) throw std::runtime_error("cannot write into " + folder_of(path) + ": " + reason());
    struct stat held, named;
    // A file system without locks keeps nobody out. Its last owner may have removed it since it was opened.
    if (::flock(handle_, LOCK_EX) != 0) return;
    if (::fstat(handle_, &held) == 0 && ::stat(name_.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
        held.st_dev == named.st_dev)
      return;
    ::close(handle_);
  }
}

FileLock::~FileLock() {
  ::unlink(name_.c_str());
  ::close(handle_);
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
