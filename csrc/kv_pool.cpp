#include "kv_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace fourbee {
namespace {

// Memory is asked of the system in slabs, in huge pages where it has some: small pages cost an
// eighth of the bandwidth.
constexpr int64_t kSlabBytes = int64_t(32) << 20;

// Keys and values of one head in one layer of a page.
int64_t head_bytes(Kind kind, int64_t head_dim, int64_t group) {
  const int64_t numbers = 2 * kPageKeys * head_dim, rows = 2 * kPageKeys;
  if (kind == Kind::int8) return numbers + rows * 4;                          // a float32 scale each
  if (kind == Kind::int4) return numbers / 2 + rows * (head_dim / group) * 4;  // a float16 scale and minimum a group
  return numbers * (kind == Kind::f32 ? 4 : 2);
}

}  // namespace

KvPool::KvPool(int64_t layers, int64_t heads, int64_t head_dim, Kind kind) : layers_(layers) {
  int64_t group = kind == Kind::int4 ? 64 : 0;
  while (group && head_dim % group) group /= 2;  // down to 16
  layout_ = {kind, heads, head_dim, group, head_bytes(kind, head_dim, group), 0};
  layout_.layer_bytes = heads * layout_.head_bytes;
  page_bytes_ = layers * layout_.layer_bytes;
  slab_pages_ = std::max<int64_t>(1, kSlabBytes / page_bytes_);
}

KvPool::~KvPool() {
  for (uint8_t* slab : slabs_) munmap(slab, size_t(slab_pages_ * page_bytes_));
}

int64_t KvPool::allocate() {
  std::lock_guard lock(mutex_);
  if (free_.empty()) {
    const size_t bytes = size_t(slab_pages_ * page_bytes_);
    void* slab = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slab == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(slab, bytes, MADV_HUGEPAGE);
#endif
    const int64_t first = int64_t(slabs_.size()) * slab_pages_;
    slabs_.push_back(static_cast<uint8_t*>(slab));
    in_use_.resize(size_t(first + slab_pages_), false);
    for (int64_t i = slab_pages_; i > 0; i--) free_.push_back(first + i - 1);
  }
  const int64_t number = free_.back();
  free_.pop_back();
  in_use_[size_t(number)] = true;
  std::memset(slabs_[size_t(number / slab_pages_)] + number % slab_pages_ * page_bytes_, 0, size_t(page_bytes_));
  return number;
}

void KvPool::release(int64_t number) {
  page(number);
  std::lock_guard lock(mutex_);
  in_use_[size_t(number)] = false;
  free_.push_back(number);
}

void KvPool::copy(int64_t from, int64_t to) { std::memcpy(page(to), page(from), size_t(page_bytes_)); }

uint8_t* KvPool::page(int64_t number) const {
  std::lock_guard lock(mutex_);
  if (number < 0 || number >= int64_t(in_use_.size()) || !in_use_[size_t(number)])
    throw std::invalid_argument("page " + std::to_string(number) + " is not in use");
  return slabs_[size_t(number / slab_pages_)] + number % slab_pages_ * page_bytes_;
}

int64_t KvPool::used() const {
  std::lock_guard lock(mutex_);
  return int64_t(in_use_.size() - free_.size());
}

}  // namespace fourbee
