// Python's view of the two ports: checks the tensors that come in, makes the records that go out.
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
#include <memory>
#include <numeric>
#include <stdexcept>

#include "attention_port.h"
#include "expert_port.h"
#include "tensors.h"

namespace nb = nanobind;
using nb::literals::operator""_a;
using step35::AttentionPort;
using step35::ExpertPort;

namespace {

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

// Below this a copy is shorter than what giving the interpreter lock away and getting it back can cost.
constexpr size_t kUnlockBytes = 1 << 20;

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
// A frame as an array that keeps the link's memory mapped for as long as anybody looks at it.
Bytes view_frame(std::shared_ptr<const step35::Slots> slots, std::byte* frame, uint64_t frame_bytes) {
    auto owned = std::make_unique<std::shared_ptr<const step35::Slots>>(std::move(slots));
    const nb::capsule owner(owned.get(),
                            [](void* p) noexcept { delete static_cast<std::shared_ptr<const step35::Slots>*>(p); });
    owned.release();
    return Bytes(reinterpret_cast<uint8_t*>(frame), {frame_bytes}, owner);
}

void check_slot(const step35::Slots& slots, uint32_t slot) {
    if (slot >= slots.count()) throw std::invalid_argument("no such slot");
}

Bytes reply_frame(AttentionPort& port, int64_t link_id, uint32_t slot) {
    const auto slots = port.link_of_open_exchange(link_id)->slots;
    check_slot(*slots, slot);
    return view_frame(slots, slots->reply(slot), port.limits().frame_bytes);
}

Bytes request_frame(ExpertPort& port, int64_t link_id, uint32_t slot) {
    const auto link = port.find_link(link_id);
    if (!link) throw std::invalid_argument("no such link");
    check_slot(*link->slots, slot);
    return view_frame(link->slots, link->slots->request(slot), port.limits().frame_bytes);
}

// What the limits mean for tensors. `sample` has the dtype and the width of the rows.
class RowFormat {
  public:
    RowFormat(const nb::capsule& api, nb::handle sample) : reader_(api), type_(reader_.type_of(sample)) {}

    bool is_contiguous(nb::handle tensor) const { return reader_.is_contiguous(tensor); }
    const std::byte* read_rows(nb::handle tensor, const char* name, const step35::Limits& limits,
                               int64_t* num_rows) const {
        return reader_.read(tensor, name, type_, limits.largest.hidden_size, num_rows);
    }
    // A vector of at least `length` numbers.
    template <class T>
    const T* read_vector(nb::handle tensor, const char* name, step35::TensorType type, int64_t length) const {
        int64_t given;
        const std::byte* data = reader_.read(tensor, name, type, step35::TensorReader::kVector, &given);
        if (given < length) throw std::invalid_argument(std::string(name) + " is shorter than its splits");
        return reinterpret_cast<const T*>(data);
    }

  private:
    step35::TensorReader reader_;
    step35::TensorType type_;
};

int64_t sum(const std::vector<int32_t>& splits) {
    return std::accumulate(splits.begin(), splits.end(), int64_t{0});
}

// arrays: hidden, row_token, pair_row, pair_slot, pair_weight.
std::vector<int32_t> send(AttentionPort& port, const RowFormat& format, const step35::DispatchIds& ids,
                          const nb::tuple& arrays, const std::vector<int32_t>& row_splits,
                          const std::vector<int32_t>& pair_splits) {
    const int64_t num_rows = sum(row_splits), num_pairs = sum(pair_splits);
    step35::DispatchArrays raw{};
    raw.hidden = format.read_rows(arrays[0], "hidden", port.limits(), &raw.num_tokens);
    raw.row_token = format.read_vector<int64_t>(arrays[1], "row_token", step35::kInt64, num_rows);
    raw.pair_row = format.read_vector<int32_t>(arrays[2], "pair_row", step35::kInt32, num_pairs);
    raw.pair_slot = format.read_vector<int32_t>(arrays[3], "pair_slot", step35::kInt32, num_pairs);
    raw.pair_weight = format.read_vector<float>(arrays[4], "pair_weight", step35::kFloat32, num_pairs);
    std::optional<nb::gil_scoped_release> unlocked;
    if (num_rows * port.limits().row_bytes() > kUnlockBytes) unlocked.emplace();
    return port.send(ids, raw, row_splits, pair_splits);
}

// Makes a Work of a Request. dtype, kind: the constant fields of its header.
class WorkMaker {
  public:
    WorkMaker(nb::object work_type, nb::object header_type, nb::object kind, nb::object dtype)
        : works_(std::move(work_type), {"bundle", "header", "hidden", "pair_row", "pair_slot", "pair_weight"}),
          headers_(std::move(header_type), {"kind", "per_expert", "dtype", "map_epoch", "sequence", "moe_layer_idx",
                                            "microbatch_idx", "num_rows", "num_pairs", "hidden_size"}),
          kind_(std::move(kind)),
          dtype_(std::move(dtype)) {}

