// The one thread pool of the process: the caller is worker 0, the others wait for its jobs.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fourbee {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  // Runs task(0) .. task(count - 1), each once, in any order on any thread; returns when all are
  // done. One job at a time: whoever else calls waits. Tasks must not throw.
  void run(int64_t count, const std::function<void(int64_t)>& task);

 private:
  void work();
  void take(uint64_t job);

  // The upper half of the ticket counts jobs, the lower half the tasks taken of this one; a closed
  // ticket gives no more. A late worker so never takes a task of a job that it did not read.
  static constexpr uint64_t kClosed = 0xffffffffu;
  std::atomic<uint64_t> ticket_{kClosed};
  std::atomic<const std::function<void(int64_t)>*> task_{nullptr};
  std::atomic<int64_t> count_{0}, done_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};
  std::mutex one_job_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace fourbee
