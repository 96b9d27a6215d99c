"""What routing/native/search.cpp offers. Addresses are those of contiguous arrays in host memory."""

class Search:
    def __init__(
        self,
        state: tuple[int, int, int, int, int, int, int, int, int, int],
        sizes: tuple[int, int, int, int, int],
        least: int,
        limits: tuple[float, float, float, float],
        counts: tuple[int, int, int],
    ) -> None: ...
    @property
    def num_pictures(self) -> int: ...
    def write(self, outputs: tuple[int, int, int, int]) -> None: ...
