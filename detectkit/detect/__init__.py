"""Detection in folders of images, and what is written of it."""
