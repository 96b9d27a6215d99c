// The memory of one link: for every slot a state word, a request frame and a reply frame.
//
// A slot goes round: free -> ready (attention) -> taken (expert) -> answered (expert) -> free (attention).
// The attention side may also take back a ready slot. The ticket in the state word orders the requests of a link and
// tells a slot's present use from its former ones.
#pragma once

#include <atomic>
#include <cstdint>

#include "frame.h"
#include "memory.h"

namespace step35 {

enum class Phase : uint64_t { kFree = 0, kReady = 1, kTaken = 2, kAnswered = 3 };

constexpr uint64_t slot_state(uint64_t ticket, Phase phase) {
    return ticket << 2 | static_cast<uint64_t>(phase);
}
constexpr Phase phase_of(uint64_t state) {
    return static_cast<Phase>(state & 3);
}

class Slots {
  public:
    // An exchange that timed out holds its slot until the expert rank lets go; meanwhile these serve the next ones.
    static constexpr uint32_t kSpare = 2;
    static constexpr uint32_t kMaxSlots = 64;

    static uint32_t count(const Limits& limits) { return limits.max_in_flight + kSpare; }
    static size_t bytes(const Limits& limits) { return kPage + 2 * count(limits) * stride(limits); }

    Slots(const Fd& memfd, const Limits& limits)
        : mapping_(memfd, bytes(limits)), stride_(stride(limits)), count_(count(limits)) {}

    uint32_t count() const { return count_; }
    std::atomic<uint64_t>& state(uint32_t slot) const {
        return reinterpret_cast<std::atomic<uint64_t>*>(mapping_.data())[slot];
    }
    std::byte* request(uint32_t slot) const { return mapping_.data() + kPage + 2 * slot * stride_; }
    std::byte* reply(uint32_t slot) const { return request(slot) + stride_; }

  private:
    static constexpr size_t kPage = 4096;
    static size_t stride(const Limits& limits) { return align_up(limits.frame_bytes, kPage); }
    static_assert(kMaxSlots * sizeof(std::atomic<uint64_t>) <= kPage, "the state words fill at most one page");

    Mapping mapping_;
    size_t stride_;
    uint32_t count_;
};

}  // namespace step35
