"""Files of architectures: the packed and the published format."""
