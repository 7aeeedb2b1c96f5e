#include "stats.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "error.h"
#include "json.h"

namespace dyndeploy {
namespace runtime {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kSocket = "unix:";
constexpr int kSchemaVersion = 1;
constexpr std::size_t kMostClients = 16;

std::string reason() { return std::strerror(errno); }

// Lines are added with one call each, so that a reader and another writer meet whole lines. A file that was
// moved away, as logrotate does, is made anew.
class StatsFile : public StatsTarget {
 public:
  explicit StatsFile(const std::string& path) : path_(path) {
    if (!open())
      fail(DYNDEPLOY_USAGE, "--stats: cannot write " + path + ": " + reason() + ". Choose another file.");
  }
  ~StatsFile() override { close(); }

  void write(const std::string& line) override {
    struct stat held, named;
    const bool there = handle_ >= 0 && ::fstat(handle_, &held) == 0 && ::stat(path_.c_str(), &named) == 0 &&
                       held.st_ino == named.st_ino && held.st_dev == named.st_dev;
    if (!there) {
      close();
      if (!open()) return complain();
    }
    // What a full disk has cut off stays a line of its own.
    const std::string text = (torn_ ? "\n" : "") + line + "\n";
    const ssize_t written = ::write(handle_, text.data(), text.size());
    const bool whole = written == static_cast<ssize_t>(text.size());
    torn_ = whole ? false : torn_ || written > 0;
    // Half a line has no error of its own.
    if (!whole && written >= 0) errno = ENOSPC;
    if (!whole) return complain();
    complained_ = false;
  }

 private:
  bool open() {
    handle_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    struct stat found;
    if (handle_ >= 0 && ::fstat(handle_, &found) == 0 && S_ISREG(found.st_mode)) {
      char last = '\n';
      torn_ = found.st_size > 0 && ::pread(handle_, &last, 1, found.st_size - 1) == 1 && last != '\n';
      return true;
    }
    const int why = handle_ < 0 ? errno : EINVAL;
    close();
    errno = why;
    return false;
  }
  void close() {
    if (handle_ >= 0) ::close(handle_);
    handle_ = -1;
  }
  // Images go on; one line until it works again.
  void complain() {
    if (!complained_)
      std::fprintf(stderr, "dyndeploy-run: --stats: a line cannot be written to %s: %s.\n", path_.c_str(),
                   reason().c_str());
    complained_ = true;
  }

  const std::string path_;
  int handle_ = -1;
  bool torn_ = false, complained_ = false;
};

class StatsSocket : public StatsTarget {
 public:
  explicit StatsSocket(const std::string& path) : path_(path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address.sun_path)
      fail(DYNDEPLOY_USAGE, "--stats: the path of a socket has 1 to " +
                                std::to_string(sizeof address.sun_path - 1) + " bytes, not " +
                                std::to_string(path.size()) + ".");
    std::memcpy(address.sun_path, path.data(), path.size());
    const sockaddr* named = reinterpret_cast<const sockaddr*>(&address);
    listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener_ < 0) refuse();
    struct stat found;
    if (::lstat(path.c_str(), &found) == 0) {
      if (!S_ISSOCK(found.st_mode)) {
        ::close(listener_);
        fail(DYNDEPLOY_USAGE, "--stats: " + path + " is there and no socket. Choose another path.");
      }
      // One that nobody answers was left by a program that was killed.
      const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const bool answered = probe >= 0 && ::connect(probe, named, sizeof address) == 0;
      const bool dead = !answered && errno == ECONNREFUSED;
      if (probe >= 0) ::close(probe);
      if (answered) {
        ::close(listener_);
        fail(DYNDEPLOY_USAGE, "--stats: another program answers at " + path + ". Choose another path.");
      }
      if (dead) ::unlink(path.c_str());
    }
    // What runs here is the user's own business.
    const mode_t mask = ::umask(0177);
    const bool bound = ::bind(listener_, named, sizeof address) == 0;
    const int why = errno;
    ::umask(mask);
    errno = why;
    if (!bound || ::listen(listener_, static_cast<int>(kMostClients)) != 0) refuse();
  }
  ~StatsSocket() override {
    for (const int client : clients_) ::close(client);
    ::unlink(path_.c_str());
    ::close(listener_);
  }

