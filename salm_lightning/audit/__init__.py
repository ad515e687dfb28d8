"""Evidence about a release: whether the protection holds, and whether the images are still useful."""
