"""Images with classes, read from folders, NPZ, IDX and Parquet."""
