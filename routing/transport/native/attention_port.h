// The attention end of a bundle: one link per expert rank, exchanges that are open over them.
// `send`, `receive` and `drop` belong to one thread; the watcher's thread owns the sockets; `mutex_` guards what they
// share.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "doorbell.h"
#include "handshake.h"
#include "slots.h"
#include "watcher.h"

namespace step35 {

// What a dispatch is about: sequence, map_epoch, moe_layer_idx, microbatch_idx, per_expert.
using DispatchIds = std::tuple<int64_t, int64_t, int32_t, int32_t, bool>;

// Rows are picked from `hidden` by `row_token`; pairs are rank-major, as in DispatchPlan.
struct DispatchArrays {
    const std::byte* hidden;
    int64_t num_tokens;
    const int64_t* row_token;
    const int32_t* pair_row;
    const int32_t* pair_slot;
    const float* pair_weight;
};

enum Outcome : int32_t { kOutputs = 0, kRefusal = 1, kCorrupt = 2 };

// link, slot, outcome, and how many vectors (kOutputs) or bytes of text (kRefusal).
using Reply = std::tuple<int64_t, uint32_t, int32_t, int32_t>;

struct AttentionLink {
    enum class Use { kIdle, kOpen, kAbandoned };

    AttentionLink(int64_t id, Slots slots, const Fd& bell_memory)
        : id(id),
          slots(std::make_shared<const Slots>(std::move(slots))),
          bell(bell_memory),
          uses(this->slots->count(), Use::kIdle) {}

    // A slot that can take a request, or nothing. An abandoned one is free again once its late answer is there.
    std::optional<uint32_t> find_slot() const;
    bool can_take_rows() const { return !is_dead && find_slot().has_value(); }

    const int64_t id;
    const std::shared_ptr<const Slots> slots;  // shared with the views
    Doorbell bell;                             // the expert side's
    std::vector<Use> uses;
    uint64_t next_ticket = 1;
    std::atomic<bool> is_dead{false};
};

class AttentionPort {
  public:
    AttentionPort(std::string name, const Limits& limits);
    ~AttentionPort() { close(); }

    // ep_rank -> socket name. Returns at once; the watcher connects.
    void reconcile(const std::map<int32_t, std::string>& shards);
    std::vector<int32_t> connected();
    // The ranks of `ep_ranks` still missing when they all are there, the time is over or the port is closed.
    std::vector<int32_t> wait_connected(const std::vector<int32_t>& ep_ranks, double timeout_s);
    // Why a rank is not connected.
    std::string status(int32_t ep_rank);

    // The ranks that cannot take rows; nothing was sent unless it is empty.
    std::vector<int32_t> send(const DispatchIds& ids, const DispatchArrays& arrays,
                              const std::vector<int32_t>& row_splits, const std::vector<int32_t>& pair_splits);
    // The replies by ascending rank once all are there. Nothing when a rank died, the time is over or a signal came.
    std::optional<std::vector<Reply>> receive(int64_t sequence, double timeout_s);
    // Of an open exchange, the ranks that died owing an answer and those that still owe one.
    std::pair<std::vector<int32_t>, std::vector<int32_t>> owing(int64_t sequence);
    void drop(int64_t sequence);

    std::shared_ptr<AttentionLink> link_of_open_exchange(int64_t link_id);
    std::vector<int64_t> link_ids();
    const Limits& limits() const { return limits_; }
    bool is_closed() const { return is_closed_; }
    void close();

  private:
    struct Peer {
        std::string address;
        std::string status = "not connected yet";
        Fd socket{};
        std::optional<Slots> offer;  // sent with the hello, until the welcome
        std::shared_ptr<AttentionLink> link;
        Clock::time_point retry_at = Clock::time_point::min();
        Clock::duration backoff = std::chrono::milliseconds(10);
    };
    struct Part {
        int32_t ep_rank;
        std::shared_ptr<AttentionLink> link;
        uint32_t slot;
        uint64_t ticket;
        FrameHeader header;  // as sent: a reply repeats it

        bool is_answered() const;
    };
    struct Open {
        int64_t sequence;
        std::vector<Part> parts;
    };

    Watcher::Round watch();
    void connect_peer(int32_t ep_rank, Peer& peer);
    void read_socket(Peer& peer);
    void read_welcome(Peer& peer, const Packet& packet);
    void hang_up(Peer& peer, std::string status);

    void check(const DispatchArrays& arrays, const std::vector<int32_t>& row_splits,
               const std::vector<int32_t>& pair_splits) const;
    std::vector<int32_t> reserve(Open& open, const DispatchIds& ids, const std::vector<int32_t>& row_splits,
                                 const std::vector<int32_t>& pair_splits);
    void fill(const Part& part, const DispatchArrays& arrays, int64_t first_row, int64_t first_pair) const;
    Open* find(int64_t sequence);
    Reply read_reply(const Part& part) const;
    // Rings still needed before `open` can be settled; 0 also when waiting longer is pointless.
    uint32_t num_missing(const Open& open) const;
    std::vector<int32_t> missing_of(const std::vector<int32_t>& ep_ranks);

    const std::string name_;
    const Limits limits_;
    const Fd bell_memory_;
    Doorbell bell_;  // our own
    std::vector<Open> open_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::map<int32_t, Peer> peers_;
    int64_t next_link_id_ = 1;
    std::atomic<bool> is_closed_{false};
    Watcher watcher_;
};

}  // namespace step35
