// Heads, pages and attention, as Python calls them.
#include "machine.h"

namespace fourbee {
namespace {

using Variants = nb::ndarray<const float, nb::numpy, nb::shape<-1, -1, -1, -1>, nb::c_contig, nb::device::cpu>;
using InBytes = nb::ndarray<const uint8_t, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using PageBytes = nb::ndarray<uint8_t, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Triples = nb::ndarray<const int64_t, nb::numpy, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;

void rotate_heads(InHeads x, InVector norm, float eps, InRows cos, InRows sin, Heads out) {
  const int64_t rows = int64_t(x.shape(0)), head_dim = int64_t(x.shape(2));
  require(head_dim % 2 == 0, "head_dim: expected an even number");
  require_equal("norm", int64_t(norm.shape(0)), head_dim);
  for (const InRows* table : {&cos, &sin}) {
    require_equal("rows of the rotary table", int64_t(table->shape(0)), rows);
    require_equal("columns of the rotary table", int64_t(table->shape(1)), head_dim / 2);
  }
  for (int i = 0; i < 3; i++) require_equal("shape of out", int64_t(out.shape(i)), int64_t(x.shape(i)));
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  const HeadRotation rotation{x.data(), norm.data(), cos.data(), sin.data(), eps, int64_t(x.shape(1)), head_dim, out.data()};
  rotate_rows(rotation, rows);
}

void check_heads(const KvPool& pool, int64_t layer, int64_t query_heads, int64_t query_width, const InHeads& key, const InHeads& value,
                 const Heads& out, int64_t rows) {
  const PageLayout& layout = pool.layout();
  require(layer >= 0 && layer < pool.layers(), "layer " + std::to_string(layer) + ": the pages have " + std::to_string(pool.layers()));
  require_equal("head_dim of the query", query_width, layout.head_dim);
  require(query_heads > 0 && query_heads % layout.heads == 0, "query heads: expected a multiple of the key-value heads");
  for (const InHeads* one : {&key, &value}) {
    require_equal("rows of keys and values", int64_t(one->shape(0)), rows);
    require_equal("heads of keys and values", int64_t(one->shape(1)), layout.heads);
    require_equal("head_dim of keys and values", int64_t(one->shape(2)), layout.head_dim);
  }
  const int64_t shape[] = {rows, query_heads, query_width};
  for (int i = 0; i < 3; i++) require_equal("shape of out", int64_t(out.shape(i)), shape[i]);
}

// Causal attention of one layer; the sequences as in `sequences_of`.
void attend(KvPool& pool, int64_t layer, InHeads query, InHeads key, InHeads value, Integers counts, Integers starts,
            Integers page_offsets, Integers pages, Heads out) {
  const int64_t rows = int64_t(query.shape(0)), query_heads = int64_t(query.shape(1));
  check_heads(pool, layer, query_heads, int64_t(query.shape(2)), key, value, out, rows);
  const Sequences sequences = sequences_of(pool, rows, counts, starts, page_offsets, pages);
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  attend_rows(pool.layout(), sequences, layer, query_heads, query.data(), key.data(), value.data(), out.data());
}

// How many of a sequence's pages before each one were dropped; one more than there are pages.
std::vector<int64_t> dropped_pages(const Sequences& sequences, size_t s) {
  std::vector<int64_t> dropped{0};
  const int64_t needed = (sequences.starts[s] + sequences.counts[s] + kPageKeys - 1) / kPageKeys;
  for (int64_t i = 0; i < needed; i++) dropped.push_back(dropped.back() + !sequences.pages[size_t(sequences.offsets[s] + i)]);
  return dropped;
}

// Spans of a sequence's rows, checked: kernels read keys and queries where they point.
void check_spans(const Sequences& sequences, size_t s, int64_t first, const Integers& offsets, const Triples& spans) {
  const int64_t count = sequences.counts[s], start = sequences.starts[s];
  const bool plain = offsets(first) == offsets(first + count);
  const std::vector<int64_t> dropped = dropped_pages(sequences, s);
  const auto held = [&](int64_t begin, int64_t end) { return dropped[size_t((end - 1) / kPageKeys) + 1] == dropped[size_t(begin / kPageKeys)]; };
  require(!count || held(plain ? 0 : start, start + count), "pages: one that is read or written was dropped");
  for (int64_t row = 0; row < count; row++) {
    const int64_t begin = offsets(first + row), end = offsets(first + row + 1);
    require(begin >= 0 && begin <= end && end <= int64_t(spans.shape(0)), "span_offsets: out of range");
    require(plain || begin < end, "spans: expected some for every row of a sequence, or for none");
    int64_t before = 0;
    for (int64_t i = begin; i < end; i++) {
      const Span span{spans(i, 0), spans(i, 1), spans(i, 2)};
      require(span.begin >= before && span.begin < span.end && span.end <= start + row + 1,
              "spans: expected ascending ranges up to the row itself");
      require(held(span.begin, span.end), "spans: a page that was dropped");
      require(span.variant >= 0 && span.variant < sequences.variants, "spans: a variant that the query does not have");
      before = span.end;
    }
  }
}

// Pages that the rows of plain sequences see, checked: whole pages of rows, of which each sees itself.
void check_seen(const Sequences& sequences, const Integers& span_offsets) {
  require_equal("seen_offsets", int64_t(sequences.seen_offsets.size()), int64_t(sequences.counts.size()) + 1);
  require(sequences.seen_offsets[0] == 0 && sequences.seen_offsets.back() == int64_t(sequences.seen.size()), "seen_offsets: out of range");
  int64_t first = 0;
  for (size_t s = 0; s < sequences.counts.size(); first += sequences.counts[s++]) {
    const int64_t begin = sequences.seen_offsets[s], size = sequences.seen_offsets[s + 1] - begin;
    const int64_t count = sequences.counts[s], start = sequences.starts[s];
    require(size >= 0, "seen_offsets: expected them to ascend");
    if (!size) continue;
    require(span_offsets(first) == span_offsets(first + count), "seen: expected a sequence without spans");
    require(count > 0 && count % kPageKeys == 0 && start % kPageKeys == 0, "seen: expected rows in whole pages");
    const int64_t blocks = count / kPageKeys, bytes = ((start + count) / kPageKeys + 7) / 8;
    require_equal("seen of a sequence", size, blocks * bytes);
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t own = start / kPageKeys + block;
      require(sequences.seen[size_t(begin + block * bytes + own / 8)] >> (own % 8) & 1, "seen: expected rows to see their own page");
    }
  }
}

// The same over spans of keys: `query` has variants, `spans` a begin, an end and a variant each. `slopes` may be empty.
// A sequence without spans sees what `seen` says of its pages from seen_offsets on, or all of them.
void attend_spans(KvPool& pool, int64_t layer, Variants query, InHeads key, InHeads value, Integers counts, Integers starts,
                  Integers page_offsets, Integers pages, Integers span_offsets, Triples spans, InVector slopes,
                  Integers seen_offsets, InBytes seen, Heads out) {
  const int64_t rows = int64_t(query.shape(1)), query_heads = int64_t(query.shape(2));
  require(query.shape(0) > 0, "query: expected a variant");
  check_heads(pool, layer, query_heads, int64_t(query.shape(3)), key, value, out, rows);
  Sequences sequences = sequences_of(pool, rows, counts, starts, page_offsets, pages, true);
  require_equal("span_offsets", int64_t(span_offsets.shape(0)), rows + 1);
  require(slopes.shape(0) == 0 || int64_t(slopes.shape(0)) == query_heads, "slopes: expected one for each query head");
  sequences.variants = int64_t(query.shape(0));
  int64_t first = 0;
  for (size_t s = 0; s < sequences.counts.size(); first += sequences.counts[s++]) check_spans(sequences, s, first, span_offsets, spans);
  sequences.span_offsets.assign(span_offsets.data(), span_offsets.data() + rows + 1);
  for (size_t i = 0; i < spans.shape(0); i++) sequences.spans.push_back({spans(i, 0), spans(i, 1), spans(i, 2)});
  sequences.slopes.assign(slopes.data(), slopes.data() + slopes.shape(0));
  sequences.seen.assign(seen.data(), seen.data() + seen.shape(0));
  sequences.seen_offsets.assign(seen_offsets.data(), seen_offsets.data() + seen_offsets.shape(0));
  check_seen(sequences, span_offsets);
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  attend_rows(pool.layout(), sequences, layer, query_heads, query.data(), key.data(), value.data(), out.data());
}

}  // namespace

