// Pages of keys and values: fixed size, all layers of a page in one piece, zeroed when handed out.
#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "kernels.h"

namespace fourbee {

class KvPool {
 public:
  // `kind`: f32, bf16, int8 (with a scale for each position and head) or int4 (a scale and a minimum for each 64 of
  // its dimensions, 32 or 16 where 64 do not divide them).
  KvPool(int64_t layers, int64_t heads, int64_t head_dim, Kind kind);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  int64_t allocate();                      // a page's number; throws std::bad_alloc
  void release(int64_t page);              // throws std::invalid_argument when it is not in use
  void copy(int64_t from, int64_t to);
  uint8_t* page(int64_t number) const;     // throws std::invalid_argument when it is not in use
  int64_t used() const;
  int64_t layers() const { return layers_; }
  int64_t page_bytes() const { return page_bytes_; }
  const PageLayout& layout() const { return layout_; }

 private:
  PageLayout layout_;
  int64_t layers_, page_bytes_, slab_pages_;
  mutable std::mutex mutex_;
  std::vector<uint8_t*> slabs_;
  std::vector<int64_t> free_;
  std::vector<bool> in_use_;
};

}  // namespace fourbee
