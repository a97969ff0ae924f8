// The Python module advfeat._C. Importing it registers the operators; pybind11 holds build_config() alone, which says
// how the library was built. The facts come as string macros from build_support/torch_build.py.

// The pybind11 that torch 2.10 to 2.12 bring along refuses a stable ABI target. Nothing of torch's is used here.
constexpr unsigned long long kStableAbiTarget = TORCH_TARGET_VERSION;
#undef TORCH_TARGET_VERSION

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "core/rows.h"

namespace {

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) {
    if (word.back() == ',') word.pop_back();
    result.push_back(word);
  }
  return result;
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::string stable_abi_target() {
  return std::to_string(kStableAbiTarget >> 56) + "." + std::to_string((kStableAbiTarget >> 48) & 0xff);
}

pybind11::dict build_config() {
  const std::string cuda_version = ADVFEAT_CUDA_VERSION;
  pybind11::dict config;
  config["torch"] = ADVFEAT_TORCH_VERSION;
  config["stable_abi"] = stable_abi_target();
  config["compiler"] = compiler();
  config["cxx_standard"] = static_cast<long>(__cplusplus);
#if defined(_GLIBCXX_USE_CXX11_ABI)
  config["cxx11_abi"] = static_cast<bool>(_GLIBCXX_USE_CXX11_ABI);
#else
  config["cxx11_abi"] = true;  // libc++ has one
#endif
  config["python_abi"] = "cp" + std::to_string(PY_MAJOR_VERSION) + std::to_string(PY_MINOR_VERSION);
  config["build_type"] = ADVFEAT_BUILD_TYPE;
  config["simd_levels"] = words(advfeat::cpu::simd_levels());
  config["simd_level"] = advfeat::cpu::simd_level();
  config["cuda"] = !cuda_version.empty();
  config["cuda_version"] = cuda_version;
  config["cuda_architectures"] = words(ADVFEAT_CUDA_ARCHITECTURES);
  config["cuda_reason"] = ADVFEAT_CUDA_REASON;
  return config;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The operators of advfeat.ops, registered with torch on import.";
  m.def("build_config", &build_config, "How this library was built, and the SIMD level chosen on this processor.");
}
