"""What would be silicon: the card, its link, the memory hierarchy and the core ports, in Amaranth."""
