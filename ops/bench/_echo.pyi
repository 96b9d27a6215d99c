"""An expert end of a shared-memory link that answers every row with itself, in C++."""

class EchoPort:
    def __init__(
        self,
        name: str,
        ep_rank: int,
        largest_header: bytes,
        item_bytes: int,
        max_in_flight: int,
        frame_bytes: int,
    ) -> None: ...
    def admit(self, bundle: str) -> None: ...
    def serve(self, idle_s: float) -> int: ...
    def close(self) -> None: ...
