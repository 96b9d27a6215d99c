"""How frames travel between an attention actor and its expert ranks: loopback, shared memory, torch.distributed."""
