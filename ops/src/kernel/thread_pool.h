// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_THREAD_POOL_H_
#define LNBP_ONNX_THREAD_POOL_H_

#include <cstddef>

namespace lnbp {

// What the arithmetic needs of somebody's threads.
class ThreadPool {
 public:
  // Calls function(data, i) once for every i in [0, count), in any order, from
  // any threads, and returns when all have returned. `function` does not throw.
  // False: not every call was made.
  virtual bool Run(void (*function)(void* data, std::size_t i), void* data,
                   std::size_t count) noexcept = 0;

 protected:
  ~ThreadPool() = default;
};

// As Run, with a callable as `body`; a single call is made right here.
template <typename Body>
bool ParallelFor(ThreadPool& pool, std::size_t count, Body body) noexcept {
  static_assert(noexcept(body(std::size_t{0})),
                "a throw on a thread of a pool ends the process");
  if (count == 0) return true;
  if (count == 1) {
    body(0);
    return true;
  }
  return pool.Run(
      [](void* data, std::size_t i) { (*static_cast<Body*>(data))(i); }, &body,
      count);
}

}  // namespace lnbp

#endif  // LNBP_ONNX_THREAD_POOL_H_
