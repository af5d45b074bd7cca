#include "pool.h"

#include <chrono>

namespace fourbee {
namespace {

// A worker looks for the next job this long before it sleeps: layers follow each other closely.
constexpr auto kSpin = std::chrono::microseconds(500);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Pool::Pool(int threads) {
  for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
  {
    std::lock_guard lock(sleep_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(int64_t count, const std::function<void(int64_t)>& task) {
  if (count <= 0) return;
  std::lock_guard one_job(one_job_);
  if (count == 1 || workers_.empty()) {
    for (int64_t i = 0; i < count; i++) task(i);
    return;
  }
  const uint64_t job = (ticket_.load() >> 32) + 1;
  task_ = &task, count_ = count, done_ = 0;
  {
    // Under the lock, so that no worker falls asleep between its last look and this.
    std::lock_guard lock(sleep_);
    ticket_ = job << 32;
  }
  if (asleep_.load()) wake_.notify_all();
  take(job);
  while (done_.load() < count) pause();
  ticket_ = job << 32 | kClosed;
}

void Pool::take(uint64_t job) {
  for (;;) {
    uint64_t ticket = ticket_.load();
    const uint64_t index = ticket & kClosed;
    if (ticket >> 32 != job || index == kClosed || int64_t(index) >= count_.load()) return;
    const auto* task = task_.load();
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
    (*task)(int64_t(index));
    done_.fetch_add(1);
  }
}

void Pool::work() {
  uint64_t last = 0;
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (ticket_.load() >> 32 == last && !stop_) {
      if (std::chrono::steady_clock::now() < until) {
        pause();
        continue;
      }
      std::unique_lock lock(sleep_);
      asleep_++;
      wake_.wait(lock, [&] { return ticket_.load() >> 32 != last || stop_; });
      asleep_--;
    }
    if (stop_) return;
    last = ticket_.load() >> 32;
    take(last);
  }
}

}  // namespace fourbee
