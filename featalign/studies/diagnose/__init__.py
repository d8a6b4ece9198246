"""Is a layer superposed, did training change it, and how would we know? One network, with controls."""
