"""Evidence about a release: victims that train on its stored bytes, under what a determined user would try."""
