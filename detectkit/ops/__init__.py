"""Pure tensor functions of detectors: no spec, no files, no logging, no globals.

Letters in shape comments: B images, C classes, H W grid rows and columns, N M boxes, P pairs of a ragged expansion,
A anchors of an image.
Boxes are float tensors [N, 4] holding x1, y1, x2, y2.
"""
