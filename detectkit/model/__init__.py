"""The network: backbones, the detector, and the files it is kept in."""
