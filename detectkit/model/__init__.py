"""The network: backbones, the detector with its two heads, and the files it is kept in."""
