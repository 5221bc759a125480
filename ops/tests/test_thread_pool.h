// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_TESTS_TEST_THREAD_POOL_H_
#define LNBP_ONNX_TESTS_TEST_THREAD_POOL_H_

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "thread_pool.h"

namespace lnbp::test {

// Threads that take the next index until there is none. With several threads
// the indices are taken from the last to the first, so that no order is relied
// on.
class TestThreadPool final : public ThreadPool {
 public:
  explicit TestThreadPool(std::size_t num_threads)
      : num_threads_(num_threads) {}

  bool Run(void (*function)(void*, std::size_t), void* data,
           std::size_t count) noexcept override {
    ++num_runs_;
    if (num_threads_ == 1) {
      for (std::size_t i = 0; i < count; ++i) function(data, i);
      return true;
    }
    std::atomic<std::size_t> next{0};
    const auto work = [&next, function, data, count] {
      for (std::size_t i = next++; i < count; i = next++) {
        function(data, count - 1 - i);
      }
    };
    std::vector<std::thread> threads;
    for (std::size_t i = 1; i < num_threads_; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    return true;
  }

  std::size_t num_runs() const { return num_runs_; }

 private:
  std::size_t num_threads_;
  std::size_t num_runs_ = 0;
};

}  // namespace lnbp::test

#endif  // LNBP_ONNX_TESTS_TEST_THREAD_POOL_H_
