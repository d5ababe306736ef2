// What this library was built as, told by the library itself, so that it cannot disagree with what is loaded.
// CMakeLists.txt writes build_config.h; soft_mask/_native.py merges the JSON into soft_mask.build_info().

#include <torch/csrc/stable/library.h>

#include <string>

#include "../cpu/kernels.h"
#include "build_config.h"

#if defined(SOFT_MASK_EMULATION)
#define SOFT_MASK_EMULATED "true"
#else
#define SOFT_MASK_EMULATED "false"
#endif

namespace {

std::string quoted(const char* text) {
  std::string out = "\"";
  for (; *text != '\0'; ++text) {
    if (*text == '"' || *text == '\\') out += '\\';
    out += *text;
  }
  return out + '"';
}

// The instruction set that runs on this machine.
const char* isa() {
#if defined(SOFT_MASK_EMULATION)
  return "emulated CUDA";
#else
  return soft_mask::kernels().name;
#endif
}

std::string build_info() {
  return std::string("{\"version\": ") + quoted(SOFT_MASK_VERSION)     //
      + ", \"torch_built\": " + quoted(SOFT_MASK_TORCH)                //
      + ", \"compiler\": " + quoted(SOFT_MASK_COMPILER)                //
      + ", \"build_type\": " + quoted(SOFT_MASK_BUILD_TYPE)            //
      + ", \"isa\": " + quoted(isa())                                  //
      + ", \"isas_built\": " + quoted(SOFT_MASK_ISAS)                  // names with a space between
      + ", \"cuda_archs\": " + quoted(SOFT_MASK_CUDA_ARCHS)           // likewise
      + ", \"emulation\": " SOFT_MASK_EMULATED ", \"why\": " + quoted(SOFT_MASK_WHY) + "}";
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