  void write(const std::string& line) override {
    const std::string text = line + "\n";
    const auto gone = [&](int client) {
      if (sent(client, text)) return false;
      ::close(client);
      return true;
    };
    clients_.erase(std::remove_if(clients_.begin(), clients_.end(), gone), clients_.end());
  }

  int asked() const override { return listener_; }

  void answer(const std::string& line) override {
    const int client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) return;
    if (clients_.size() < kMostClients && sent(client, line + "\n")) {
      clients_.push_back(client);
    } else {
      ::close(client);
    }
  }

 private:
  // Whoever does not read is left behind: images never wait for a reader.
  static bool sent(int client, const std::string& text) {
    return ::send(client, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
  }
  [[noreturn]] void refuse() {
    const std::string why = reason();
    if (listener_ >= 0) ::close(listener_);
    fail(DYNDEPLOY_USAGE, "--stats: no socket can be made at " + path_ + ": " + why + ".");
  }

  const std::string path_;
  int listener_ = -1;
  std::vector<int> clients_;
};

std::unique_ptr<StatsTarget> target_of(const std::string& where) {
  const std::size_t prefix = std::strlen(kSocket);
  if (where.compare(0, prefix, kSocket) == 0) return std::make_unique<StatsSocket>(where.substr(prefix));
  return std::make_unique<StatsFile>(where);
}

std::string readings_json(const std::vector<std::pair<std::string, double>>& readings) {
  std::string text = "{";
  for (const auto& reading : readings)
    text += (text.size() > 1 ? ", " : "") + quoted(reading.first) + ": " + number(reading.second);
  return text + "}";
}

std::string head_of(const Session& session) {
  const Json info = parse_json(session.info());
  std::string text = "{\"schema_version\": " + std::to_string(kSchemaVersion);
  for (const char* field : {"network", "precision", "runtime", "thresholds"})
    text += ", " + quoted(field) + ": " + spaced_json(*info.find(field));
  text += ", \"bundle\": " + quoted(session.bundle().folder) + ", \"process\": " + std::to_string(::getpid());
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return text + ", \"started\": " + number(now);
}

}  // namespace

Stats::Stats(const Session& session, const std::string& where, double seconds)
    : session_(session), seconds_(seconds), head_(head_of(session)), target_(target_of(where)) {
  if (::pipe2(wake_, O_CLOEXEC) != 0)
    fail(DYNDEPLOY_MEMORY, "--stats: no pipe can be made: " + reason() + ".");
  // Signals are the main thread's, whose reads they are to interrupt.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { work(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Stats::~Stats() {
  ::close(wake_[1]);
  thread_.join();
  ::close(wake_[0]);
}

void Stats::work() {
  const auto period = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds_));
  auto next = Clock::now() + period;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - Clock::now()).count();
    pollfd sources[2] = {{wake_[0], POLLIN, 0}, {target_->asked(), POLLIN, 0}};
    if (::poll(sources, 2, static_cast<int>(std::max<long long>(0, left + 1))) < 0 && errno != EINTR) return;
    if (sources[0].revents) break;
    if (sources[1].revents) target_->answer(line(false));
    if (Clock::now() < next) continue;
    target_->write(line(false));
    // A computer that slept owes no lines.
    next = std::max(next + period, Clock::now());
  }
  target_->write(line(true));
}

std::string Stats::line(bool ended) const {
  const SensorReading reading = sensors_.read();
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return head_ + ", \"time\": " + number(now) + ", \"every\": " + number(seconds_) +
         ", \"ended\": " + (ended ? "true" : "false") + ", \"failed\": " + std::to_string(failed_.load()) +
         ", \"statistics\": " + session_.statistics().json() +
         ", \"rails_mw\": " + readings_json(reading.rails_mw) +
         ", \"temperatures_c\": " + readings_json(reading.temperatures_c) + "}";
}

}  // namespace runtime
}  // namespace dyndeploy
