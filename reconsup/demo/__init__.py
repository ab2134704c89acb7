"""The local pieces that show reconsup at work: a chain, a token, people who pay. `reconsup run` never needs them."""
