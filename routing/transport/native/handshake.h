// How two processes of one user meet: abstract Unix sockets, one hello with the memory, one welcome with the doorbell.
// After that the socket carries nothing; its hang-up is the news of the peer's death.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "frame.h"
#include "memory.h"

namespace step35 {

constexpr uint32_t kHandshakeMagic = 0x53335348;
constexpr uint32_t kHandshakeVersion = 1;
constexpr size_t kNameBytes = 64;
constexpr size_t kReasonBytes = 240;

// attention -> expert, with two descriptors: the link's slots, the attention side's doorbell.
struct Hello {
    uint32_t magic;
    uint32_t version;
    int32_t ep_rank;  // the rank that the attention side takes us for
    uint32_t reserved;
    char bundle[kNameBytes];
    Limits limits;
};

// expert -> attention, with the expert side's doorbell when `is_admitted`.
struct Welcome {
    uint32_t magic;
    uint32_t version;
    uint32_t is_admitted;
    char reason[kReasonBytes];
};

struct Packet {
    std::string bytes;
    std::vector<Fd> fds;
};

// Both throw std::system_error; the sockets do not block.
Fd listen_at(const std::string& name);
Fd connect_to(const std::string& name);

// False when the peer is gone or its queue is full.
bool send_packet(const Fd& socket, const void* bytes, size_t num_bytes, const std::vector<const Fd*>& fds);

// What arrived; an empty Packet when the peer hung up; nothing when there is nothing yet.
std::optional<Packet> receive_packet(const Fd& socket);

// Whether the process at the other end runs as our user.
bool is_same_user(const Fd& socket);

void copy_text(char* target, size_t capacity, const std::string& text);

// Why a hello cannot be served by rank `ep_rank`; empty when it can.
std::string hello_fault(const Packet& packet, const Limits& limits, int32_t ep_rank);

}  // namespace step35
