// Storage for pages of keys and values: fixed size, all layers of a page in one piece. Which page is whose, and
// when it is cleared, is the engine's.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fourbee {

class KvPool {
 public:
  // `kind`: f32, bf16, int8 (with a scale for each position and head) or int4 (a scale and a minimum for each 64 of
  // its dimensions, 32 or 16 where 64 do not divide them). Memory is reserved here and taken when a page is first
  // written. Throws std::bad_alloc.
  KvPool(int64_t layers, int64_t heads, int64_t head_dim, Kind kind, int64_t pages);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  uint8_t* page(int64_t number) const;  // zero until it is written; throws std::invalid_argument for a number beyond
  void clear(int64_t number);
  void copy(int64_t from, int64_t to);
  int64_t layers() const { return layers_; }
  int64_t pages() const { return pages_; }
  int64_t page_bytes() const { return page_bytes_; }
  const PageLayout& layout() const { return layout_; }

 private:
  PageLayout layout_;
  int64_t layers_, pages_, page_bytes_;
  uint8_t* memory_;
};

}  // namespace fourbee
