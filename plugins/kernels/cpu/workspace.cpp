#include "workspace.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dyndeploy::cpu {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

}  // namespace

Buffer::Buffer(std::size_t bytes) {
  const bool huge = bytes >= kHugePage / 2;
  const std::size_t alignment = huge ? kHugePage : kLine;
  size_ = round_up(std::max(bytes, kLine), alignment);
  memory_.reset(std::aligned_alloc(alignment, size_));
  if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
  if (huge) madvise(memory_.get(), size_, MADV_HUGEPAGE);
#endif
}

void Buffer::Free::operator()(void* p) const { std::free(p); }

std::shared_ptr<void> Arena::take(std::size_t bytes) {
  const std::size_t size = round_up(std::max(bytes, kLine), kLine);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<Buffer> buffer = current_.lock();
  if (!buffer || used_ + size > buffer->size()) {
    buffer = std::make_shared<Buffer>(std::max(size, buffer_bytes_));
    current_ = buffer;
    used_ = 0;
  }
  void* piece = static_cast<char*>(buffer->get()) + used_;
  used_ += size;
  return {std::move(buffer), piece};
}

void* Workspace::take_bytes(std::size_t bytes) {
  const std::size_t size = round_up(std::max(bytes, kLine), kLine);
  if (buffers_.empty() || used_ + size > buffers_[current_].size()) {
    const std::size_t next = buffers_.empty() ? 0 : current_ + 1;
    if (next == buffers_.size() || buffers_[next].size() < size) {
      buffers_.emplace(buffers_.begin() + static_cast<std::ptrdiff_t>(next), size);
    }
    current_ = next;
    used_ = 0;
  }
  char* piece = static_cast<char*>(buffers_[current_].get()) + used_;
  used_ += size;
  total_ += size;
  peak_ = std::max(peak_, total_);
  return piece;
}

void Workspace::rewind(const Mark& mark) {
  current_ = mark.buffer;
  used_ = mark.used;
  total_ = mark.total;
}

void Workspace::reset() {
  if (buffers_.size() > 1) {
    buffers_.clear();
    buffers_.emplace_back(peak_);
  }
  current_ = used_ = total_ = peak_ = 0;
}

WorkspacePool::Lease::Lease(WorkspacePool& pool) : pool_(pool) {
  {
    const std::lock_guard<std::mutex> lock(pool.mutex_);
    if (!pool.idle_.empty()) {
      workspace_ = std::move(pool.idle_.back());
      pool.idle_.pop_back();
    }
  }
  if (!workspace_) workspace_ = std::make_unique<Workspace>();
  workspace_->reset();
}

WorkspacePool::Lease::~Lease() {
  const std::lock_guard<std::mutex> lock(pool_.mutex_);
  try {
    pool_.idle_.push_back(std::move(workspace_));
  } catch (const std::bad_alloc&) {
    // Without room to keep it the workspace is simply freed.
  }
}

}  // namespace dyndeploy::cpu
