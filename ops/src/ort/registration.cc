// SPDX-License-Identifier: Apache-2.0
//
// The functions that the library exports, and the overloads they register.

#include <array>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <mutex>
#include <string>
#include <vector>

#include "lnbp_onnx/custom_ops.h"
#include "ort_abi.h"
#include "ort_status.h"
#include "overload.h"
#include "spec.h"
#include "stay_loaded.h"

namespace lnbp {
namespace {

// P and U are each T or float.
constexpr std::size_t kNumOverloads = 1 + 4 * (std::size(kElementTypes) - 1);

class Overloads {
 public:
  explicit Overloads(std::uint32_t version) {
    std::size_t count = 0;
    const auto add = [&](ElementType type, ElementType parameter_type,
                         ElementType statistics_type) {
      overloads_[count] =
          MakeOverload(version, type, parameter_type, statistics_type);
      pointers_[count] = &overloads_[count];
      ++count;
    };
    constexpr ElementType kFloat = ElementType::kFloat;
    add(kFloat, kFloat, kFloat);
    for (const ElementType type : kElementTypes) {
      if (type == kFloat) continue;
      // T first: where P or U has no input, the runtime takes the overload
      // that was registered first.
      add(type, type, type);
      add(type, type, kFloat);
      add(type, kFloat, type);
      add(type, kFloat, kFloat);
    }
  }
  Overloads(const Overloads&) = delete;
  Overloads& operator=(const Overloads&) = delete;

  const auto& pointers() const { return pointers_; }

 private:
  std::array<Overload, kNumOverloads> overloads_;
  std::array<const ort::CustomOp*, kNumOverloads> pointers_;
};

const Overloads& OverloadsFor(std::uint32_t version) {
  if (version >= ort::kShapeReferenceVersion) {
    static const Overloads overloads(ort::kShapeReferenceVersion);
    return overloads;
  }
  if (version >= ort::kMayInplaceVersion) {
    static const Overloads overloads(ort::kMayInplaceVersion);
    return overloads;
  }
  static const Overloads overloads(ort::kApiVersion);
  return overloads;
}

// The interface version that came with a runtime: 17 for "1.17.3"; 0 if the
// text is of another kind.
std::uint32_t InterfaceVersion(const char* version_string) {
  if (std::strncmp(version_string, "1.", 2) != 0) return 0;
  const char* minor = version_string + 2;
  std::uint32_t version = 0;
  std::from_chars(minor, minor + std::strlen(minor), version);
  return version;
}

// One domain for all sessions of a runtime. Never released: sessions may
// outlive the static objects of this library, which stays loaded with it.
OrtCustomOpDomain* DomainFor(const ort::Api& api, std::uint32_t version) {
  struct Entry {
    const ort::Api* api;
    OrtCustomOpDomain* domain;
  };
  static std::mutex mutex;
  static auto* const entries = new std::vector<Entry>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Entry& entry : *entries) {
    if (entry.api == &api) return entry.domain;
  }
  StayLoaded();
  entries->reserve(entries->size() + 1);
  OrtCustomOpDomain* domain = nullptr;
  ThrowOnError(api.CreateCustomOpDomain(spec::kDomain, &domain));
  for (const ort::CustomOp* op : OverloadsFor(version).pointers()) {
    if (OrtStatus* status = api.CustomOpDomain_Add(domain, op)) {
      api.ReleaseCustomOpDomain(domain);
      throw StatusError{status};
    }
  }
  entries->push_back({&api, domain});
  return domain;
}

OrtStatus* Register(OrtSessionOptions* options, const ort::ApiBase& base) {
  const char* version_string = base.GetVersionString();
  const std::uint32_t version = InterfaceVersion(version_string);
  // A runtime that is too old prints a line of its own when it is asked for a
  // version that it lacks, so it is not asked.
  const bool is_too_old = version != 0 && version < ort::kApiVersion;
  const ort::Api* api = is_too_old ? nullptr : base.GetApi(ort::kApiVersion);
  if (api == nullptr) {
    const ort::Api& first_api = *base.GetApi(1);
    return CatchAll(first_api, [version_string] {
      throw std::runtime_error(std::string("lnbp: onnxruntime ") +
                               version_string + " is too old; 1." +
                               std::to_string(ort::kApiVersion) +
                               " or newer is needed (upgrade onnxruntime).");
    });
  }
  return CatchAll(*api, [=] {
    ThrowOnError(api->AddCustomOpDomain(options, DomainFor(*api, version)));
  });
}

}  // namespace
}  // namespace lnbp

OrtStatus* LNBP_CALL RegisterCustomOps(OrtSessionOptions* options,
                                       const OrtApiBase* api_base) {
  return lnbp::Register(options,
                        *reinterpret_cast<const lnbp::ort::ApiBase*>(api_base));
}

const OrtCustomOp* const* LNBP_CALL LnbpGetCustomOps(size_t* count) {
  // Those of the oldest version: here the runtime is not known.
  const auto& pointers = lnbp::OverloadsFor(lnbp::ort::kApiVersion).pointers();
  *count = pointers.size();
  return reinterpret_cast<const OrtCustomOp* const*>(pointers.data());
}
