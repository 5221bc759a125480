// SPDX-License-Identifier: Apache-2.0
//
// A runtime unloads the library with the last session that uses it, and loads
// it again for the next one. What it was given must stay, since nothing says
// when nobody uses it any more; so each time would leave a domain behind. The
// library stays loaded instead, and uses what it made the first time.

#ifndef LNBP_ONNX_STAY_LOADED_H_
#define LNBP_ONNX_STAY_LOADED_H_

namespace lnbp {

// Keeps the library in the process; to be called any number of times. Where
// libraries are ELF files the linker has seen to it (CMakeLists.txt).
void StayLoaded();

}  // namespace lnbp

#endif  // LNBP_ONNX_STAY_LOADED_H_
