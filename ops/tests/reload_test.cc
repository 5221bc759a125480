// SPDX-License-Identifier: Apache-2.0
//
// The library loaded and unloaded, as a runtime does for sessions of which none
// is alive while the next one is made.

#include <dlfcn.h>

#include <cstdint>

#include "check.h"
#include "fake_ort.h"

namespace lnbp::test {
namespace {

ort::Api api = MakeApi();

void TestReloading() {
  const ort::ApiBase base = {
      [](std::uint32_t) -> const ort::Api* { return &api; },
      [] { return "1.31.1"; }};
  for (int i = 0; i < 1000; ++i) {
    void* const library = dlopen(LNBP_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    CHECK_IN(library != nullptr, dlerror());
    if (library == nullptr) return;
    using Register =
        OrtStatus*(OrtSessionOptions * options, const ort::ApiBase* api_base);
    auto* const register_ops =
        reinterpret_cast<Register*>(dlsym(library, "RegisterCustomOps"));
    OrtSessionOptions options;
    CHECK(register_ops(&options, &base) == nullptr);
    CHECK(options.domains.size() == 1);
    CHECK(dlclose(library) == 0);
  }
  // More would be a leak: a domain can't be released, as a session may still
  // use it.
  CHECK(num_domains == 1);
}

}  // namespace
}  // namespace lnbp::test

int main() {
  lnbp::test::TestReloading();
  return lnbp::test::Result();
}
