"""What routing/native/spares.cpp offers. Addresses are those of contiguous arrays in host memory."""

def hold_meetings(
    arrays: tuple[int, int, int, int, int, int, int, int],
    sizes: tuple[int, int, int, int],
    max_moves: int,
    turns: tuple[int, int, int],
    num_meetings: int,
) -> None: ...
