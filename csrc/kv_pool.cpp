#include "kv_pool.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace fourbee {
namespace {

constexpr int64_t kMostBytes = int64_t(1) << 46;

// Keys and values of one head in one layer of a page.
int64_t head_bytes(Kind kind, int64_t head_dim, int64_t group) {
  const int64_t numbers = 2 * kPageKeys * head_dim, rows = 2 * kPageKeys;
  if (kind == Kind::int8) return numbers + rows * 4;                          // a float32 scale each
  if (kind == Kind::int4) return numbers / 2 + rows * (head_dim / group) * 4;  // a float16 scale and minimum a group
  return numbers * (kind == Kind::f32 ? 4 : 2);
}

}  // namespace

KvPool::KvPool(int64_t layers, int64_t heads, int64_t head_dim, Kind kind, int64_t pages) : layers_(layers), pages_(pages) {
  int64_t group = kind == Kind::int4 ? 64 : 0;
  while (group && head_dim % group) group /= 2;  // down to 16
  layout_ = {kind, heads, head_dim, group, head_bytes(kind, head_dim, group), 0};
  layout_.layer_bytes = heads * layout_.head_bytes;
  page_bytes_ = layers * layout_.layer_bytes;
  if (pages_ > kMostBytes / page_bytes_) throw std::bad_alloc();
  const size_t bytes = size_t(pages_ * page_bytes_);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE);  // small pages cost an eighth of the bandwidth
#endif
  memory_ = static_cast<uint8_t*>(memory);
}

KvPool::~KvPool() { munmap(memory_, size_t(pages_ * page_bytes_)); }

void KvPool::clear(int64_t number) { std::memset(page(number), 0, size_t(page_bytes_)); }

void KvPool::copy(int64_t from, int64_t to) { std::memcpy(page(to), page(from), size_t(page_bytes_)); }

uint8_t* KvPool::page(int64_t number) const {
  if (number < 0 || number >= pages_)
    throw std::invalid_argument("page " + std::to_string(number) + ": the pool has " + std::to_string(pages_));
  return memory_ + number * page_bytes_;
}

}  // namespace fourbee
