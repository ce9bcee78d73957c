"""Graph arrays in, two fits out: one to be judged, one to be served. Ranks run in processes of their own."""
