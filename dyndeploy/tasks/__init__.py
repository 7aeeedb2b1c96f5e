"""What a network is for: how images become its inputs, and its outputs become answers."""
