"""Partners who get the originals back: keys, encrypted archives, and patches from a protected result to what it was made from."""
