"""For authors of plugins: the contract suite (contract/), sample records, hostile texts, and a scripted server."""
