#include "handshake.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <stdexcept>

namespace step35 {
namespace {

constexpr size_t kMaxFds = 4;
constexpr int kBacklog = 64;

struct Address {
    sockaddr_un value{};
    socklen_t bytes;

    // A leading zero byte makes the name abstract: it belongs to the network namespace and dies with its socket.
    explicit Address(const std::string& name) {
        if (name.empty() || name.size() >= kNameBytes)
            throw std::invalid_argument("the socket name has a wrong length");
        value.sun_family = AF_UNIX;
        std::memcpy(value.sun_path + 1, name.data(), name.size());
        bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    }
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&value); }
};

Fd new_socket() {
    Fd socket_fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket_fd.is_open()) throw_errno("socket");
    return socket_fd;
}

struct ControlBuffer {
    alignas(cmsghdr) char bytes[CMSG_SPACE(sizeof(int) * kMaxFds)];
};

void attach(msghdr& message, ControlBuffer& control, const std::vector<const Fd*>& fds) {
    const size_t num_bytes = sizeof(int) * fds.size();
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(num_bytes);
    cmsghdr* entry = CMSG_FIRSTHDR(&message);
    entry->cmsg_level = SOL_SOCKET;
    entry->cmsg_type = SCM_RIGHTS;
    entry->cmsg_len = CMSG_LEN(num_bytes);
    for (size_t i = 0; i < fds.size(); ++i) {
        const int fd = fds[i]->get();
        std::memcpy(CMSG_DATA(entry) + i * sizeof(int), &fd, sizeof(int));
    }
}

std::vector<Fd> detach(msghdr& message) {
    std::vector<Fd> fds;
    for (cmsghdr* entry = CMSG_FIRSTHDR(&message); entry != nullptr; entry = CMSG_NXTHDR(&message, entry)) {
        if (entry->cmsg_level != SOL_SOCKET || entry->cmsg_type != SCM_RIGHTS) continue;
        const size_t num_fds = (entry->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < num_fds; ++i) {
            int fd;
            std::memcpy(&fd, CMSG_DATA(entry) + i * sizeof(int), sizeof(int));
            fds.emplace_back(fd);
        }
    }
    return fds;
}

std::string differing_field(const Limits& theirs, const Limits& ours) {
    const auto differ = [](const char* field, int64_t their_value, int64_t our_value) {
        return std::string(field) + " " + std::to_string(their_value) + ", this rank has " + std::to_string(our_value);
    };
    const FrameHeader &a = theirs.largest, &b = ours.largest;
    if (a.hidden_size != b.hidden_size) return differ("hidden_size", a.hidden_size, b.hidden_size);
    if (a.num_rows != b.num_rows) return differ("max_rows", a.num_rows, b.num_rows);
    if (a.num_pairs != b.num_pairs) return differ("max_rows * top_k", a.num_pairs, b.num_pairs);
    if (a.dtype != b.dtype) return differ("dtype code", a.dtype, b.dtype);
    if (theirs.max_in_flight != ours.max_in_flight)
        return differ("max_in_flight", theirs.max_in_flight, ours.max_in_flight);
    return differ("frame version", a.version, b.version);
}

}  // namespace

Fd listen_at(const std::string& name) {
    Fd listener = new_socket();
    const Address address(name);
    if (bind(listener.get(), address.get(), address.bytes) < 0) throw_errno("bind");
    if (listen(listener.get(), kBacklog) < 0) throw_errno("listen");
    return listener;
}

Fd connect_to(const std::string& name) {
    Fd socket_fd = new_socket();
    const Address address(name);
    if (connect(socket_fd.get(), address.get(), address.bytes) < 0) throw_errno("connect");
    return socket_fd;
}

bool send_packet(const Fd& socket, const void* bytes, size_t num_bytes, const std::vector<const Fd*>& fds) {
    iovec part{const_cast<void*>(bytes), num_bytes};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    ControlBuffer control{};
    if (!fds.empty()) attach(message, control, fds);
    return sendmsg(socket.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(num_bytes);
}

std::optional<Packet> receive_packet(const Fd& socket) {
    char bytes[1024];
    iovec part{bytes, sizeof(bytes)};
    ControlBuffer control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    const ssize_t num_bytes = recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
    if (num_bytes < 0 && (errno == EAGAIN || errno == EINTR)) return std::nullopt;
    if (num_bytes <= 0) return Packet{};
    return Packet{std::string(bytes, static_cast<size_t>(num_bytes)), detach(message)};
}

bool is_same_user(const Fd& socket) {
    ucred peer{};
    socklen_t bytes = sizeof(peer);
    return getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid();
}

void copy_text(char* target, size_t capacity, const std::string& text) {
    const size_t length = std::min(capacity - 1, text.size());
    std::memcpy(target, text.data(), length);
    target[length] = '\0';
}

std::string hello_fault(const Packet& packet, const Limits& limits, int32_t ep_rank) {
    Hello hello;
    if (packet.bytes.size() != sizeof(hello) || packet.fds.size() != 2) return "the hello is not one of this protocol";
    std::memcpy(&hello, packet.bytes.data(), sizeof(hello));
    if (hello.magic != kHandshakeMagic) return "the hello is not one of this protocol";
    if (hello.version != kHandshakeVersion)
        return "link version " + std::to_string(hello.version) + ", this rank speaks " +
               std::to_string(kHandshakeVersion);
    if (hello.ep_rank != ep_rank)
        return "this is expert rank " + std::to_string(ep_rank) + ", not " + std::to_string(hello.ep_rank);
    if (!(hello.limits == limits)) return "limits differ: " + differing_field(hello.limits, limits);
    return "";
}

}  // namespace step35