Sequences sequences_of(const KvPool& pool, int64_t rows, Integers counts, Integers starts, Integers page_offsets, Integers pages, bool some_dropped) {
  Sequences made;
  const int64_t sequences = int64_t(counts.shape(0));
  require_equal("starts", int64_t(starts.shape(0)), sequences);
  require_equal("page_offsets", int64_t(page_offsets.shape(0)), sequences + 1);
  for (size_t i = 0; i < pages.shape(0); i++) made.pages.push_back(some_dropped && pages(i) == kDropped ? nullptr : pool.page(pages(i)));
  int64_t first = 0;
  for (int64_t s = 0; s < sequences; s++) {
    const int64_t count = counts(s), start = starts(s), begin = page_offsets(s), end = page_offsets(s + 1);
    require(count >= 0 && count <= rows - first && start >= 0 && start <= int64_t(1) << 40, "counts and starts: out of range");
    require(begin >= 0 && begin <= end && end <= int64_t(made.pages.size()), "page_offsets: out of range");
    require((end - begin) * kPageKeys >= start + count, "pages: fewer than the positions need");
    made.counts.push_back(count);
    made.starts.push_back(start);
    made.offsets.push_back(begin);
    first += count;
  }
  require_equal("counts, summed up", first, rows);
  return made;
}

