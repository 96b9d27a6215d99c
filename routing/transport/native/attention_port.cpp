#include "attention_port.h"

#include <algorithm>
#include <stdexcept>
#include <system_error>

namespace step35 {
namespace {

constexpr auto kMaxBackoff = std::chrono::milliseconds(500);

}  // namespace

std::optional<uint32_t> AttentionLink::find_slot() const {
    for (uint32_t slot = 0; slot < slots->count(); ++slot) {
        if (uses[slot] == Use::kIdle) return slot;
        const bool is_late = uses[slot] == Use::kAbandoned && phase_of(slots->state(slot).load()) == Phase::kAnswered;
        if (is_late) return slot;
    }
    return std::nullopt;
}

AttentionPort::AttentionPort(std::string name, const Limits& limits)
    : name_(std::move(name)),
      limits_(limits),
      bell_memory_(create_sealed_memory(Doorbell::kBytes)),
      bell_(bell_memory_) {
    watcher_.start([this] { return watch(); });
}

// Membership ----------------------------------------------------------------------------------------------------------

void AttentionPort::reconcile(const std::map<int32_t, std::string>& shards) {
    {
        const std::lock_guard guard(mutex_);
        for (auto entry = peers_.begin(); entry != peers_.end();) {
            const auto wanted = shards.find(entry->first);
            const bool stays = wanted != shards.end() && wanted->second == entry->second.address;
            if (!stays) hang_up(entry->second, "left the view");
            entry = stays ? std::next(entry) : peers_.erase(entry);
        }
        for (const auto& [ep_rank, address] : shards) peers_.try_emplace(ep_rank).first->second.address = address;
    }
    watcher_.nudge();
}

std::vector<int32_t> AttentionPort::connected() {
    const std::lock_guard guard(mutex_);
    std::vector<int32_t> ep_ranks;
    for (const auto& [ep_rank, peer] : peers_)
        if (peer.link && peer.link->can_take_rows()) ep_ranks.push_back(ep_rank);
    return ep_ranks;
}

std::vector<int32_t> AttentionPort::missing_of(const std::vector<int32_t>& ep_ranks) {
    std::vector<int32_t> missing;
    for (const int32_t ep_rank : ep_ranks) {
        const auto peer = peers_.find(ep_rank);
        const bool is_there = peer != peers_.end() && peer->second.link && peer->second.link->can_take_rows();
        if (!is_there) missing.push_back(ep_rank);
    }
    return missing;
}

std::vector<int32_t> AttentionPort::wait_connected(const std::vector<int32_t>& ep_ranks, double timeout_s) {
    std::unique_lock lock(mutex_);
    std::vector<int32_t> missing;
    changed_.wait_for(lock, seconds(timeout_s), [&] {
        missing = missing_of(ep_ranks);
        return missing.empty() || is_closed_;
    });
    return missing;
}

std::string AttentionPort::status(int32_t ep_rank) {
    const std::lock_guard guard(mutex_);
    const auto peer = peers_.find(ep_rank);
    return peer == peers_.end() ? "not in the view" : peer->second.status;
}

Watcher::Round AttentionPort::watch() {
    const std::lock_guard guard(mutex_);
    Watcher::Round round;
    for (auto& [ep_rank, peer] : peers_) {
        if (!peer.socket.is_open() && Clock::now() >= peer.retry_at) connect_peer(ep_rank, peer);
        if (peer.socket.is_open()) read_socket(peer);
        if (peer.socket.is_open())
            round.add(peer.socket);
        else
            round.wake_by(peer.retry_at);
    }
    return round;
}

void AttentionPort::connect_peer(int32_t ep_rank, Peer& peer) {
    try {
        peer.socket = connect_to(peer.address);
        if (!is_same_user(peer.socket)) return hang_up(peer, "its process belongs to another user");
        const Fd memory = create_sealed_memory(Slots::bytes(limits_));
        peer.offer.emplace(memory, limits_);
        Hello hello{kHandshakeMagic, kHandshakeVersion, ep_rank, 0, {}, limits_};
        copy_text(hello.bundle, kNameBytes, name_);
        if (!send_packet(peer.socket, &hello, sizeof(hello), {&memory, &bell_memory_})) throw_errno("sendmsg");
        peer.status = "connected, not admitted yet: its view does not list this attention actor";
    } catch (const std::system_error& error) {
        hang_up(peer, error.what());
    }
}

void AttentionPort::read_socket(Peer& peer) {
    while (peer.socket.is_open()) {
        const auto packet = receive_packet(peer.socket);
        if (!packet) return;
        if (packet->bytes.empty())
            hang_up(peer, "it hung up");
        else if (peer.link)
            hang_up(peer, "it broke the protocol");
        else
            read_welcome(peer, *packet);
    }
}

void AttentionPort::read_welcome(Peer& peer, const Packet& packet) {
    Welcome welcome;
    if (packet.bytes.size() != sizeof(welcome)) return hang_up(peer, "it does not speak this protocol");
    std::memcpy(&welcome, packet.bytes.data(), sizeof(welcome));
    if (welcome.magic != kHandshakeMagic || welcome.version != kHandshakeVersion)
        return hang_up(peer, "it does not speak this version of the protocol");
    welcome.reason[kReasonBytes - 1] = '\0';
    if (!welcome.is_admitted) return hang_up(peer, std::string("refused: ") + welcome.reason);
    if (packet.fds.size() != 1) return hang_up(peer, "it sent no doorbell");
    try {
        peer.link = std::make_shared<AttentionLink>(next_link_id_++, std::move(*peer.offer), packet.fds[0]);
    } catch (const std::exception& error) {
        return hang_up(peer, std::string("its doorbell is unusable: ") + error.what());
    }
    peer.status = "owes answers to exchanges that timed out";  // read only when the link is there and cannot take rows
    peer.backoff = Peer{}.backoff;
    changed_.notify_all();
}

void AttentionPort::hang_up(Peer& peer, std::string status) {
    if (peer.link) {
        peer.link->is_dead = true;
        bell_.open_gate();
    }
    peer.status = std::move(status);
    peer.link.reset();
    peer.offer.reset();
    peer.socket = Fd();
    peer.retry_at = Clock::now() + peer.backoff;
    peer.backoff = std::min<Clock::duration>(2 * peer.backoff, kMaxBackoff);
}

// Exchanges -----------------------------------------------------------------------------------------------------------

std::vector<int32_t> AttentionPort::send(const DispatchIds& ids, const DispatchArrays& arrays,
                                         const std::vector<int32_t>& row_splits,
                                         const std::vector<int32_t>& pair_splits) {
    check(arrays, row_splits, pair_splits);
    Open open{std::get<0>(ids), {}};
    const std::vector<int32_t> missing = reserve(open, ids, row_splits, pair_splits);
    if (!missing.empty()) return missing;
    int64_t first_row = 0, first_pair = 0;
    for (const Part& part : open.parts) {
        fill(part, arrays, first_row, first_pair);
        first_row += part.header.num_rows;
        first_pair += part.header.num_pairs;
    }
    // Wake nobody before everything is copied: a woken rank may take this core from us.
    for (const Part& part : open.parts)
        part.link->slots->state(part.slot).store(slot_state(part.ticket, Phase::kReady));
    for (const Part& part : open.parts) part.link->bell.ring();
    open_.push_back(std::move(open));
    return {};
}

void AttentionPort::check(const DispatchArrays& arrays, const std::vector<int32_t>& row_splits,
                          const std::vector<int32_t>& pair_splits) const {
    if (row_splits.size() != pair_splits.size()) throw std::invalid_argument("row and pair splits of different length");
    int64_t num_rows = 0;
    for (size_t rank = 0; rank < row_splits.size(); ++rank) {
        const bool rows_fit = row_splits[rank] >= 0 && row_splits[rank] <= limits_.largest.num_rows;
        const bool pairs_fit = pair_splits[rank] >= 0 && pair_splits[rank] <= limits_.largest.num_pairs;
        if (!rows_fit || !pairs_fit)
            throw std::invalid_argument("a rank gets more rows or pairs than the limits allow");
        if (row_splits[rank] == 0 && pair_splits[rank] != 0)
            throw std::invalid_argument("a rank gets pairs without rows");
        num_rows += row_splits[rank];
    }
    const auto is_outside = [&](int64_t token) { return token < 0 || token >= arrays.num_tokens; };
    if (std::any_of(arrays.row_token, arrays.row_token + num_rows, is_outside))
        throw std::invalid_argument("row_token points outside hidden");
}

std::vector<int32_t> AttentionPort::reserve(Open& open, const DispatchIds& ids, const std::vector<int32_t>& row_splits,
                                            const std::vector<int32_t>& pair_splits) {
    std::vector<int32_t> needed;
    for (size_t rank = 0; rank < row_splits.size(); ++rank)
        if (row_splits[rank] > 0) needed.push_back(static_cast<int32_t>(rank));
    const std::lock_guard guard(mutex_);
    std::vector<int32_t> missing = missing_of(needed);
    if (!missing.empty()) return missing;
    open.parts.reserve(needed.size());
    FrameHeader header = limits_.largest;
    std::tie(header.sequence, header.map_epoch, header.moe_layer_idx, header.microbatch_idx, header.per_expert) = ids;
    for (const int32_t ep_rank : needed) {
        const auto& link = peers_.at(ep_rank).link;
        const uint32_t slot = *link->find_slot();
        link->uses[slot] = AttentionLink::Use::kOpen;
        header.num_rows = row_splits[ep_rank];
        header.num_pairs = pair_splits[ep_rank];
        open.parts.push_back({ep_rank, link, slot, link->next_ticket++, header});
    }
    return {};
}

void AttentionPort::fill(const Part& part, const DispatchArrays& arrays, int64_t first_row, int64_t first_pair) const {
    const DispatchLayout layout(part.header, limits_);
    const size_t row_bytes = limits_.row_bytes();
    std::byte* frame = part.link->slots->request(part.slot);
    std::memcpy(frame, &part.header, sizeof(part.header));
    for (int32_t row = 0; row < part.header.num_rows; ++row) {
        const std::byte* token = arrays.hidden + arrays.row_token[first_row + row] * row_bytes;
        std::memcpy(frame + layout.hidden + row * row_bytes, token, row_bytes);
    }
    const size_t num_pairs = part.header.num_pairs;
    std::memcpy(frame + layout.pair_row, arrays.pair_row + first_pair, num_pairs * sizeof(int32_t));
    std::memcpy(frame + layout.pair_slot, arrays.pair_slot + first_pair, num_pairs * sizeof(int32_t));
    std::memcpy(frame + layout.pair_weight, arrays.pair_weight + first_pair, num_pairs * sizeof(float));
}

bool AttentionPort::Part::is_answered() const {
    return link->slots->state(slot).load() == slot_state(ticket, Phase::kAnswered);
}

uint32_t AttentionPort::num_missing(const Open& open) const {
    if (is_closed_) return 0;
    uint32_t missing = 0;
    for (const Part& part : open.parts) {
        if (part.is_answered()) continue;
        if (part.link->is_dead) return 0;
        ++missing;
    }
    return missing;
}

std::optional<std::vector<Reply>> AttentionPort::receive(int64_t sequence, double timeout_s) {
    const Open* open = find(sequence);
    if (open == nullptr) throw std::invalid_argument("receive of an exchange that is not open");
    if (!bell_.wait([&] { return num_missing(*open); }, seconds(timeout_s))) return std::nullopt;
    std::vector<Reply> replies;
    replies.reserve(open->parts.size());
    for (const Part& part : open->parts) {
        if (!part.is_answered()) return std::nullopt;
        replies.push_back(read_reply(part));
    }
    return replies;
}

Reply AttentionPort::read_reply(const Part& part) const {
    // The peer may write while we look: copy first, then compare with what we know to be right.
    FrameHeader reply, expected = part.header;
    std::memcpy(&reply, part.link->slots->reply(part.slot), sizeof(reply));
    expected.kind = kCombine;
    if (std::memcmp(&reply, &expected, sizeof(reply)) == 0)
        return {part.link->id, part.slot, kOutputs, num_vectors(expected)};
    const bool is_ours = reply.magic == expected.magic && reply.version == expected.version;
    if (is_ours && reply.kind == kRefuse)
        return {part.link->id, part.slot, kRefusal, std::clamp(reply.num_rows, 0, kMaxReasonBytes)};
    return {part.link->id, part.slot, kCorrupt, 0};
}

std::pair<std::vector<int32_t>, std::vector<int32_t>> AttentionPort::owing(int64_t sequence) {
    std::pair<std::vector<int32_t>, std::vector<int32_t>> ranks;
    const Open* open = find(sequence);
    if (open == nullptr) return ranks;
    for (const Part& part : open->parts)
        if (!part.is_answered()) (part.link->is_dead ? ranks.first : ranks.second).push_back(part.ep_rank);
    return ranks;
}

void AttentionPort::drop(int64_t sequence) {
    const auto open = std::find_if(open_.begin(), open_.end(), [&](const Open& o) { return o.sequence == sequence; });
    if (open == open_.end()) return;
    const std::lock_guard guard(mutex_);
    for (const Part& part : open->parts) {
        std::atomic<uint64_t>& state = part.link->slots->state(part.slot);
        uint64_t ready = slot_state(part.ticket, Phase::kReady);
        const bool is_taken_back = state.compare_exchange_strong(ready, slot_state(part.ticket, Phase::kFree));
        const bool is_idle = is_taken_back || part.is_answered();
        part.link->uses[part.slot] = is_idle ? AttentionLink::Use::kIdle : AttentionLink::Use::kAbandoned;
    }
    open_.erase(open);
}

AttentionPort::Open* AttentionPort::find(int64_t sequence) {
    for (Open& open : open_)
        if (open.sequence == sequence) return &open;
    return nullptr;
}

std::shared_ptr<AttentionLink> AttentionPort::link_of_open_exchange(int64_t link_id) {
    for (const Open& open : open_)
        for (const Part& part : open.parts)
            if (part.link->id == link_id) return part.link;
    throw std::invalid_argument("no open exchange uses this link");
}

std::vector<int64_t> AttentionPort::link_ids() {
    const std::lock_guard guard(mutex_);
    std::vector<int64_t> ids;
    for (const auto& [ep_rank, peer] : peers_)
        if (peer.link) ids.push_back(peer.link->id);
    return ids;
}

void AttentionPort::close() {
    is_closed_ = true;
    watcher_.stop();
    {
        const std::lock_guard guard(mutex_);
        for (auto& [ep_rank, peer] : peers_) hang_up(peer, "the port is closed");
        peers_.clear();
    }
    bell_.open_gate();
    changed_.notify_all();
}

}  // namespace step35
