// Memory: aligned buffers, and arenas that stop allocating once they have seen their largest request.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace dyndeploy::cpu {

// A block of memory aligned for vectors; large ones are aligned for, and advised to use, huge pages, since
// streaming megabytes of weights through 4 KiB pages costs TLB misses. Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  void* get() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t size_ = 0;
};

// Hands out pieces of shared buffers, so that what many callers keep lies in the same huge pages: zeroing the
// unused end of a huge page for each of them would cost more than filling it. A buffer is freed with the last
// of its pieces. May be used by several threads at a time; pieces may outlive the arena.
class Arena {
 public:
  static constexpr std::size_t kBufferBytes = std::size_t{32} << 20;

  // Buffers are of this size, or of a piece's where that is larger.
  explicit Arena(std::size_t buffer_bytes = kBufferBytes) : buffer_bytes_(buffer_bytes) {}
  std::shared_ptr<void> take(std::size_t bytes);

 private:
  std::size_t buffer_bytes_;
  std::mutex mutex_;
  std::weak_ptr<Buffer> current_;
  std::size_t used_ = 0;  // of the current buffer
};

// Hands out pieces of memory; the pieces stay valid until reset() or a rewind() to before they were taken.
class Workspace {
 public:
  struct Mark {
    std::size_t buffer;
    std::size_t used;
    std::size_t total;
  };

  template <class T>
  T* take(std::size_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }
  Mark mark() const { return {current_, used_, total_}; }
  void rewind(const Mark& mark);
  // Forgets all pieces. If they did not fit into one buffer, makes one that fits.
  void reset();

 private:
  void* take_bytes(std::size_t bytes);
  std::vector<Buffer> buffers_;
  std::size_t current_ = 0;
  std::size_t used_ = 0;   // of the current buffer
  std::size_t total_ = 0;  // of all pieces
  std::size_t peak_ = 0;   // of total_ since the last reset
};

// Workspaces for concurrent callers; as many are kept as were ever in use at the same time.
class WorkspacePool {
 public:
  class Lease {
   public:
    explicit Lease(WorkspacePool& pool);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Workspace& operator*() const { return *workspace_; }

   private:
    WorkspacePool& pool_;
    std::unique_ptr<Workspace> workspace_;
  };

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace dyndeploy::cpu
