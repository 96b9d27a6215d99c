// The expert end of every bundle that one expert rank serves.
// `receive`, `reply` and `refuse` belong to one thread; the watcher's thread owns the sockets; `mutex_` guards what
// they share.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "doorbell.h"
#include "handshake.h"
#include "slots.h"
#include "watcher.h"

namespace step35 {

// link, slot, num_rows, num_pairs, per_expert, map_epoch, sequence, moe_layer_idx, microbatch_idx.
using Request = std::tuple<int64_t, uint32_t, int32_t, int32_t, bool, int64_t, int64_t, int32_t, int32_t>;

struct ExpertLink {
    // A request between its receive and its reply: our copy of the header, which the peer cannot change.
    struct Taken {
        bool is_held = false;
        uint64_t ticket = 0;
        FrameHeader header{};
    };

    ExpertLink(std::string bundle, Fd socket, const Fd& slots_memory, const Fd& bell_memory, const Limits& limits)
        : bundle(std::move(bundle)),
          socket(std::move(socket)),
          slots(std::make_shared<const Slots>(slots_memory, limits)),
          bell(bell_memory),
          taken(slots->count()),
          blank(limits.largest) {}

    // The oldest request that waits, or nothing.
    std::optional<uint32_t> find_ready() const;
    // The slot in which request `sequence` is held, or nothing.
    std::optional<uint32_t> find_held(int64_t sequence) const;
    // Write the header of a reply, hand the slot back and ring.
    void answer(uint32_t slot, const FrameHeader& header);
    void refuse(uint32_t slot, const std::string& reason);

    int64_t id = 0;
    const std::string bundle;
    Fd socket;
    const std::shared_ptr<const Slots> slots;  // shared with the views, which must not keep the socket open
    Doorbell bell;                             // the attention side's
    std::vector<Taken> taken;
    const FrameHeader blank;  // a header with the agreed constants
};

class ExpertPort {
  public:
    ExpertPort(const std::string& name, int32_t ep_rank, const Limits& limits);
    ~ExpertPort() { close(); }

    // Serve the bundles of these names, drop the others. Returns at once.
    void reconcile(std::set<std::string> bundles);

    // Every request that is ready, waiting at most `timeout_s` (less when a signal comes) for the first.
    std::vector<Request> receive(double timeout_s);
    // Copies the outputs into the reply slot. A link that is gone is ignored.
    // Throws std::invalid_argument when the request is not held or needs another number of vectors.
    void reply(int64_t link_id, int64_t sequence, const std::byte* outputs, int64_t num_vectors);
    void refuse(int64_t link_id, int64_t sequence, const std::string& reason);

    // nullptr when it is gone.
    std::shared_ptr<ExpertLink> find_link(int64_t link_id);
    std::vector<int64_t> link_ids();
    const Limits& limits() const { return limits_; }
    bool is_closed() const { return is_closed_; }
    void close();

  private:
    // A connection that is not served: before its hello, or until the view lists its bundle.
    struct Guest {
        Fd socket;
        Clock::time_point hello_by;
        std::shared_ptr<ExpertLink> link;
        bool is_leaving = false;
    };

    Watcher::Round watch();
    void accept_guests(Watcher::Round& round);
    void read_guest(Guest& guest);
    void read_hello(Guest& guest, const Packet& packet);
    void admit(Guest& guest);
    bool should_stay(const ExpertLink& link) const;

    bool has_ready();
    void take_requests(ExpertLink& link, std::vector<Request>& requests) const;

    const int32_t ep_rank_;
    const Limits limits_;
    Fd listener_;
    const Fd bell_memory_;
    Doorbell bell_;  // our own
    std::mutex mutex_;
    std::set<std::string> bundles_;
    std::list<Guest> guests_;
    std::vector<std::shared_ptr<ExpertLink>> links_;
    int64_t next_link_id_ = 1;
    std::atomic<bool> is_closed_{false};
    Watcher watcher_;
};

}  // namespace step35
