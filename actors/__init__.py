"""What runs inside one rank: model math, kernels, weights, KV cache, scheduler, sampler."""
