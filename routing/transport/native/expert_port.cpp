#include "expert_port.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

namespace step35 {
namespace {

constexpr size_t kMaxGuests = 256;
constexpr auto kHelloTimeout = std::chrono::seconds(2);
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

bool pairs_point_inside(const std::byte* frame, const FrameHeader& header, const Limits& limits) {
    const auto* pair_row = reinterpret_cast<const int32_t*>(frame + DispatchLayout(header, limits).pair_row);
    return std::all_of(pair_row, pair_row + header.num_pairs,
                       [&](int32_t row) { return row >= 0 && row < header.num_rows; });
}

}  // namespace

// One link ------------------------------------------------------------------------------------------------------------

std::optional<uint32_t> ExpertLink::find_ready() const {
    std::optional<uint32_t> oldest;
    uint64_t oldest_state = 0;
    for (uint32_t slot = 0; slot < slots->count(); ++slot) {
        const uint64_t state = slots->state(slot).load();
        if (phase_of(state) != Phase::kReady || taken[slot].is_held) continue;
        if (oldest && state >= oldest_state) continue;
        oldest = slot;
        oldest_state = state;
    }
    return oldest;
}

std::optional<uint32_t> ExpertLink::find_held(int64_t sequence) const {
    for (uint32_t slot = 0; slot < slots->count(); ++slot)
        if (taken[slot].is_held && taken[slot].header.sequence == sequence) return slot;
    return std::nullopt;
}

void ExpertLink::answer(uint32_t slot, const FrameHeader& header) {
    std::memcpy(slots->reply(slot), &header, sizeof(header));
    taken[slot].is_held = false;
    slots->state(slot).store(slot_state(taken[slot].ticket, Phase::kAnswered));
    bell.ring();
}

void ExpertLink::refuse(uint32_t slot, const std::string& reason) {
    const size_t num_bytes = std::min<size_t>(reason.size(), kMaxReasonBytes);
    std::memcpy(slots->reply(slot) + sizeof(FrameHeader), reason.data(), num_bytes);
    // Not the request's header: it may be what is refused.
    FrameHeader header = blank;
    header.kind = kRefuse;
    header.sequence = taken[slot].header.sequence;
    header.num_rows = static_cast<int32_t>(num_bytes);
    answer(slot, header);
}

// Membership ----------------------------------------------------------------------------------------------------------

ExpertPort::ExpertPort(const std::string& name, int32_t ep_rank, const Limits& limits)
    : ep_rank_(ep_rank),
      limits_(limits),
      listener_(listen_at(name)),
      bell_memory_(create_sealed_memory(Doorbell::kBytes)),
      bell_(bell_memory_) {
    watcher_.start([this] { return watch(); });
}

void ExpertPort::reconcile(std::set<std::string> bundles) {
    {
        const std::lock_guard guard(mutex_);
        bundles_ = std::move(bundles);
    }
    watcher_.nudge();
}

Watcher::Round ExpertPort::watch() {
    const std::lock_guard guard(mutex_);
    Watcher::Round round;
    accept_guests(round);
    for (Guest& guest : guests_) read_guest(guest);
    guests_.remove_if([](const Guest& guest) { return guest.is_leaving; });
    std::erase_if(links_, [this](const auto& link) { return !should_stay(*link); });
    for (const Guest& guest : guests_) {
        round.add(guest.link ? guest.link->socket : guest.socket);
        if (!guest.link) round.wake_by(guest.hello_by);
    }
    for (const auto& link : links_) round.add(link->socket);
    return round;
}

void ExpertPort::accept_guests(Watcher::Round& round) {
    while (guests_.size() < kMaxGuests) {
        Fd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (socket.is_open()) {
            guests_.push_back({std::move(socket), Clock::now() + kHelloTimeout, nullptr, false});
        } else if (errno == EAGAIN) {
            round.add(listener_);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            break;
        }
    }
    // Out of descriptors or full of guests: look again later, since poll() would return at once all the time.
    round.wake_by(Clock::now() + kAcceptPause);
}

void ExpertPort::read_guest(Guest& guest) {
    const auto packet = receive_packet(guest.link ? guest.link->socket : guest.socket);
    if (packet) {
        // After its hello a guest has nothing to say: whatever arrives is its hang-up or a breach.
        if (guest.link || packet->bytes.empty())
            guest.is_leaving = true;
        else
            read_hello(guest, *packet);
    } else if (!guest.link && Clock::now() >= guest.hello_by) {
        guest.is_leaving = true;
    }
    if (!guest.is_leaving && guest.link && bundles_.contains(guest.link->bundle)) admit(guest);
}

void ExpertPort::read_hello(Guest& guest, const Packet& packet) {
    std::string fault = is_same_user(guest.socket) ? hello_fault(packet, limits_, ep_rank_) : "of another user";
    if (fault.empty()) {
        Hello hello;
        std::memcpy(&hello, packet.bytes.data(), sizeof(hello));
        hello.bundle[kNameBytes - 1] = '\0';
        try {
            guest.link = std::make_shared<ExpertLink>(hello.bundle, Fd(), packet.fds[0], packet.fds[1], limits_);
            guest.link->socket = std::move(guest.socket);
            return;
        } catch (const std::exception& error) {
            fault = error.what();
        }
    }
    Welcome welcome{kHandshakeMagic, kHandshakeVersion, 0, {}};
    copy_text(welcome.reason, kReasonBytes, fault);
    send_packet(guest.socket, &welcome, sizeof(welcome), {});
    guest.is_leaving = true;
}

void ExpertPort::admit(Guest& guest) {
    const Welcome welcome{kHandshakeMagic, kHandshakeVersion, 1, {}};
    guest.is_leaving = true;
    if (!send_packet(guest.link->socket, &welcome, sizeof(welcome), {&bell_memory_})) return;
    guest.link->id = next_link_id_++;
    links_.push_back(std::move(guest.link));
}

bool ExpertPort::should_stay(const ExpertLink& link) const {
    // Anything that arrives is a hang-up or a breach of the protocol.
    return bundles_.contains(link.bundle) && !receive_packet(link.socket);
}

std::shared_ptr<ExpertLink> ExpertPort::find_link(int64_t link_id) {
    const std::lock_guard guard(mutex_);
    for (const auto& link : links_)
        if (link->id == link_id) return link;
    return nullptr;
}

std::vector<int64_t> ExpertPort::link_ids() {
    const std::lock_guard guard(mutex_);
    std::vector<int64_t> ids;
    for (const auto& link : links_) ids.push_back(link->id);
    return ids;
}

void ExpertPort::close() {
    is_closed_ = true;
    watcher_.stop();
    {
        const std::lock_guard guard(mutex_);
        listener_ = Fd();
        guests_.clear();
        links_.clear();
    }
    bell_.open_gate();
}

// Requests ------------------------------------------------------------------------------------------------------------

bool ExpertPort::has_ready() {
    const std::lock_guard guard(mutex_);
    return std::any_of(links_.begin(), links_.end(), [](const auto& link) { return link->find_ready().has_value(); });
}

std::vector<Request> ExpertPort::receive(double timeout_s) {
    std::vector<Request> requests;
    if (!bell_.wait([this] { return is_closed_ || has_ready() ? 0 : 1; }, seconds(timeout_s))) return requests;
    const std::lock_guard guard(mutex_);
    for (const auto& link : links_) take_requests(*link, requests);
    return requests;
}

void ExpertPort::take_requests(ExpertLink& link, std::vector<Request>& requests) const {
    // Each round takes one slot; a peer that keeps refilling slots cannot hold us here.
    for (uint32_t round = 0; round < link.slots->count(); ++round) {
        const auto slot = link.find_ready();
        if (!slot) return;
        uint64_t state = link.slots->state(*slot).load();
        if (phase_of(state) != Phase::kReady) continue;
        const uint64_t ticket = state >> 2;
        if (!link.slots->state(*slot).compare_exchange_strong(state, slot_state(ticket, Phase::kTaken))) continue;
        FrameHeader header;
        std::memcpy(&header, link.slots->request(*slot), sizeof(header));
        link.taken[*slot] = {true, ticket, header};
        const char* fault = dispatch_fault(header, limits_);
        if (!fault && !pairs_point_inside(link.slots->request(*slot), header, limits_))
            fault = "the frame has a pair of a row that it does not carry";
        if (fault) {
            link.refuse(*slot, fault);
            continue;
        }
        requests.emplace_back(link.id, *slot, header.num_rows, header.num_pairs, header.per_expert != 0,
                              header.map_epoch, header.sequence, header.moe_layer_idx, header.microbatch_idx);
    }
}

void ExpertPort::reply(int64_t link_id, int64_t sequence, const std::byte* outputs, int64_t num_vectors_given) {
    const auto link = find_link(link_id);
    if (!link) return;
    const auto slot = link->find_held(sequence);
    if (!slot) throw std::invalid_argument("reply to a request that is not held: answered already?");
    FrameHeader header = link->taken[*slot].header;
    if (num_vectors_given != num_vectors(header)) throw std::invalid_argument("reply with another number of vectors");
    std::memcpy(link->slots->reply(*slot) + sizeof(FrameHeader), outputs, num_vectors_given * limits_.row_bytes());
    header.kind = kCombine;
    link->answer(*slot, header);
}

void ExpertPort::refuse(int64_t link_id, int64_t sequence, const std::string& reason) {
    const auto link = find_link(link_id);
    if (!link) return;
    const auto slot = link->find_held(sequence);
    if (!slot) throw std::invalid_argument("refusal of a request that is not held: answered already?");
    link->refuse(*slot, reason);
}

}  // namespace step35
