"""What a DeepNets-1M architecture is: its genotype, its configuration, its network."""