    // views: maps (link, slot, num_rows, num_pairs) to the four tensors of a request slot.
    nb::object make(const step35::Request& request, nb::handle views, int32_t hidden_size) const {
        const auto& [link, slot, num_rows, num_pairs, per_expert, map_epoch, sequence, layer, microbatch] = request;
        const nb::int_ bundle(link), rows(num_rows), pairs(num_pairs);
        const nb::tuple key = nb::make_tuple(bundle, slot, rows, pairs);
        const nb::tuple tensors = nb::steal<nb::tuple>(PyObject_GetItem(views.ptr(), key.ptr()));
        if (!tensors.is_valid()) throw nb::python_error();
        const nb::object header =
            headers_.make({kind_, nb::bool_(per_expert), dtype_, nb::int_(map_epoch), nb::int_(sequence),
                           nb::int_(layer), nb::int_(microbatch), rows, pairs, nb::int_(hidden_size)});
        return works_.make({bundle, header, tensors[0], tensors[1], tensors[2], tensors[3]});
    }

  private:
    step35::RecordMaker works_, headers_;
    nb::object kind_, dtype_;
};

nb::list receive(ExpertPort& port, double timeout_s, const WorkMaker& maker, nb::handle views) {
    std::vector<step35::Request> requests;
    {
        const nb::gil_scoped_release unlocked;
        requests = port.receive(timeout_s);
    }
    nb::list works;
    for (const step35::Request& request : requests)
        works.append(maker.make(request, views, port.limits().largest.hidden_size));
    return works;
}

// False, and nothing done, when the outputs are not contiguous.
bool reply(ExpertPort& port, const RowFormat& format, int64_t link_id, int64_t sequence, nb::handle outputs) {
    if (!format.is_contiguous(outputs)) return false;
    int64_t num_vectors;
    const std::byte* data = format.read_rows(outputs, "outputs", port.limits(), &num_vectors);
    std::optional<nb::gil_scoped_release> unlocked;
    if (num_vectors * port.limits().row_bytes() > kUnlockBytes) unlocked.emplace();
    port.reply(link_id, sequence, data, num_vectors);
    return true;
}

}  // namespace

NB_MODULE(_shm, module) {
    module.attr("OUTPUTS") = static_cast<int>(step35::kOutputs);
    module.attr("REFUSAL") = static_cast<int>(step35::kRefusal);

    nb::class_<step35::Limits>(module, "Limits")
        .def(nb::new_(&make_limits), nb::kw_only(), "largest_header"_a, "item_bytes"_a, "max_in_flight"_a,
             "frame_bytes"_a);

    nb::class_<RowFormat>(module, "RowFormat").def(nb::init<const nb::capsule&, nb::handle>(), "api"_a, "sample"_a);
    nb::class_<WorkMaker>(module, "WorkMaker")
        .def(nb::init<nb::object, nb::object, nb::object, nb::object>(), "work_type"_a, "header_type"_a, "kind"_a,
             "dtype"_a);

    nb::class_<AttentionPort>(module, "AttentionPort")
        .def(nb::init<std::string, const step35::Limits&>(), "name"_a, "limits"_a)
        .def("reconcile", &AttentionPort::reconcile, "shards"_a, Unlocked())
        .def("connected", &AttentionPort::connected, Unlocked())
        .def("wait_connected", &AttentionPort::wait_connected, "ep_ranks"_a, "timeout_s"_a, Unlocked())
        .def("status", &AttentionPort::status, "ep_rank"_a, Unlocked())
        .def("send", &send, "format"_a, "ids"_a, "arrays"_a, "row_splits"_a, "pair_splits"_a)
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
        .def("receive", &receive, "timeout_s"_a, "maker"_a, "views"_a)
        .def("reply", &reply, "format"_a, "link"_a, "sequence"_a, "outputs"_a)
        .def("refuse", &ExpertPort::refuse, "link"_a, "sequence"_a, "reason"_a)
        .def("request_frame", &request_frame, "link"_a, "slot"_a)
        .def("link_ids", &ExpertPort::link_ids, Unlocked())
        .def_prop_ro("is_closed", &ExpertPort::is_closed)
        .def("close", &ExpertPort::close, Unlocked());
}
