"""Where keys and values live: blocks, who holds them, which can be reused, and the memory behind them."""
