// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_SCRATCH_H_
#define LNBP_ONNX_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>

namespace lnbp {

// Working memory of one call: asked for piece by piece, then allocated at once;
// on the stack where it is small, since a small call costs less than malloc.
class Scratch {
 public:
  // `count` elements, which are there after Allocate.
  template <typename T>
  class Piece {
   public:
    Piece() = default;

    T* get() const {
      return static_cast<T*>(static_cast<void*>(scratch_->start_ + offset_));
    }

   private:
    friend class Scratch;
    Piece(const Scratch* scratch, std::size_t offset)
        : scratch_(scratch), offset_(offset) {}

    const Scratch* scratch_ = nullptr;
    std::size_t offset_ = 0;
  };

  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(heap_); }

  // It begins at a line, or so many bytes past one.
  template <typename T>
  Piece<T> Add(std::size_t count, std::size_t times = 1,
               std::size_t past_line = 0) {
    const Piece<T> piece(this, size_ + past_line);
    constexpr std::size_t kMost =
        std::numeric_limits<std::size_t>::max() / 2 / sizeof(T);
    if (count != 0 && times > kMost / count) {
      too_large_ = true;
      return piece;
    }
    const std::size_t bytes = past_line + count * times * sizeof(T);
    size_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    too_large_ =
        too_large_ || size_ > std::numeric_limits<std::size_t>::max() / 2;
    return piece;
  }

  // After the last Add, and before any piece is used. False: out of memory.
  bool Allocate() {
    if (too_large_) return false;
    void* start = inline_;
    if (size_ > kInlineSize) {
      heap_ = ::operator new(size_ + kAlignment, std::nothrow);
      start = heap_;
    }
    if (start == nullptr) return false;
    const auto address = reinterpret_cast<std::uintptr_t>(start);
    start_ = static_cast<unsigned char*>(start) +
             (kAlignment - address % kAlignment) % kAlignment;
    return true;
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kInlineSize = std::size_t{8} * 1024;

  std::size_t size_ = 0;
  bool too_large_ = false;
  void* heap_ = nullptr;
  unsigned char* start_ = nullptr;
  unsigned char inline_[kInlineSize + kAlignment];
};

}  // namespace lnbp

#endif  // LNBP_ONNX_SCRATCH_H_
