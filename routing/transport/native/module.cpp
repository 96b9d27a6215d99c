// Python's view of the two ports. Addresses come in as integers: importing a tensor through its protocol costs more than
// the copy it is for; shm.py checks dtype, contiguity and size before it asks for an address.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "attention_port.h"
#include "expert_port.h"

namespace nb = nanobind;
using nb::literals::operator""_a;
using step35::AttentionPort;
using step35::ExpertPort;

namespace {

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

// Below this a copy is shorter than what giving the interpreter lock away and getting it back can cost.
constexpr size_t kUnlockBytes = 1 << 20;

template <class T>
const T* pointer(uintptr_t address) {
    return reinterpret_cast<const T*>(address);
}

step35::Limits make_limits(const nb::bytes& largest_header, uint32_t item_bytes, uint32_t max_in_flight,
                           uint64_t frame_bytes) {
    step35::Limits limits{};
    if (largest_header.size() != sizeof(limits.largest)) throw std::invalid_argument("the header has a wrong size");
    if (max_in_flight < 1 || max_in_flight + step35::Slots::kSpare > step35::Slots::kMaxSlots)
        throw std::invalid_argument("max_in_flight must lie between 1 and 62");
    std::memcpy(&limits.largest, largest_header.c_str(), sizeof(limits.largest));
    limits.item_bytes = item_bytes;
    limits.max_in_flight = max_in_flight;
    limits.frame_bytes = std::max<uint64_t>(frame_bytes, 4096);  // room for a refusal
    return limits;
}

// A frame as an array that keeps the link's memory mapped for as long as anybody looks at it.
template <class Link>
Bytes view_frame(std::shared_ptr<Link> link, std::byte* frame, uint64_t frame_bytes) {
    auto* owned = new std::shared_ptr<Link>(std::move(link));
    const nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::shared_ptr<Link>*>(p); });
    return Bytes(reinterpret_cast<uint8_t*>(frame), {frame_bytes}, owner);
}

template <class Link>
void check_slot(const Link& link, uint32_t slot) {
    if (slot >= link->slots.count()) throw std::invalid_argument("no such slot");
}

Bytes reply_frame(AttentionPort& port, int64_t link_id, uint32_t slot) {
    auto link = port.link_of_open_exchange(link_id);
    check_slot(link, slot);
    return view_frame(link, link->slots.reply(slot), port.limits().frame_bytes);
}

Bytes request_frame(ExpertPort& port, int64_t link_id, uint32_t slot) {
    auto link = port.find_link(link_id);
    if (!link) throw std::invalid_argument("no such link");
    check_slot(link, slot);
    return view_frame(link, link->slots.request(slot), port.limits().frame_bytes);
}

std::vector<int32_t> send(AttentionPort& port, const step35::DispatchIds& ids,
                          const std::tuple<uintptr_t, int64_t, uintptr_t>& rows,
                          const std::tuple<uintptr_t, uintptr_t, uintptr_t>& pairs,
                          const std::vector<int32_t>& row_splits, const std::vector<int32_t>& pair_splits) {
    const auto [hidden, num_tokens, row_token] = rows;
    const auto [pair_row, pair_slot, pair_weight] = pairs;
    const step35::DispatchArrays arrays{pointer<std::byte>(hidden),  num_tokens,
                                        pointer<int64_t>(row_token), pointer<int32_t>(pair_row),
                                        pointer<int32_t>(pair_slot), pointer<float>(pair_weight)};
    std::optional<nb::gil_scoped_release> unlocked;
    if (num_tokens * port.limits().row_bytes() > kUnlockBytes) unlocked.emplace();
    return port.send(ids, arrays, row_splits, pair_splits);
}

void reply(ExpertPort& port, int64_t link_id, int64_t sequence, uintptr_t outputs, int64_t num_vectors) {
    std::optional<nb::gil_scoped_release> unlocked;
    if (num_vectors * port.limits().row_bytes() > kUnlockBytes) unlocked.emplace();
    port.reply(link_id, sequence, pointer<std::byte>(outputs), num_vectors);
}

}  // namespace

NB_MODULE(_shm, module) {
    module.attr("OUTPUTS") = static_cast<int>(step35::kOutputs);
    module.attr("REFUSAL") = static_cast<int>(step35::kRefusal);

    nb::class_<step35::Limits>(module, "Limits").def(nb::new_(&make_limits), nb::kw_only(), "largest_header"_a, "item_bytes"_a,
                                                     "max_in_flight"_a, "frame_bytes"_a);

    nb::class_<AttentionPort>(module, "AttentionPort")
        .def(nb::init<std::string, const step35::Limits&>(), "name"_a, "limits"_a)
        .def("reconcile", &AttentionPort::reconcile, "shards"_a, Unlocked())
        .def("connected", &AttentionPort::connected, Unlocked())
        .def("wait_connected", &AttentionPort::wait_connected, "ep_ranks"_a, "timeout_s"_a, Unlocked())
        .def("status", &AttentionPort::status, "ep_rank"_a, Unlocked())
        .def("send", &send, "ids"_a, "rows"_a, "pairs"_a, "row_splits"_a, "pair_splits"_a)
        .def("receive", &AttentionPort::receive, "sequence"_a, "timeout_s"_a, Unlocked())
        .def("owing", &AttentionPort::owing, "sequence"_a, Unlocked())
        .def("drop", &AttentionPort::drop, "sequence"_a)
        .def("reply_frame", &reply_frame, "link"_a, "slot"_a)
        .def("link_ids", &AttentionPort::link_ids, Unlocked())
        .def_prop_ro("is_closed", &AttentionPort::is_closed)
        .def("close", &AttentionPort::close, Unlocked());

    nb::class_<ExpertPort>(module, "ExpertPort")
        .def(nb::init<const std::string&, int32_t, const step35::Limits&>(), "name"_a, "ep_rank"_a, "limits"_a)
        .def("reconcile", &ExpertPort::reconcile, "bundles"_a, Unlocked())
        .def("receive", &ExpertPort::receive, "timeout_s"_a, Unlocked())
        .def("reply", &reply, "link"_a, "sequence"_a, "outputs"_a, "num_vectors"_a)
        .def("refuse", &ExpertPort::refuse, "link"_a, "sequence"_a, "reason"_a)
        .def("request_frame", &request_frame, "link"_a, "slot"_a)
        .def("link_ids", &ExpertPort::link_ids, Unlocked())
        .def_prop_ro("is_closed", &ExpertPort::is_closed)
        .def("close", &ExpertPort::close, Unlocked());
}
