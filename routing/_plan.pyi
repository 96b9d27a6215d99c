"""What routing/native/plan.cpp offers. Addresses are those of contiguous tensors in host memory."""

def plan_dispatch(
    inputs: tuple[int, int, int],
    sizes: tuple[int, int, int, int],
    ranks: tuple[int, int, int],
    outputs: tuple[int, int, int, int, int],
) -> tuple[tuple[int, ...], tuple[int, ...]]: ...
