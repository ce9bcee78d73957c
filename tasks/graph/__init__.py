"""Clean pairs in, a time split and its graphs as memory-mapped arrays out."""
