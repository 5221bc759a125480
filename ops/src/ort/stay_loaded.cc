// SPDX-License-Identifier: Apache-2.0

#include "stay_loaded.h"

#if defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace lnbp {
namespace {

#if defined(_WIN32)
bool Pin() {
  HMODULE module = nullptr;
  return GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS |
                                GET_MODULE_HANDLE_EX_FLAG_PIN,
                            reinterpret_cast<LPCWSTR>(&StayLoaded),
                            &module) != 0;
}
#elif defined(__APPLE__)
// A handle that nobody closes.
bool Pin() {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(&StayLoaded), &info) != 0 &&
         dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD) != nullptr;
}
#else
bool Pin() { return true; }
#endif

}  // namespace

void StayLoaded() {
  static const bool is_pinned = Pin();
  static_cast<void>(is_pinned);
}

}  // namespace lnbp