void bind_attention(nb::module_& module) {
  nb::class_<KvPool>(module, "KvPool")
      .def("__init__", [](KvPool* self, int64_t layers, int64_t heads, int64_t head_dim, const std::string& kind, int64_t pages) {
        require(layers > 0 && layers <= 4096 && heads > 0 && heads <= 4096, "layers and heads: expected from 1 to 4096");
        require(head_dim > 0 && head_dim <= 4096 && head_dim % 16 == 0, "head_dim: expected a multiple of 16");
        require(pages > 0, "pages: expected at least 1");
        new (self) KvPool(layers, heads, head_dim, kind_named(kind), pages);
      }, nb::arg("layers"), nb::arg("heads"), nb::arg("head_dim"), nb::arg("kind"), nb::arg("pages"))
      .def("clear", &KvPool::clear, nb::arg("page"))
      .def("copy", &KvPool::copy, nb::arg("source"), nb::arg("target"))
      .def("view", [](nb::handle self, int64_t page) {
        KvPool& pool = nb::cast<KvPool&>(self);
        return PageBytes(pool.page(page), {size_t(pool.page_bytes())}, self);
      }, nb::arg("page"))
      .def_prop_ro("pages", &KvPool::pages)
      .def_prop_ro("layers", &KvPool::layers)
      .def_prop_ro("page_bytes", &KvPool::page_bytes);
  module.def("rotate_heads", &rotate_heads, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"));
  module.def("attend", &attend, nb::arg("pool"), nb::arg("layer"), nb::arg("query"), nb::arg("key"), nb::arg("value"),
             nb::arg("counts"), nb::arg("starts"), nb::arg("page_offsets"), nb::arg("pages"), nb::arg("out"));
  module.def("attend_spans", &attend_spans, nb::arg("pool"), nb::arg("layer"), nb::arg("query"), nb::arg("key"), nb::arg("value"),
             nb::arg("counts"), nb::arg("starts"), nb::arg("page_offsets"), nb::arg("pages"), nb::arg("span_offsets"),
             nb::arg("spans"), nb::arg("slopes"), nb::arg("seen_offsets"), nb::arg("seen"), nb::arg("out"));
}

}  // namespace fourbee
