// Part of kernels.cpp, which includes it inside its namespaces: rows that see spans of keys (windows, chunks, lists of
// pages) instead of all keys before them. A row's sums take its spans in order, page by page, whatever other rows see.

// One span's keys within a page, seen by one query head of one row.
struct Visit {
  int64_t row;    // of the task's partial sums
  int64_t query;  // of the task's queries, of all variants
  SpanView view;
};

// Visits of one page side by side: of each row at most one.
struct Round {
  int64_t page;
  size_t begin, end;
};

struct Visits {
  std::vector<Visit> all;
  std::vector<Round> rounds;
};

Visits visits_of(const AttentionRows& a, int64_t first_head, int64_t group, int64_t row_begin, int64_t row_end,
                 int64_t page_begin, int64_t page_end) {
  Visits out;
  const int64_t count = (row_end - row_begin) * group;
  out.all.reserve(count * (page_end - page_begin));
  for (int64_t page = page_begin; page < page_end; page++) {
    const int64_t first_key = page * kPageKeys, end_key = first_key + kPageKeys;
    bool more = true;
    for (int64_t turn = 0; more; turn++) {  // a row may see several spans of a page
      const size_t begin = out.all.size();
      more = false;
      for (int64_t row = row_begin; row < row_end; row++) {
        const Span *stop = a.spans + a.span_offsets[row + 1], *span = std::upper_bound(
            a.spans + a.span_offsets[row], stop, first_key, [](int64_t key, const Span& one) { return key < one.end; });
        if (stop - span <= turn || span[turn].begin >= end_key) continue;
        span += turn;
        more |= stop - span > 1 && span[1].begin < end_key;
        for (int64_t i = 0; i < group; i++) {
          const int64_t at = (row - row_begin) * group + i;
          out.all.push_back({at, span->variant * count + at,
                             {span->begin, span->end, a.start + row, a.slopes ? a.slopes[first_head + i] : 0.0f}});
        }
      }
      if (out.all.size() > begin) out.rounds.push_back({page, begin, out.all.size()});
    }
  }
  return out;
}

// The rows of one round, taken out of the task's: queries with their views, and sums.
void take_round(const Visits& visits, const Round& round, const Queries<SpanView>& queries, const Partial* partials,
                Queries<SpanView>& taken, std::vector<Partial>& sums) {
  const size_t count = round.end - round.begin;
  const bool rounded = !queries.rounded.rows.empty();
  sums.resize(count);
  rounded ? taken.rounded.rows.resize(count) : taken.exact.resize(count);
  for (size_t i = 0; i < count; i++) {
    const Visit& visit = visits.all[round.begin + i];
    sums[i] = partials[visit.row];
    if (rounded) {
      taken.rounded.rows[i] = queries.rounded.rows[visit.query];
      taken.rounded.rows[i].view = visit.view;
    } else {
      taken.exact[i] = {queries.exact[visit.query].query, visit.view};
    }
  }
  taken.count = int64_t(count);
}

void sum_split(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t split, const Queries<SpanView>& queries,
               Partial* partials) {
  for (int64_t r = 0; r < queries.count; r++) clear(partials[r], layout.head_dim);
  const int64_t group = a.query_heads / layout.heads, begin = split * kSplitPages;
  const Visits visits = visits_of(a, head * group, group, queries.row_begin, queries.row_end, begin, begin + kSplitPages);
  Queries<SpanView> taken;
  std::vector<Partial> sums;
  for (size_t r = 0; r < visits.rounds.size(); r++) {
    const Round& round = visits.rounds[r];
    const int64_t next = r + 1 < visits.rounds.size() ? visits.rounds[r + 1].page : round.page;
    take_round(visits, round, queries, partials, taken, sums);
    add_keys(layout, page_of(layout, a, head, round.page), page_of(layout, a, head, next), round.page * kPageKeys, taken,
             a.scale, sums.data());
    for (size_t i = 0; i < sums.size(); i++) partials[visits.all[round.begin + i].row] = sums[i];
  }
}

// Whether any of the rows sees a key of the split.
bool sees_split(const AttentionRows& a, int64_t split, int64_t row_begin, int64_t row_end) {
  const int64_t begin = split * kSplitKeys, end = begin + kSplitKeys;
  for (int64_t row = row_begin; row < row_end; row++)
    for (int64_t i = a.span_offsets[row]; i < a.span_offsets[row + 1]; i++)
      if (a.spans[i].begin < end && begin < a.spans[i].end) return true;
  return false;
}
