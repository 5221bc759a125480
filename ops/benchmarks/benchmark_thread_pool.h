// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_BENCHMARKS_BENCHMARK_THREAD_POOL_H_
#define LNBP_ONNX_BENCHMARKS_BENCHMARK_THREAD_POOL_H_

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "thread_pool.h"

namespace lnbp::benchmarks {

// Threads that wait by spinning, as a runtime's do between operators.
class BenchmarkThreadPool final : public ThreadPool {
 public:
  explicit BenchmarkThreadPool(std::size_t num_threads) {
    for (std::size_t i = 1; i < num_threads; ++i) {
      threads_.emplace_back([this] { Serve(); });
    }
  }

  ~BenchmarkThreadPool() {
    is_over_ = true;
    ++generation_;
    for (std::thread& thread : threads_) thread.join();
  }

  bool Run(void (*function)(void*, std::size_t), void* data,
           std::size_t count) noexcept override {
    function_ = function;
    data_ = data;
    count_ = count;
    next_ = 0;
    num_busy_ = threads_.size();
    ++generation_;
    Work();
    while (num_busy_ != 0) {
    }
    return true;
  }

 private:
  void Work() {
    for (std::size_t i = next_++; i < count_; i = next_++) function_(data_, i);
  }

  void Serve() {
    for (std::size_t seen = 0;;) {
      while (generation_ == seen) {
      }
      ++seen;
      if (is_over_) return;
      Work();
      --num_busy_;
    }
  }

  void (*function_)(void*, std::size_t) = nullptr;
  void* data_ = nullptr;
  std::size_t count_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> num_busy_{0};
  std::atomic<std::size_t> generation_{0};
  std::atomic<bool> is_over_{false};
  std::vector<std::thread> threads_;
};

}  // namespace lnbp::benchmarks

#endif  // LNBP_ONNX_BENCHMARKS_BENCHMARK_THREAD_POOL_H_
