"""An external policy's own network, fine-tuned to one evaluation: its settings, its encoded observations, training, choice."""
