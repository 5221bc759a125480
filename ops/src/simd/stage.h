// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_STAGE_H_
#define LNBP_ONNX_STAGE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "inline.h"

namespace lnbp {

// The way of a tensor's bytes past the cache. A store past the cache has to
// fill a line, or it costs more than one into it. So what does not lie in whole
// lines is written here first, and handed on a line at a time; parts of lines
// are stored only where what follows is somewhere else.
//
// `Isa::StreamLine` hands on a line; `kMaxBytes` is the most that is written at
// a time.
template <typename Isa, std::size_t kMaxBytes>
class Stage {
 public:
  Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  LNBP_INLINE ~Stage() { StoreRest(); }

  // Where to write what belongs to `to`.
  LNBP_INLINE void* At(void* to) {
    if (to != to_ + rest_) {
      StoreRest();
      to_ = static_cast<unsigned char*>(to);
      rest_ = 0;
    }
    return bytes_ + kLine;
  }

  // So many bytes were written there.
  LNBP_INLINE void Add(std::size_t bytes) {
    const unsigned char* from = bytes_ + kLine - rest_;
    rest_ += bytes;
    const std::size_t part =
        (kLine - reinterpret_cast<std::uintptr_t>(to_) % kLine) % kLine;
    if (part <= rest_) {
      if (part != 0) std::memcpy(to_, from, part);
      from += part;
      to_ += part;
      rest_ -= part;
    }
    for (; rest_ >= kLine; rest_ -= kLine) {
      Isa::StreamLine(to_, from);
      from += kLine;
      to_ += kLine;
    }
    // The rest, and what is before it.
    std::memmove(bytes_, from + rest_ - kLine, kLine);
  }

 private:
  static constexpr std::size_t kLine = 64;

  LNBP_INLINE void StoreRest() {
    if (rest_ != 0) std::memcpy(to_, bytes_ + kLine - rest_, rest_);
  }

  // What is written begins after the first line; what is left of it, less than
  // a line, waits at the end of that. It belongs to to_.
  alignas(kLine) unsigned char bytes_[kLine + kMaxBytes + kLine];
  unsigned char* to_ = nullptr;
  std::size_t rest_ = 0;
};

}  // namespace lnbp

#endif  // LNBP_ONNX_STAGE_H_
