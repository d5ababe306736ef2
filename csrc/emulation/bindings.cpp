// soft_mask._emulation, in development builds only: the emulated GPU's order and counters, and the pieces that kernels are
// made of, for the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "../common/row_state.h"
#include "../cuda/logit_state.h"
#include "../cuda/warp_list.h"
#include "faulty.h"
#include "machine.h"

namespace py = pybind11;
using soft_mask::emulation::Machine;
using soft_mask::emulation::Region;

namespace {

py::dict traffic() {
  py::dict all;
  for (const auto& [name, t] : Machine::get().memory().traffic()) {
    py::dict one;
    one["read_bytes"] = t.read_bytes;
    one["read_sectors"] = t.read_sectors;
    one["written_bytes"] = t.written_bytes;
    one["written_sectors"] = t.written_sectors;
    one["atomics"] = t.atomics;
    all[py::str(name)] = one;
  }
  return all;
}

std::vector<std::string> faulty_kernels() {
  std::vector<std::string> names;
  for (const auto& one : soft_mask::cuda::faulty::kAll) names.emplace_back(one.name);
  return names;
}

void run_faulty(const std::string& name) {
  namespace faulty = soft_mask::cuda::faulty;
  for (const auto& one : faulty::kAll) {
    if (one.name != name) continue;
    alignas(16) float in[faulty::kThreads] = {}, out[faulty::kThreads] = {};
    alignas(16) int32_t ticket[4] = {};
    auto& memory = Machine::get().memory();
    memory.add(Region{"in", reinterpret_cast<const char*>(in), sizeof in, false, false, {}});
    memory.add(Region{"out", reinterpret_cast<const char*>(out), sizeof out, true, false, {}});
    memory.add(Region{"ticket", reinterpret_cast<const char*>(ticket), sizeof ticket[0], true, true, {}});
    struct Clear {
      ~Clear() { Machine::get().memory().clear(); }
    } clear;
    soft_mask::cuda::launch(one.name, one.kernel, faulty::kBlocks, faulty::kThreads, faulty::Params{in, out, ticket}, {});
    return;
  }
  throw std::invalid_argument("no such kernel: " + name);
}

// The feedback's numbers of one row, its logits cut into parts that are merged in the order given.
template <class State, class Take, class Merge>
State merged(const std::vector<std::vector<double>>& parts, const Take& take, const Merge& merge) {
  State all;
  for (const auto& part : parts) {
    State one;
    for (const double z : part) take(one, z);
    merge(all, one);
  }
  return all;
}

std::tuple<double, double> merge_cpu_states(const std::vector<std::vector<double>>& parts) {
  using State = soft_mask::RowState<double>;
  const auto all = merged<State>(
      parts,
      [](State& state, double z) { state.merge(std::isinf(z) ? State{} : State{z, 1.0, 0.0}); },
      [](State& state, const State& other) { state.merge(other); });
  return {all.logsumexp(), all.neg_entropy()};
}

std::tuple<double, double> merge_cuda_states(const std::vector<std::vector<double>>& parts, double inverse_temperature) {
  using State = soft_mask::cuda::LogitState;
  const auto bits = float(inverse_temperature / soft_mask::cuda::kLn2);
  const auto all = merged<State>(
      parts,
      [&](State& state, double z) {
        bool bad = false;
        const float one[1] = {float(z)};
        state.take(one, bits, bad);
        if (bad) state.sum = NAN;
      },
      [&](State& state, const State& other) { state.merge(other, bits); });
  return {all.logsumexp(inverse_temperature), all.neg_entropy()};
}

}  // namespace

PYBIND11_MODULE(_emulation, m) {
  m.doc() = "The emulated GPU of SOFT_MASK_BACKEND=emulated-cuda, looked into by the tests.";
  m.def("set_seed", [](uint64_t seed) { Machine::get().set_seed(seed); }, py::arg("seed"),
        "The order of blocks, warps and lanes from the next launch on; 0: as they are numbered, one block at a time.");
  m.def("set_numbers_on_host", [](bool yes) { Machine::get().set_numbers_on_host(yes); }, py::arg("yes"),
        "Whether gates and temperatures are handed over with the launch instead of being read from memory.");
  m.def("traffic", &traffic, "Bytes and 32-byte sectors moved since the last reset, by the name of the tensor.");
  m.def("reset_traffic", [] { Machine::get().memory().traffic().clear(); });
  m.def("faulty_kernels", &faulty_kernels, "Kernels that are each wrong in one way; the first is right.");
  m.def("run_faulty", &run_faulty, py::arg("name"));
  m.def("merge_cpu_states", &merge_cpu_states, py::arg("parts"), "logsumexp and neg_entropy of a row in parts.");
  m.def("merge_cuda_states", &merge_cuda_states, py::arg("parts"), py::arg("inverse_temperature") = 1.0);
  m.def("ordered", &soft_mask::cuda::ordered, py::arg("x"));
  m.def("exp2_fast", &soft_mask::cuda::exp2_fast, py::arg("x"));
}
