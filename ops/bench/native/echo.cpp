// An expert rank that answers every row with itself, in C++: what is left of an exchange is the transport.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <set>
#include <stdexcept>

#include "expert_port.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

step35::Limits make_limits(const nb::bytes& largest_header, uint32_t item_bytes, uint32_t max_in_flight,
                           uint64_t frame_bytes) {
    step35::Limits limits{};
    if (largest_header.size() != sizeof(limits.largest)) throw std::invalid_argument("a header has 64 bytes");
    std::memcpy(&limits.largest, largest_header.c_str(), sizeof(limits.largest));
    limits.item_bytes = item_bytes;
    limits.max_in_flight = max_in_flight;
    limits.frame_bytes = frame_bytes;
    return limits;
}

class EchoPort {
  public:
    EchoPort(const std::string& name, int32_t ep_rank, const nb::bytes& largest_header, uint32_t item_bytes,
             uint32_t max_in_flight, uint64_t frame_bytes)
        : port_(name, ep_rank, make_limits(largest_header, item_bytes, max_in_flight, frame_bytes)) {}

    void admit(const std::string& bundle) { port_.reconcile({bundle}); }

    // Answers what comes until nothing has come for `idle_s`. Returns the number of answers.
    int64_t serve(double idle_s) {
        const nb::gil_scoped_release unlocked;
        int64_t answered = 0;
        for (auto requests = port_.receive(idle_s); !requests.empty(); requests = port_.receive(idle_s)) {
            for (const step35::Request& request : requests) answer(request);
            answered += static_cast<int64_t>(requests.size());
        }
        return answered;
    }

    void close() {
        const nb::gil_scoped_release unlocked;
        port_.close();
    }

  private:
    void answer(const step35::Request& request) {
        const auto& [link_id, slot, num_rows, num_pairs, per_expert, map_epoch, sequence, layer, microbatch] = request;
        const auto link = port_.find_link(link_id);
        if (link) port_.reply(link_id, sequence, link->slots->request(slot) + sizeof(step35::FrameHeader), num_rows);
    }

    step35::ExpertPort port_;
};

}  // namespace

NB_MODULE(_echo, module) {
    nb::class_<EchoPort>(module, "EchoPort")
        .def(nb::init<const std::string&, int32_t, const nb::bytes&, uint32_t, uint32_t, uint64_t>(), "name"_a,
             "ep_rank"_a, "largest_header"_a, "item_bytes"_a, "max_in_flight"_a, "frame_bytes"_a)
        .def("admit", &EchoPort::admit, "bundle"_a)
        .def("serve", &EchoPort::serve, "idle_s"_a)
        .def("close", &EchoPort::close);
}
