"""The heads: what the maps of a network mean, and which maps it has."""
