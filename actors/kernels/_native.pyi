"""The compiled kernels (actors/kernels/native). An `int` named like a tensor is its address."""

class Matrix:
    def __init__(self, data: int, is_bf16: bool, rows: int, cols: int) -> None: ...

class Norm:
    def __init__(self, weight: Matrix, eps: float) -> None: ...

class GatedMlp:
    def __init__(self, gate: Matrix, up: Matrix, down: Matrix) -> None: ...

class GateWeights:
    def __init__(self, norm: Norm, router: Matrix, bias: int, top_k: int, routed_scale: float) -> None: ...

class AttentionLayer:
    """matrices: q, k, v, o, head_gate, q_norm, k_norm. sizes: heads, kv_heads, head_dim, rotary_dim, window."""

    def __init__(
        self,
        norm: Norm,
        matrices: tuple[Matrix, Matrix, Matrix, Matrix, Matrix, Matrix, Matrix],
        sizes: tuple[int, int, int, int, int],
        inverse_frequencies: int,
    ) -> None: ...

class PagedCache:
    def __init__(self, keys: int, values: int, is_bf16: bool, num_blocks: int, block_size: int) -> None: ...

class Batch:
    """sequences: first_row, num_rows, first_position, block_ids, num_block_ids of each."""

    def __init__(
        self, positions: int, slot_mapping: int, num_rows: int, sequences: list[tuple[int, int, int, int, int]]
    ) -> None: ...

def isas() -> list[str]: ...
def select_isa(name: str) -> None: ...
def attention_half(layer: AttentionLayer, batch: Batch, cache: PagedCache, hidden: int, out: int) -> None: ...
def gated_mlp(mlp: GatedMlp, limit: float, hidden: int, num_rows: int, out: int) -> None: ...
def dense_half(mlp: GatedMlp, norm: Norm, limit: float, hidden: int, num_rows: int, out: int) -> None: ...
def expert_mlp(
    slots: GatedMlp, limit: float, tensors: tuple[int, int, int, int], sizes: tuple[int, int, int], tally: int
) -> None:
    """tensors: hidden, pair_row, pair_slot, out. sizes: rows, pairs, slots. tally: address of a LayerTally, or 0."""

def gate(weights: GateWeights, hidden: int, num_rows: int, outputs: tuple[int, int, int, int]) -> None:
    """outputs: normed, topk_ids, topk_weights, and the table of its confidence."""

def head(norm: Norm, output: Matrix, hidden: int, num_rows: int, logits: int) -> None: ...
